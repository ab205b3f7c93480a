"""Pasting the masks of a detector into its image."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from segkernels._register import register
from segkernels.ops._paste_arguments import parse


def _fake(masks, boxes, image_size, threshold, style):
    return masks.new_empty((masks.shape[0], image_size[0], image_size[1]), dtype=torch.bool)


_op = register(
    "paste_masks",
    "(Tensor masks, Tensor boxes, SymInt[2] image_size, float threshold, int style) -> Tensor",
    fake=_fake,
)


def paste_masks(
    masks: torch.Tensor,
    boxes: torch.Tensor,
    image_size: Sequence[int],
    threshold: float = 0.5,
    style: str = "torchvision",
) -> torch.Tensor:
    """Resizes each mask to its box in the image, and thresholds it.

    Replaces torchvision's ``paste_masks_in_image(...) >= threshold`` and detectron2's ``paste_masks_in_image``; only the
    pixels of each box are computed, and no floating-point image is written.

    Args:
        masks (Tensor[N, h, w] or Tensor[N, 1, h, w]): probabilities; float32, float64, float16 or bfloat16.
        boxes (Tensor[N, 4]): corners ``(x1, y1, x2, y2)`` in pixels of the image; a floating-point dtype. Both are computed
            in float32, or in float64 where one of them is float64.
        image_size: ``(H, W)``.
        threshold: a pixel of at least this value is set.
        style: ``'torchvision'`` pads the mask by a pixel, truncates the enlarged box to whole pixels and resizes bilinearly
            to it. ``'detectron2'`` samples the mask bilinearly at the centres of the image's pixels, with zeros around it;
            more accurate.

    Returns:
        Tensor[N, H, W]: bool. Nothing is set outside the box, whatever the threshold, nor for a box outside the image, a
        reversed one, or one with NaN or infinity. Deterministic; it has no gradient.

    Raises:
        ValueError, TypeError: for a wrong shape, dtype, device or style.
    """
    return _op(*parse(masks, boxes, image_size, threshold, style))
