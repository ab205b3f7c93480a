"""Max-unpooling of SegNet's and DeconvNet's decoders, against torch.nn.functional.max_unpool2d."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from benchmarks.cases import Case, GpuGoal, Work
from segkernels.ops import max_unpool2d


def inputs(shape, channels_last=False):
    def make(dtype, device):
        image = torch.randn(shape, device=device)
        if channels_last:
            image = image.contiguous(memory_format=torch.channels_last)
        values, indices = F.max_pool2d(image, 2, return_indices=True)
        return values.to(dtype), indices, 2

    return make


def work(shape):
    n, c, h, w = shape
    entries = n * c * (h // 2) * (w // 2)

    def of(size):
        forward = entries * (size + 8) + 4 * entries * size
        # The gradient at the winners is one of each 2x2 window, but whole cache lines are read.
        backward = 4 * entries * size + entries * (8 + size)
        return Work({"fwd": forward, "fwdbwd": forward + backward})

    return of


def case(name, shape, channels_last=False, **goals):
    return Case(
        name=name,
        inputs=inputs(shape, channels_last),
        ours=max_unpool2d,
        baselines={"eager": F.max_unpool2d},
        work=work(shape),
        exact=True,
        **goals,
    )


ON_GPU = {"devices": ("cuda",), "gpu_goals": {mode: GpuGoal(roofline=0.8) for mode in ("fwd", "fwdbwd")}}
CASES = [
    case("to 4x64x224x224", (4, 64, 224, 224), goals={"fwd": 1.5, "fwdbwd": 1.5}),
    case("to 4x64x224x224 channels_last", (4, 64, 224, 224), True),
    case("to 4x256x56x56", (4, 256, 56, 56)),
    case("to 4x512x14x14", (4, 512, 14, 14)),
    case("gpu to 16x64x224x224", (16, 64, 224, 224), **ON_GPU),
    case("gpu to 16x64x224x224 channels_last", (16, 64, 224, 224), True, **ON_GPU),
    case("8x8 overhead", (1, 1, 8, 8), modes=("fwd",), overhead_goals={"fwd": 15.0}),
]
