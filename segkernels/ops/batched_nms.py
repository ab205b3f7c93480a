"""Greedy non-maximum suppression of boxes within each class."""

from __future__ import annotations

import torch

from segkernels._register import register
from segkernels.ops._arguments import check_same_device, check_scored_boxes


def _fake(boxes, scores, idxs, iou_threshold):
    return boxes.new_empty(boxes.shape[0], dtype=torch.int64), boxes.new_empty(boxes.shape[0], dtype=torch.bool)


suppress = register(
    "batched_nms",
    "(Tensor boxes, Tensor scores, Tensor idxs, float iou_threshold) -> (Tensor order, Tensor kept)",
    fake=_fake,
)


def batched_nms(boxes: torch.Tensor, scores: torch.Tensor, idxs: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """:func:`nms` of each class on its own, in one call.

    Replaces :func:`torchvision.ops.batched_nms`. Classes are compared, and boxes not shifted apart by class, which costs
    torchvision digits on small inputs.

    Args:
        boxes, scores, iou_threshold: as for :func:`nms`.
        idxs (Tensor[N]): class of each box, of any integer dtype; any value, negative ones too.

    Returns:
        Tensor[K]: int64 indices of the kept boxes of all classes by decreasing score; of equal scores the lower index comes
        first. Deterministic; it has no gradient. Only its size takes a host sync: ``torch.ops.segkernels.batched_nms`` has all
        indices by decreasing score, int64 [N], and which of them are kept, bool [N].

    Raises:
        ValueError, TypeError: for a wrong shape, dtype or device.
    """
    check_scored_boxes(boxes, scores)
    if idxs.is_floating_point() or idxs.is_complex():
        raise TypeError(f"idxs: expected an integer dtype, got {idxs.dtype}")
    if idxs.shape != scores.shape:
        raise ValueError(f"idxs: expected one for each of {boxes.shape[0]} boxes, got shape {list(idxs.shape)}")
    check_same_device(boxes, idxs, "boxes", "idxs")
    order, kept = suppress(boxes, scores, idxs if idxs.dtype == torch.int64 else idxs.long(), iou_threshold)
    return order[kept]
