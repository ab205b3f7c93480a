"""Non-maximum suppression of a detector's proposals, against torchvision."""

from __future__ import annotations

import torch

from benchmarks.cases import Case, Sweep, Work
from benchmarks.ops._boxes import random_boxes, torchvision_baseline
from segkernels.ops import nms
from segkernels.reference.nms import nms as composition


def case(name, count, largest, **goals):
    return Case(
        name=name,
        inputs=lambda dtype, device: (
            random_boxes(count, device, largest=largest).to(dtype),
            torch.rand(count, device=device).to(dtype),
            0.5,
        ),
        ours=nms,
        baselines=torchvision_baseline("nms") or {"eager": composition},
        work=lambda size: Work({"fwd": count * (5 * size + 8)}),
        modes=("fwd",),
        grad=(),
        exact=True,
        **goals,
    )


CASES = [
    case("8 boxes overhead", 8, 200, overhead_goals={"fwd": 15.0}),
    case("1000 boxes", 1000, 200),
    case("10000 boxes", 10000, 200, goals={"fwd": 3.0}),
    case("10000 small boxes", 10000, 30, goals={"fwd": 3.0}),
]
# Pairs of boxes are compared.
SWEEPS = [Sweep("boxes", (500, 1000, 2000, 4000, 8000, 16000), lambda n: case(f"{n} of a sweep", n, 30), lambda n: n * n)]
