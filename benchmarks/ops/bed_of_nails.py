"""Bed-of-nails unpooling, against writing into zeros and against the depthwise transposed convolution."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from benchmarks.cases import Case, Work
from segkernels.ops import bed_of_nails


def zeros_and_copy(image, scale):
    output = image.new_zeros((*image.shape[:2], image.shape[2] * scale, image.shape[3] * scale))
    output[:, :, ::scale, ::scale] = image
    return output


def transposed_convolution(image, scale):
    channels = image.shape[1]
    weight = image.new_ones(channels, 1, 1, 1)
    return F.conv_transpose2d(image, weight, stride=scale, output_padding=scale - 1, groups=channels)


def case(name, shape, scale, **rest):
    def inputs(dtype, device):
        return torch.randn(shape, device=device).to(dtype), scale

    def work(itemsize):
        forward = torch.Size(shape).numel() * (1 + scale * scale) * itemsize
        return Work({"fwd": forward, "fwdbwd": 2 * forward})

    return Case(
        name=name,
        inputs=inputs,
        ours=bed_of_nails,
        baselines={"eager": zeros_and_copy, "eager conv_transpose2d": transposed_convolution},
        work=work,
        exact=True,
        **rest,
    )


CASES = [
    case("4x64x112x112 by 2", (4, 64, 112, 112), 2),
    case("4x256x28x28 by 2", (4, 256, 28, 28), 2),
    case("8x8 overhead", (1, 1, 8, 8), 2, modes=("fwd",), overhead_goals={"fwd": 15.0}),
]
