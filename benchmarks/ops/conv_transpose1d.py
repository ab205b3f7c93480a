"""Transposed convolutions of sequences (a 1-D U-Net's decoder, WaveGAN, HiFi-GAN's upsampling), against torch's."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from benchmarks.cases import Case, Work
from benchmarks.ops._convolutions import EVERY_ROW, OVERHEAD
from segkernels.ops import conv_transpose1d


def case(name, shape, out_channels, kernel, stride, padding=0, **rest):
    n, c, length = shape
    out_length = (length - 1) * stride - 2 * padding + kernel

    def inputs(dtype, device):
        weight = (torch.randn(c, out_channels, kernel, device=device) * (c * kernel / stride) ** -0.5).to(dtype)
        offset = torch.randn(out_channels, device=device).to(dtype)
        return torch.randn(shape, device=device).to(dtype), weight, offset, stride, padding

    def work(size):
        written = n * out_channels * out_length
        tensors = n * c * length + c * out_channels * kernel + written
        flops = 2 * n * c * out_channels * kernel * length
        # Backward reads all three and writes the gradients of input and weight: two products of the forward's size.
        backward = (2 * tensors - written) * size
        return Work({"fwd": tensors * size, "fwdbwd": tensors * size + backward}, {"fwd": flops, "fwdbwd": 3 * flops})

    return Case(
        name=name,
        inputs=inputs,
        ours=conv_transpose1d,
        baselines={"eager": F.conv_transpose1d},
        work=work,
        grad=(0, 1, 2),
        **(EVERY_ROW | rest),
    )


NEVER_SLOWER = {"fwd": 1.0, "fwdbwd": 1.0}
CASES = [
    case("unet1d k2 s2 16x256x512", (16, 256, 512), 128, 2, 2, goals=NEVER_SLOWER),
    case("unet1d k2 s2 16x64x4096", (16, 64, 4096), 32, 2, 2, goals=NEVER_SLOWER),
    case("hifigan k16 s8 4x512x64", (4, 512, 64), 256, 16, 8, 4, goals=NEVER_SLOWER),
    case("8 overhead", (1, 1, 8), 1, 2, 2, **OVERHEAD),
]
