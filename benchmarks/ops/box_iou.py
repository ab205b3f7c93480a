"""All pairs of boxes: proposals against ground truth, and against each other, against torchvision."""

from __future__ import annotations

from benchmarks.cases import Case, Sweep, Work
from benchmarks.ops._boxes import random_boxes, torchvision_baseline
from segkernels.ops import box_iou
from segkernels.reference.box_iou import box_iou as composition


def case(name, n, m, **goals):
    def work(size):
        return Work({"fwd": (4 * (n + m) + n * m) * size, "fwdbwd": (8 * (n + m) + 2 * n * m) * size})

    return Case(
        name=name,
        inputs=lambda dtype, device: (random_boxes(n, device).to(dtype), random_boxes(m, device).to(dtype)),
        ours=box_iou,
        baselines={"eager": composition} | torchvision_baseline("box_iou"),
        work=work,
        grad=(0, 1),
        **goals,
    )


CASES = [
    case("2000 x 100", 2000, 100),
    case("1000 x 5000", 1000, 5000, goals={"fwd": 3.0}),
    case("1 x 1 overhead", 1, 1, modes=("fwd",), overhead_goals={"fwd": 15.0}),
]
SWEEPS = [Sweep("boxes", (100, 300, 1000, 3000, 10000), lambda n: case(f"100 x {n}", 100, n))]
