"""RoI pooling of Fast R-CNN, against torchvision.ops.roi_pool, or the reference where it is absent."""

from __future__ import annotations

import torch

from benchmarks.cases import Case, Work
from benchmarks.ops.roi_align import MAP, SCALE, boxes
from segkernels.ops import roi_pool
from segkernels.reference import roi_pool as reference


def by_reference(image, boxes, size, scale):
    return reference.roi_pool(image, boxes, [size, size], scale)[0]


try:
    from torchvision.ops import roi_pool as baseline

    BASELINES = {"torchvision": baseline}
except ImportError:
    BASELINES = {"reference": by_reference}


def case(name, shape, count, size, **rest):
    def inputs(dtype, device):
        return torch.randn(shape, device=device).to(dtype), boxes(count, shape, device), size, SCALE

    def work(element):
        pooled = count * shape[1] * size**2
        forward = pooled * (element + 8) + torch.Size(shape).numel() * element
        return Work({"fwd": forward, "fwdbwd": 2 * forward})

    return Case(name=name, inputs=inputs, ours=roi_pool, baselines=BASELINES, work=work, **rest)


CASES = [
    case("1000 boxes 7x7", MAP, 1000, 7),
    case("1 box 8x8 overhead", (1, 1, 8, 8), 1, 2, modes=("fwd",), overhead_goals={"fwd": 15.0}),
]
