"""Arguments that paste_masks and paste_masks_rle share."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from segkernels.ops._arguments import check_boxes, check_floating, check_rank, check_same_device, pair

#: The position of a style is the dispatcher ops' int.
STYLES = ("torchvision", "detectron2")


def parse(
    masks: torch.Tensor, boxes: torch.Tensor, image_size: Sequence[int], threshold: float, style: str
) -> tuple[torch.Tensor, torch.Tensor, list[int], float, int]:
    """The arguments of the dispatcher ops, checked."""
    check_floating(masks, "masks")
    check_rank(masks, "masks", (3, 4), "[N, h, w] or [N, 1, h, w]")
    if masks.dim() == 4:
        if masks.shape[1] != 1:
            raise ValueError(f"masks: expected [N, h, w] or [N, 1, h, w], got shape {list(masks.shape)}")
        masks = masks[:, 0]
    check_boxes(boxes, "boxes")
    if boxes.shape != (masks.shape[0], 4):
        raise ValueError(f"boxes: expected shape [{masks.shape[0]}, 4], one for each mask, got {list(boxes.shape)}")
    if masks.shape[1] == 0 or masks.shape[2] == 0:
        raise ValueError(f"masks: expected at least one pixel, got shape {list(masks.shape)}")
    check_same_device(masks, boxes, "masks", "boxes")
    if style not in STYLES:
        raise ValueError(f"style: expected one of {', '.join(STYLES)}, got {style!r}")
    return masks, boxes, pair(image_size, "image_size", 0), float(threshold), STYLES.index(style)
