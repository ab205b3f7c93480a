"""Greedy non-maximum suppression of boxes."""

from __future__ import annotations

import torch

from segkernels._register import register
from segkernels.ops._arguments import check_scored_boxes


def _fake(boxes, scores, iou_threshold):
    return boxes.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)


_op = register("nms", "(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor", fake=_fake)


def nms(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """Keeps the box of the highest score, drops what overlaps it too much, and goes on with the next.

    Replaces :func:`torchvision.ops.nms`, with its result index for index.

    Args:
        boxes (Tensor[N, 4]): corners ``(x1, y1, x2, y2)``; float32, float64, float16 or bfloat16. Overlaps are computed in
            float32, or float64 for float64.
        scores (Tensor[N]): floating-point. Of equal scores the lower index comes first; NaN comes before all numbers.
        iou_threshold: a box is dropped when its intersection over union with a kept box is greater; an equal one stays.

    Returns:
        Tensor[K]: int64 indices of the kept boxes by decreasing score. A box with NaN or of no area is never dropped for
        another, and drops none. Deterministic; it has no gradient.

    Raises:
        ValueError, TypeError: for a wrong shape, dtype or device.
    """
    check_scored_boxes(boxes, scores)
    return _op(boxes, scores, iou_threshold)
