"""A detector's masks into its image, against torchvision's loop of F.interpolate."""

from __future__ import annotations

import torch

from benchmarks.cases import Case, GpuGoal, Sweep, Work
from segkernels.ops import paste_masks


def masks_and_boxes(count, image_size):
    def make(dtype, device):
        height, width = image_size
        room = torch.tensor([width - 200.0, height - 200.0], device=device).clamp(min=0)
        corner = torch.rand(count, 2, device=device) * room
        boxes = torch.cat([corner, corner + torch.rand(count, 2, device=device) * 250 + 20], 1)
        return torch.rand(count, 1, 28, 28, device=device).to(dtype), boxes.to(dtype), image_size

    return make


def torchvision_baseline():
    try:
        from torchvision.models.detection.roi_heads import paste_masks_in_image
    except ImportError:
        return {}
    return {"torchvision": lambda masks, boxes, size: paste_masks_in_image(masks, boxes, size)[:, 0] >= 0.5}


def composition(masks, boxes, image_size):
    from segkernels.reference.paste_masks import paste_masks as reference

    return reference(masks[:, 0], boxes, list(image_size), 0.5, 0)


def case(name, count, image_size, **goals):
    return Case(
        name=name,
        inputs=masks_and_boxes(count, image_size),
        ours=paste_masks,
        baselines=torchvision_baseline() or {"eager": composition},
        work=lambda size: Work({"fwd": count * (image_size[0] * image_size[1] + 28 * 28 * size)}),
        modes=("fwd",),
        grad=(),
        **goals,
    )


GPU = {"fwd": GpuGoal({"torchvision": 20.0})}
CASES = [
    case("100 to 800x1333", 100, (800, 1333), goals={"fwd": 4.0}, default_allocator_goals={"fwd": 10.0}, gpu_goals=GPU),
    case("20 to 480x640", 20, (480, 640)),
    case("1 to 8x8 overhead", 1, (8, 8), overhead_goals={"fwd": 15.0}),
]
SWEEPS = [Sweep("masks", (5, 20, 80, 320), lambda n: case(f"{n} masks to 480x640", n, (480, 640)))]
