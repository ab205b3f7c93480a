"""Non-maximum suppression within each class, in plain PyTorch."""

from __future__ import annotations

import torch

from segkernels.reference.box_iou import box_iou
from segkernels.reference.nms import suppress


def batched_nms(
    boxes: torch.Tensor, scores: torch.Tensor, idxs: torch.Tensor, iou_threshold: float
) -> tuple[torch.Tensor, torch.Tensor]:
    overlap = box_iou(boxes, boxes).double() > iou_threshold
    return suppress(overlap & (idxs[:, None] == idxs), scores)
