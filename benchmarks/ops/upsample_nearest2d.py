"""Nearest-neighbour upsampling of feature maps, against torch.nn.functional.interpolate in both layouts."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from benchmarks.cases import Case, GpuGoal, Work
from segkernels.ops import upsample_nearest2d


def eager(image, size):
    return F.interpolate(image, size, mode="nearest")


def eager_channels_last(image, size):
    return F.interpolate(image.contiguous(memory_format=torch.channels_last), size, mode="nearest")


def case(name, shape, size, channels_last=False, **rest):
    def inputs(dtype, device):
        image = torch.randn(shape, device=device).to(dtype)
        return image.contiguous(memory_format=torch.channels_last) if channels_last else image, size

    def work(itemsize):
        forward = (shape[2] * shape[3] + size[0] * size[1]) * shape[0] * shape[1] * itemsize
        return Work({"fwd": forward, "fwdbwd": 2 * forward})

    return Case(
        name=name,
        inputs=inputs,
        ours=upsample_nearest2d,
        baselines={"eager": eager, "eager channels_last": eager_channels_last},
        work=work,
        **rest,
    )


BOTH = {"fwd": 1.0, "fwdbwd": 1.0}
ON_GPU = {"devices": ("cuda",), "gpu_goals": {mode: GpuGoal(roofline=0.8) for mode in ("fwd", "fwdbwd")}}

CASES = [
    case("4x64x112x112 to 224x224", (4, 64, 112, 112), (224, 224), goals=BOTH),
    case("4x256x28x28 to 56x56", (4, 256, 28, 28), (56, 56), goals=BOTH),
    case("4x64x112x112 to 224x224 channels_last", (4, 64, 112, 112), (224, 224), True),
    case("gpu 16x64x128x128 to 512x512", (16, 64, 128, 128), (512, 512), **ON_GPU),
    case("gpu 16x64x128x128 to 512x512 channels_last", (16, 64, 128, 128), (512, 512), True, **ON_GPU),
    case("8x8 overhead", (1, 1, 8, 8), (16, 16), modes=("fwd",), overhead_goals={"fwd": 15.0}),
]
