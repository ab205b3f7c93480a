"""Non-maximum suppression within 80 classes, against torchvision."""

from __future__ import annotations

import torch

from benchmarks.cases import Case, Work
from benchmarks.ops._boxes import random_boxes, torchvision_baseline
from segkernels.ops import batched_nms
from segkernels.reference import batched_nms as reference


def composition(*arguments):
    order, kept = reference.batched_nms(*arguments)
    return order[kept]


def case(name, count, **goals):
    return Case(
        name=name,
        inputs=lambda dtype, device: (
            random_boxes(count, device).to(dtype),
            torch.randperm(count, device=device).to(dtype),
            torch.randint(0, 80, (count,), device=device),
            0.5,
        ),
        ours=batched_nms,
        baselines=torchvision_baseline("batched_nms") or {"eager": composition},
        work=lambda size: Work({"fwd": count * (5 * size + 16)}),
        modes=("fwd",),
        grad=(),
        exact=True,
        **goals,
    )


CASES = [
    case("8 boxes overhead", 8, overhead_goals={"fwd": 15.0}),
    case("900 boxes", 900),
    case("10000 boxes", 10000, goals={"fwd": 3.0}),
]
