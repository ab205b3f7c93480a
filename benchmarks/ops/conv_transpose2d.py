"""Transposed convolutions of U-Net's decoder and FCN's upsampling, against torch.nn.functional.conv_transpose2d (oneDNN)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from benchmarks.cases import HALF, Case, GpuGoal, GroupGoal, Sweep, Work
from benchmarks.ops._convolutions import EVERY_ROW, OVERHEAD
from segkernels.ops import conv_transpose2d


def case(name, shape, out_channels, kernel, stride, padding=0, bias=True, groups=1, **rest):
    n, c, h, w = shape
    out_h, out_w = ((size - 1) * stride - 2 * padding + kernel for size in (h, w))

    def inputs(dtype, device):
        scale = (c // groups * kernel * kernel / stride**2) ** -0.5
        weight = (torch.randn(c, out_channels // groups, kernel, kernel, device=device) * scale).to(dtype)
        offset = torch.randn(out_channels, device=device).to(dtype) if bias else None
        return torch.randn(shape, device=device).to(dtype), weight, offset, stride, padding, 0, groups

    def work(size):
        tensors = n * c * h * w + c * out_channels // groups * kernel**2 + n * out_channels * out_h * out_w
        flops = 2 * n * c * out_channels // groups * kernel**2 * h * w
        # Backward reads all three and writes the gradients of input and weight: two products of the forward's size.
        backward = (2 * tensors - n * out_channels * out_h * out_w) * size
        return Work({"fwd": tensors * size, "fwdbwd": tensors * size + backward}, {"fwd": flops, "fwdbwd": 3 * flops})

    return Case(
        name=name,
        inputs=inputs,
        ours=conv_transpose2d,
        baselines={"eager": F.conv_transpose2d, "channels_last": F.conv_transpose2d},
        work=work,
        grad=(0, 1, 2) if bias else (0, 1),
        **(EVERY_ROW | {"channels_last": ("channels_last",)} | rest),
    )


NEVER_SLOWER = {"fwd": 0.95, "fwdbwd": 0.95}
NOT_SLOWER = {"fwd": 1.0, "fwdbwd": 1.0}
DEPTHWISE = {"fwd": 1.5, "fwdbwd": 2.0}
ON_GPU = {
    "devices": ("cuda",),
    "channels_last": ("segkernels", "channels_last"),
    "gpu_goals": {mode: GpuGoal({"best": 1.2}, dtypes=HALF) for mode in ("fwd", "fwdbwd")},
}
# What a user of channels_last sees; the other rows are a user of NCHW's.
BOTH_CHANNELS_LAST = {"devices": ("cpu",), "channels_last": ("segkernels", "channels_last")}
FCN = {"fwd": 5.0, "fwdbwd": 5.0}
CASES = [
    *(
        case(f"unet 4x{c}x{s}x{s}", (4, c, s, s), c // 2, 2, 2, goals=NEVER_SLOWER, group="unet decoder")
        for c, s in ((1024, 14), (512, 28), (256, 56), (128, 112))
    ),
    *(
        case(f"channels_last unet 4x{c}x{s}x{s}", (4, c, s, s), c // 2, 2, 2, goals=NEVER_SLOWER, **BOTH_CHANNELS_LAST)
        for c, s in ((1024, 14), (512, 28), (256, 56), (128, 112))
    ),
    case("fcn k64 s32 1x21x16x16", (1, 21, 16, 16), 21, 64, 32, 16, bias=False, goals=FCN),
    case("fcn k16 s8 1x21x64x64", (1, 21, 64, 64), 21, 16, 8, 4, bias=False, goals=FCN),
    case("dcgan k4 s2 16x128x32x32", (16, 128, 32, 32), 64, 4, 2, 1, bias=False, goals=NOT_SLOWER),
    case(
        "channels_last dcgan k4 s2 16x128x32x32",
        (16, 128, 32, 32),
        64,
        4,
        2,
        1,
        bias=False,
        goals=NEVER_SLOWER,
        **BOTH_CHANNELS_LAST,
    ),
    case("fcn k4 s2 1x21x34x34", (1, 21, 34, 34), 21, 4, 2, 1, bias=False, goals=NOT_SLOWER),
    case("depthwise k4 s2 8x21x64x64", (8, 21, 64, 64), 21, 4, 2, 1, bias=False, groups=21, goals=DEPTHWISE),
    case("depthwise k4 s2 4x256x32x32", (4, 256, 32, 32), 256, 4, 2, 1, bias=False, groups=256, goals=DEPTHWISE),
    *(case(f"gpu unet 16x{c}x{s}x{s}", (16, c, s, s), c // 2, 2, 2, **ON_GPU) for c, s in ((1024, 32), (512, 64), (256, 128))),
    case("gpu mask head 400x256x14x14", (400, 256, 14, 14), 256, 2, 2, **ON_GPU),
    case("8x8 overhead", (1, 1, 8, 8), 1, 2, 2, **OVERHEAD),
]
GROUP_GOALS = [GroupGoal("unet decoder", "fwd", 1.1), GroupGoal("unet decoder", "fwdbwd", 1.1)]
SWEEPS = [Sweep("side", (16, 32, 64, 128, 256, 512), lambda s: case(f"k2 s2 1x64x{s}x{s}", (1, 64, s, s), 32, 2, 2))]
