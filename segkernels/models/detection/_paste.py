"""Pasting masks of probabilities into their image, without a threshold."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F


def _weights(low: torch.Tensor, high: torch.Tensor, side: int, image_side: int) -> torch.Tensor:
    """[N, image_side, side]: bilinear weights of ``side`` values resized to the pixels from ``low`` to ``high``."""
    start, stop = low.trunc()[:, None], high.trunc()[:, None] + 1
    pixel = torch.arange(image_side, dtype=low.dtype, device=low.device)
    source = ((pixel - start + 0.5) * (side / (stop - start).clamp(min=1)) - 0.5).clamp(0, side - 1)
    weights = (1 - (source[..., None] - torch.arange(side, dtype=low.dtype, device=low.device)).abs()).clamp_(min=0)
    return weights * ((pixel >= start) & (pixel < stop))[..., None]


def paste_soft_masks(masks: torch.Tensor, boxes: torch.Tensor, image_size: Sequence[int]) -> torch.Tensor:
    """Resizes each mask to its box in the image, as torchvision does; :func:`segkernels.ops.paste_masks` without threshold.

    Resizing is separable: each image is a product of two matrices of weights with the mask between, in one batch for all
    masks, where a loop over boxes would need their sizes on the host.

    Args:
        masks (Tensor[N, 1, h, w]): probabilities, float32 or float64.
        boxes (Tensor[N, 4]): corners ``(x1, y1, x2, y2)`` in pixels of the image.
        image_size: ``(H, W)``.

    Returns:
        Tensor[N, H, W]: of the masks' dtype; zero outside the boxes.
    """
    padded = F.pad(masks[:, 0], (1, 1, 1, 1))
    height, width = padded.shape[1:]
    half = (boxes[:, 2:] - boxes[:, :2]) * 0.5 * (width / (width - 2))
    center = (boxes[:, 2:] + boxes[:, :2]) * 0.5
    x1, y1 = (center - half).unbind(1)
    x2, y2 = (center + half).unbind(1)
    with torch.autocast(masks.device.type, enabled=False):  # half precision cannot hold the weights
        return _weights(y1, y2, height, image_size[0]) @ padded @ _weights(x1, x2, width, image_size[1]).mT
