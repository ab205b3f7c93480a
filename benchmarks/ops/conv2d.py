"""Depthwise and atrous convolutions of MobileNet, Xception and DeepLab, against torch.nn.functional.conv2d (oneDNN)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from benchmarks.cases import Case, GroupGoal, Sweep, Work
from segkernels.ops import conv2d


def case(name, shape, out_channels, kernel, dilation=1, groups=1, **rest):
    n, c, h, w = shape
    padding = dilation * (kernel - 1) // 2

    def inputs(dtype, device):
        scale = (c // groups * kernel * kernel) ** -0.5
        weight = (torch.randn(out_channels, c // groups, kernel, kernel, device=device) * scale).to(dtype)
        return torch.randn(shape, device=device).to(dtype), weight, None, 1, padding, dilation, groups

    def work(size):
        weights = out_channels * (c // groups) * kernel**2
        tensors = n * c * h * w + weights + n * out_channels * h * w
        flops = 2 * n * h * w * weights
        # Backward reads all three and writes the gradients of input and weight: two products of the forward's size.
        backward = (2 * tensors - n * out_channels * h * w) * size
        return Work({"fwd": tensors * size, "fwdbwd": tensors * size + backward}, {"fwd": flops, "fwdbwd": 3 * flops})

    return Case(
        name=name, inputs=inputs, ours=conv2d, baselines={"eager": F.conv2d}, work=work, grad=(0, 1), **rest
    )  # fmt: skip


def depthwise(shape, kernel, dilation=1):
    size = "x".join(map(str, shape))
    goals = {"fwd": 0.95, "fwdbwd": 0.95}
    return case(
        f"depthwise k{kernel} d{dilation} {size}", shape, shape[1], kernel, dilation, shape[1], goals=goals, group="depthwise"
    )


CASES = [
    *(depthwise(s, 3, d) for s in ((4, 256, 64, 64), (4, 728, 33, 33), (4, 64, 256, 256)) for d in (1, 2, 6, 12, 18)),
    depthwise((4, 96, 56, 56), 5),
    depthwise((4, 96, 56, 56), 7),
    depthwise((1, 128, 32, 32), 31),
    *(
        case(f"aspp d{d} 1x512x33x33", (1, 512, 33, 33), 256, 3, d, goals={"fwd": 0.97, "fwdbwd": 0.97})
        for d in (6, 12, 18)
    ),
    case("8x8 overhead", (1, 1, 8, 8), 1, 3, modes=("fwd",), overhead_goals={"fwd": 15.0}),
]  # fmt: skip
GROUP_GOALS = [GroupGoal("depthwise", "fwd", 3.0), GroupGoal("depthwise", "fwdbwd", 4.0)]
SWEEPS = [
    Sweep("side", (32, 64, 128, 256, 512, 1024, 2048), lambda s: case(f"k3 1x32x{s}x{s}", (1, 32, s, s), 32, 3, groups=32)),
    Sweep("channels", (16, 64, 256, 1024, 4096), lambda c: case(f"k3 1x{c}x64x64", (1, c, 64, 64), c, 3, groups=c)),
]
