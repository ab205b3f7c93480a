"""Pasting masks into the image in plain PyTorch: two matrices of bilinear weights around each mask."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def _torchvision_weights(low: torch.Tensor, high: torch.Tensor, size: int, image_size: int) -> torch.Tensor:
    """The padded mask [size + 2] resized to the whole pixels from low to high."""
    start, stop = low.trunc()[:, None], high.trunc()[:, None] + 1
    pixel = torch.arange(image_size, dtype=low.dtype, device=low.device)
    scale = (size + 2) / (stop - start).clamp(min=1)
    source = ((pixel - start + 0.5) * scale - 0.5).clamp(0, size + 1)
    inside = (pixel >= start) & (pixel < stop)
    return _hat(source, inside, torch.arange(size + 2, dtype=low.dtype, device=low.device))


def _detectron2_weights(low: torch.Tensor, high: torch.Tensor, size: int, image_size: int) -> torch.Tensor:
    """grid_sample at the pixels' centres, in the padded mask [size + 2]."""
    pixel = torch.arange(image_size, dtype=low.dtype, device=low.device) + 0.5
    extent = (high - low)[:, None]
    grid = (pixel - low[:, None]) / extent * 2 - 1
    source = ((grid + 1) * size - 1) / 2
    inside = (source > -1) & (source < size) & (extent > 0) & extent.isfinite()
    return _hat(source, inside, torch.arange(-1, size + 1, dtype=low.dtype, device=low.device))


def _hat(source: torch.Tensor, inside: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Bilinear weights [N, pixels, places]; NaN outside marks pixels that are not pasted to."""
    weights = (1 - (source[..., None] - places).abs()).clamp(min=0)
    return torch.where(inside[..., None], weights, float("nan"))


def paste_masks(masks: torch.Tensor, boxes: torch.Tensor, image_size: list[int], threshold: float, style: int) -> torch.Tensor:
    dtype = torch.float64 if torch.float64 in (masks.dtype, boxes.dtype) else torch.float32
    masks, boxes = masks.to(dtype), boxes.to(dtype)
    height, width = masks.shape[1:]
    if style == 0:
        half = (boxes[:, 2:] - boxes[:, :2]) * 0.5 * ((width + 2) / width)
        center = (boxes[:, 2:] + boxes[:, :2]) * 0.5
        boxes = torch.cat([center - half, center + half], 1)
    weights = _torchvision_weights if style == 0 else _detectron2_weights
    finite = boxes.isfinite().all(1, keepdim=True)
    x1, y1, x2, y2 = torch.where(finite, boxes, 0.0).unbind(1)
    rows = weights(y1, y2, height, image_size[0])
    columns = weights(x1, x2, width, image_size[1])
    # What is not pasted to is NaN, which is below any threshold.
    values = rows @ F.pad(masks, (1, 1, 1, 1)) @ columns.mT
    return (values >= threshold) & finite[..., None]
