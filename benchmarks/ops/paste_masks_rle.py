"""A detector's masks to COCO's run lengths, against torchvision's pasting and pycocotools' encoding."""

from __future__ import annotations

import torch

from benchmarks.cases import Case, Work
from benchmarks.ops.paste_masks import masks_and_boxes
from segkernels.ops import paste_masks_rle
from segkernels.ops._paste_arguments import parse


def runs(masks, boxes, image_size):
    return torch.ops.segkernels.paste_masks_rle(*parse(masks, boxes, image_size, 0.5, "torchvision"))[0]


def composition(masks, boxes, image_size):
    from segkernels.reference.paste_masks_rle import paste_masks_rle as reference

    return reference(*parse(masks, boxes, image_size, 0.5, "torchvision"))[0]


def strings(masks, boxes, image_size):
    return torch.tensor([len(rle["counts"]) for rle in paste_masks_rle(masks, boxes, image_size)])


def coco_baseline():
    try:
        import pycocotools.mask
        from torchvision.models.detection.roi_heads import paste_masks_in_image
    except ImportError:
        return {}

    def encode(masks, boxes, image_size):
        pasted = paste_masks_in_image(masks, boxes, image_size)[:, 0] >= 0.5
        found = [pycocotools.mask.encode(mask.numpy().astype("uint8", order="F")) for mask in pasted]
        return torch.tensor([len(rle["counts"]) for rle in found])

    return {"torchvision + pycocotools": encode}


def case(name, ours, baselines, count, image_size, **goals):
    return Case(
        name=name,
        inputs=masks_and_boxes(count, image_size),
        ours=ours,
        baselines=baselines,
        work=lambda size: Work({"fwd": count * 28 * 28 * size}),
        modes=("fwd",),
        grad=(),
        **goals,
    )


# 5% of the tensor of a byte a pixel that is never made.
RLE = {"fwd": 100 * 800 * 1333 // 20}
CASES = [
    case("100 to 800x1333", strings, coco_baseline() or {"eager": strings}, 100, (800, 1333), memory_goals=RLE),
    case("runs of 20 to 480x640", runs, {"eager": composition}, 20, (480, 640)),
]
