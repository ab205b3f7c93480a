"""Non-maximum suppression in plain PyTorch."""

from __future__ import annotations

import torch

from segkernels.reference.box_iou import box_iou


def suppress(overlap: torch.Tensor, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions by decreasing score, and which survive; ``overlap`` [N, N] says which pairs exclude each other."""
    order = scores.sort(descending=True, stable=True).indices
    overlap = overlap[order][:, order]
    alive = torch.ones_like(order, dtype=torch.bool)
    for i in range(len(order)):
        if alive[i]:
            alive[i + 1 :] &= ~overlap[i, i + 1 :]
    return order, alive


def nms(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    order, alive = suppress(box_iou(boxes, boxes).double() > iou_threshold, scores)
    return order[alive]
