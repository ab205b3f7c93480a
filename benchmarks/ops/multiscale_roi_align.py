"""RoI Align over P2 to P5 of an 800x1333 image, against torchvision.ops.MultiScaleRoIAlign, or one call a level without it."""

from __future__ import annotations

import torch

from benchmarks.cases import Case, Work
from segkernels.ops import multiscale_roi_align
from segkernels.reference import multiscale_roi_align as reference

IMAGE = (800, 1333)
SIZES = [(200, 336), (100, 168), (50, 84), (25, 42)]
SCALES = [1 / 4, 1 / 8, 1 / 16, 1 / 32]
NAMES = ["0", "1", "2", "3"]


def by_reference(maps, boxes, size, scales, sampling_ratio):
    return reference.multiscale_roi_align(maps, boxes, [size, size], scales, sampling_ratio, False, 224.0, 4.0)


def by_torchvision(maps, boxes, size, scales, sampling_ratio):
    pool = MultiScaleRoIAlign(NAMES, size, sampling_ratio)
    return pool(dict(zip(NAMES, maps)), [boxes[:, 1:]], [IMAGE])


try:
    from torchvision.ops import MultiScaleRoIAlign

    BASELINES = {"torchvision": by_torchvision}
except ImportError:
    BASELINES = {"reference": by_reference}


def boxes(count, device):
    """Proposals of 16 to 512 image pixels, any aspect, the same in every run."""
    generator = torch.Generator().manual_seed(0)
    size = 16 * 2 ** (5 * torch.rand(count, 1, generator=generator))
    aspect = 2 ** (torch.rand(count, 1, generator=generator) - 0.5)
    extent = torch.cat([size * aspect, size / aspect], 1)
    limit = torch.tensor([float(IMAGE[1]), float(IMAGE[0])])
    corner = torch.rand(count, 2, generator=generator) * (limit - extent).clamp(min=0)
    return torch.cat([torch.zeros(count, 1), corner, (corner + extent).minimum(limit)], 1).to(device)


def case(name, count, size, channels_last=False, **rest):
    def inputs(dtype, device):
        layout = torch.channels_last if channels_last else torch.contiguous_format
        maps = [torch.randn(1, 256, *s, device=device).to(dtype).contiguous(memory_format=layout) for s in SIZES]
        return maps, boxes(count, device), size, SCALES, 2

    def work(element):
        moved = (count * size**2 + sum(h * w for h, w in SIZES)) * 256 * element
        return Work({"fwd": moved, "fwdbwd": 2 * moved})

    return Case(name=name, inputs=inputs, ours=multiscale_roi_align, baselines=BASELINES, work=work, **rest)


CASES = [
    case("1000 boxes 7x7", 1000, 7, goals={"fwd": 7.0, "fwdbwd": 7.0}),
    case("1000 boxes 7x7 channels_last", 1000, 7, channels_last=True),
    case("100 boxes 14x14", 100, 14),
]
