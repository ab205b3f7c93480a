"""RoI Align of Mask R-CNN's box and mask heads, against torchvision.ops.roi_align, or the reference where it is absent."""

from __future__ import annotations

import torch

from benchmarks.cases import Case, GpuGoal, Sweep, Work
from segkernels.ops import roi_align
from segkernels.reference import roi_align as reference


def by_reference(image, boxes, size, scale, sampling_ratio):
    return reference.roi_align(image, boxes, [size, size], scale, sampling_ratio, False)


try:
    from torchvision.ops import roi_align as baseline

    BASELINES = {"torchvision": baseline}
except ImportError:
    BASELINES = {"reference": by_reference}

SCALE = 1 / 16


def boxes(count, shape, device):
    """Proposals of 32 to 512 image pixels, any aspect, the same in every run."""
    generator = torch.Generator().manual_seed(0)
    n, _, h, w = shape
    size = 32 * 2 ** (4 * torch.rand(count, 1, generator=generator))
    aspect = 2 ** (torch.rand(count, 1, generator=generator) - 0.5)
    extent = torch.cat([size * aspect, size / aspect], 1)
    limit = torch.tensor([w, h]) / SCALE
    corner = torch.rand(count, 2, generator=generator) * (limit - extent).clamp(min=0)
    ids = torch.randint(0, n, (count, 1), generator=generator)
    return torch.cat([ids, corner, (corner + extent).minimum(limit)], 1).to(device)


def case(name, shape, count, size, sampling_ratio=2, channels_last=False, **rest):
    def inputs(dtype, device):
        image = torch.randn(shape, device=device).to(dtype)
        if channels_last:
            image = image.contiguous(memory_format=torch.channels_last)
        return image, boxes(count, shape, device), size, SCALE, sampling_ratio

    def work(element):
        pooled = count * shape[1] * size**2
        image = torch.Size(shape).numel()
        return Work({"fwd": (pooled + image) * element, "fwdbwd": 2 * (pooled + image) * element})

    return Case(name=name, inputs=inputs, ours=roi_align, baselines=BASELINES, work=work, **rest)


GPU = {"fwd": GpuGoal({"torchvision": 3.0}), "fwdbwd": GpuGoal({"torchvision": 3.5})}
MAP = (2, 256, 50, 84)
CASES = [
    case("1000 boxes 7x7", MAP, 1000, 7, goals={"fwd": 7.0, "fwdbwd": 8.0}),
    case("1000 boxes 7x7 channels_last", MAP, 1000, 7, channels_last=True),
    case("1000 boxes 7x7 adaptive", MAP, 1000, 7, -1, goals={"fwd": 7.0}),
    case("200 boxes 14x14", MAP, 200, 14, goals={"fwd": 7.0, "fwdbwd": 8.0}),
    case(
        "gpu 1000 boxes 7x7 channels_last", (8, 256, 100, 168), 1000, 7, channels_last=True, devices=("cuda",), gpu_goals=GPU
    ),
    case("1 box 8x8 overhead", (1, 1, 8, 8), 1, 2, modes=("fwd",), overhead_goals={"fwd": 15.0}),
]
SWEEPS = [
    Sweep("boxes", (32, 128, 512, 2048, 8192), lambda k: case(f"{k} boxes 7x7 64 channels", (2, 64, 50, 84), k, 7)),
    Sweep("channels", (16, 64, 256, 1024), lambda c: case(f"{c} channels 256 boxes 7x7", (2, c, 50, 84), 256, 7)),
]
