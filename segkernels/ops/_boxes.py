"""Boxes as torchvision's region operators take them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from segkernels.ops._arguments import check_floating, check_same_device

Boxes = torch.Tensor | Sequence[torch.Tensor]


def as_rois(input: torch.Tensor, boxes: Boxes) -> torch.Tensor:
    """[K, 5]: the image's number, then x1, y1, x2, y2."""
    if isinstance(boxes, torch.Tensor):
        check_floating(boxes, "boxes")
        if boxes.dim() != 2 or boxes.shape[1] != 5:
            raise ValueError(f"boxes: expected [K, 5] (image, x1, y1, x2, y2), got shape {list(boxes.shape)}")
        check_same_device(input, boxes, "input", "boxes")
        return boxes
    if not isinstance(boxes, (list, tuple)):
        raise TypeError(f"boxes: expected a Tensor[K, 5] or a list of Tensor[L, 4], got {type(boxes).__name__}")
    if len(boxes) > input.shape[0]:
        raise ValueError(f"boxes: expected one tensor for each of {input.shape[0]} images, got {len(boxes)}")
    parts = []
    for image, part in enumerate(boxes):
        check_floating(part, "boxes")
        if part.dim() != 2 or part.shape[1] != 4:
            raise ValueError(f"boxes: expected tensors of shape [L, 4], got {list(part.shape)}")
        check_same_device(input, part, "input", "boxes")
        # A half-precision column could not name every image.
        part = part.float() if part.dtype in (torch.float16, torch.bfloat16) else part
        parts.append(torch.nn.functional.pad(part, (1, 0), value=float(image)))
    if not parts:
        return input.new_zeros((0, 5), dtype=torch.float32)
    return parts[0] if len(parts) == 1 else torch.cat(parts)
