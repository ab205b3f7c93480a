"""Segmentations of the full resolution from logits of a lower one, against interpolate and argmax in both layouts."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from benchmarks.cases import Case, GpuGoal, Work
from segkernels.ops import upsample_argmax


def eager(logits, size):
    return F.interpolate(logits, size, mode="bilinear").argmax(1)


def eager_channels_last(logits, size):
    return eager(logits.contiguous(memory_format=torch.channels_last), size)


def case(name, shape, size, **rest):
    def inputs(dtype, device):
        return torch.randn(shape, device=device).to(dtype), size

    def work(itemsize):
        return Work({"fwd": torch.Size(shape).numel() * itemsize + shape[0] * size[0] * size[1] * 8})

    return Case(
        name=name,
        inputs=inputs,
        ours=upsample_argmax,
        baselines={"eager": eager, "eager channels_last": eager_channels_last},
        work=work,
        modes=("fwd",),
        grad=(),
        **rest,
    )


CASES = [
    case("4x21x65x65 to 513x513", (4, 21, 65, 65), (513, 513), goals={"fwd": 10.0}),
    case("2x150x128x128 to 512x512", (2, 150, 128, 128), (512, 512)),
    case(
        "gpu 32x21x256x256 to 512x512",
        (32, 21, 256, 256),
        (512, 512),
        devices=("cuda",),
        gpu_goals={"fwd": GpuGoal(roofline=0.8)},
    ),
    case("8x8 overhead", (1, 4, 8, 8), (16, 16), overhead_goals={"fwd": 15.0}),
]
