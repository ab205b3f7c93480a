"""Intersection over union of boxes in plain PyTorch."""

from __future__ import annotations

import torch


def upcast(boxes: torch.Tensor) -> torch.Tensor:
    """Coordinates are never computed in half precision."""
    return boxes if boxes.dtype in (torch.float32, torch.float64) else boxes.float()


def area(boxes: torch.Tensor) -> torch.Tensor:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def _overlap(boxes1: torch.Tensor, boxes2: torch.Tensor) -> torch.Tensor:
    """Signed width and height of the intersection, [..., N, M, 2]."""
    low = torch.max(boxes1[..., :, None, :2], boxes2[..., None, :, :2])
    return torch.min(boxes1[..., :, None, 2:], boxes2[..., None, :, 2:]) - low


def box_iou(boxes1: torch.Tensor, boxes2: torch.Tensor) -> torch.Tensor:
    boxes1, boxes2 = upcast(boxes1), upcast(boxes2)
    intersection = _overlap(boxes1, boxes2).clamp(min=0).prod(-1)
    return intersection / (area(boxes1)[..., :, None] + area(boxes2)[..., None, :] - intersection)


def _share(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Share of the derivative of max(a, b) that goes to a: half each where they are equal, as in torch."""
    return torch.where(a == b, 0.5, (a > b).to(a.dtype))


def box_iou_backward(
    grad_output: torch.Tensor, boxes1: torch.Tensor, boxes2: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    dtype = boxes1.dtype
    boxes1, boxes2 = upcast(boxes1), upcast(boxes2)
    grad = grad_output.to(boxes1.dtype)
    signed = _overlap(boxes1, boxes2)
    size = signed.clamp(min=0)
    intersection = size[..., 0] * size[..., 1]
    union = area(boxes1)[..., :, None] + area(boxes2)[..., None, :] - intersection
    to_intersection = grad * (union + intersection) / union**2
    to_area = -grad * intersection / union**2
    to_size = to_intersection[..., None] * size.flip(-1) * (signed >= 0)
    grads = []
    pairs = ((boxes1[..., :, None, :], boxes2[..., None, :, :], -2), (boxes2[..., None, :, :], boxes1[..., :, None, :], -3))
    for own, other, summed in pairs:
        through_area = to_area[..., None] * (own[..., 2:] - own[..., :2]).flip(-1)
        low = -to_size * _share(own[..., :2], other[..., :2]) - through_area
        high = to_size * _share(other[..., 2:], own[..., 2:]) + through_area
        grads.append(torch.cat([low, high], -1).sum(summed).to(dtype))
    return grads[0], grads[1]
