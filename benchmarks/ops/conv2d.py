"""Depthwise and atrous convolutions of MobileNet, Xception and DeepLab, against torch.nn.functional.conv2d (oneDNN)."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F

from benchmarks.cases import HALF, Case, GpuGoal, GroupGoal, Sweep, Work
from benchmarks.ops._convolutions import EVERY_ROW, OVERHEAD
from segkernels.ops import conv2d


def case(name, shape, out_channels, kernel, dilation=1, groups=1, bias=False, **rest):
    n, c, h, w = shape
    padding = dilation * (kernel - 1) // 2

    def inputs(dtype, device):
        scale = (c // groups * kernel * kernel) ** -0.5
        weight = (torch.randn(out_channels, c // groups, kernel, kernel, device=device) * scale).to(dtype)
        offset = torch.randn(out_channels, device=device).to(dtype) if bias else None
        return torch.randn(shape, device=device).to(dtype), weight, offset, 1, padding, dilation, groups

    def work(size):
        weights = out_channels * (c // groups) * kernel**2
        tensors = n * c * h * w + weights + n * out_channels * h * w
        flops = 2 * n * h * w * weights
        # Backward reads all three and writes the gradients of input and weight: two products of the forward's size.
        backward = (2 * tensors - n * out_channels * h * w) * size
        return Work({"fwd": tensors * size, "fwdbwd": tensors * size + backward}, {"fwd": flops, "fwdbwd": 3 * flops})

    return Case(
        name=name,
        inputs=inputs,
        ours=conv2d,
        baselines={"eager": F.conv2d, "channels_last": F.conv2d},
        channels_last=("channels_last",),
        work=work,
        **(EVERY_ROW | {"grad": (0, 1, 2) if bias else (0, 1)} | rest),
    )  # fmt: skip


def channels_last(made):
    """Ours in channels_last as well."""
    return dataclasses.replace(made, name=f"{made.name} channels_last", channels_last=("segkernels", "channels_last"))


def depthwise(shape, kernel, dilation=1, last=False, bias=False):
    """Ours in NCHW, or with `last` in channels_last; torch is measured in both."""
    size = "x".join(map(str, shape))
    name, goals = f"depthwise k{kernel} d{dilation} {size}{' bias' if bias else ''}", {"fwd": 0.95, "fwdbwd": 0.95}
    if last:
        return channels_last(case(name, shape, shape[1], kernel, dilation, shape[1], bias, goals=goals))
    near = {"fwd": 0.5} if kernel == 3 else {}
    return case(name, shape, shape[1], kernel, dilation, shape[1], goals=goals, roofline_goals=near, group="depthwise")


def on_gpu(kernel, shape, grad, forward, backward):
    """Half types in channels_last, both sides; of the two gradients one at a time."""
    goals = {
        "fwd": GpuGoal({"best": 0.95}, **forward, dtypes=HALF),
        "fwdbwd": GpuGoal({"best": 0.95}, **backward, dtypes=HALF),
    }
    if grad == 1:
        del goals["fwd"]
    name = f"gpu depthwise k{kernel} {'weight' if grad else 'data'} {'x'.join(map(str, shape))}"
    made = case(name, shape, shape[1], kernel, 1, shape[1], devices=("cuda",), grad=(grad,), modes=tuple(goals))
    # The gradient that is not asked for is not moved: the forward pass, and as much again.
    work = lambda size: Work({"fwd": made.work(size).bytes["fwd"], "fwdbwd": 2 * made.work(size).bytes["fwd"]})  # noqa: E731
    both = ("segkernels", "channels_last")
    return dataclasses.replace(made, work=work, channels_last=both, gpu_goals=goals, memory_goals={})


DEPTHWISE = [
    *((shape, 3, d) for shape in ((4, 256, 64, 64), (4, 728, 33, 33), (4, 64, 256, 256)) for d in (1, 2, 6, 12, 18)),
    ((4, 96, 56, 56), 5),
    ((4, 96, 56, 56), 7),
    ((1, 128, 32, 32), 31),
]
AS_FAST = {"fwd": 0.97, "fwdbwd": 0.97}
CASES = [
    *(depthwise(*row, last=last) for last in (False, True) for row in DEPTHWISE),
    depthwise((4, 96, 56, 56), 5, last=True, bias=True),
    *(case(f"aspp d{d} 1x512x33x33", (1, 512, 33, 33), 256, 3, d, goals=AS_FAST) for d in (6, 12, 18)),
    *(channels_last(case(f"aspp d{d} 1x512x33x33", (1, 512, 33, 33), 256, 3, d, goals=AS_FAST)) for d in (6, 18)),
    channels_last(case("dense k3 2x512x16x16", (2, 512, 16, 16), 512, 3, goals=AS_FAST)),
    *(on_gpu(k, (32, 256, 64, 64), 0, {"roofline": 0.7}, {"roofline": 0.7}) for k in (3, 5, 7)),
    # A forward pass at 70% and a weight gradient at 50%.
    *(on_gpu(k, (32, 256, 64, 64), 1, {}, {"roofline": 0.58}) for k in (3, 5, 7)),
    case(
        "gpu depthwise k31 32x128x64x64", (32, 128, 64, 64), 128, 31, 1, 128, devices=("cuda",),
        gpu_goals={"fwd": GpuGoal({"best": 3.0}, dtypes=HALF), "fwdbwd": GpuGoal({"best": 3.0}, dtypes=HALF)},
    ),
    case("8x8 overhead", (1, 1, 8, 8), 1, 3, **OVERHEAD),
]  # fmt: skip
GROUP_GOALS = [GroupGoal("depthwise", "fwd", 3.0), GroupGoal("depthwise", "fwdbwd", 4.0)]
SWEEPS = [
    Sweep("side", (32, 64, 128, 256, 512, 1024, 2048), lambda s: case(f"k3 1x32x{s}x{s}", (1, 32, s, s), 32, 3, groups=32)),
    Sweep("channels", (16, 64, 256, 1024, 4096), lambda c: case(f"k3 1x{c}x64x64", (1, c, 64, 64), c, 3, groups=c)),
]
