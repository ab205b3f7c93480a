"""Arithmetic of boxes: regression targets, clipping, matching with the ground truth, and sampling.

Boxes are corners ``(x1, y1, x2, y2)`` in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

#: Of the logarithm of a scale: a regressor that overshoots cannot overflow the exponential.
MAX_LOG_SCALE = math.log(1000.0 / 16)

BACKGROUND = -1
BETWEEN = -2


def full_precision(tensor: torch.Tensor) -> torch.Tensor:
    """float32 for half precision, which cannot hold the coordinates of an image's pixels."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def waits(tensor: torch.Tensor) -> bool:
    """Whether looking at a value costs the host a wait for the tensor's device."""
    return tensor.device.type != "cpu"


def constant(values: Sequence[float] | Sequence[Sequence[float]], like: torch.Tensor) -> torch.Tensor:
    """``like.new_tensor(values)`` without its wait for the device."""
    tensor = torch.tensor(values, dtype=like.dtype, device="cpu", pin_memory=like.is_cuda)
    return tensor.to(like.device, non_blocking=True)


def _centers(boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[..., 2] centres and [..., 2] sizes."""
    size = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + 0.5 * size, size


def encode(reference: torch.Tensor, boxes: torch.Tensor, weights: Sequence[float]) -> torch.Tensor:
    """[..., 4] shifts and logarithms of scales that take ``boxes`` to ``reference`` (R-CNN, Girshick et al. 2014)."""
    center, size = _centers(boxes)
    reference_center, reference_size = _centers(reference)
    shift = constant(weights[:2], boxes) * (reference_center - center) / size
    scale = constant(weights[2:], boxes) * torch.log(reference_size / size)
    return torch.cat([shift, scale], -1)


def decode(deltas: torch.Tensor, boxes: torch.Tensor, weights: Sequence[float]) -> torch.Tensor:
    """The boxes that :func:`encode` gives ``deltas`` for; the shapes broadcast."""
    center, size = _centers(boxes)
    center = deltas[..., :2] / constant(weights[:2], deltas) * size + center
    scale = (deltas[..., 2:] / constant(weights[2:], deltas)).clamp(max=MAX_LOG_SCALE)
    half = 0.5 * (scale.exp() * size)
    return torch.cat([center - half, center + half], -1)


def clip(boxes: torch.Tensor, limits: torch.Tensor) -> torch.Tensor:
    """Boxes cut off at the image's edges; ``limits`` is (width, height, width, height) and broadcasts."""
    return torch.minimum(boxes.clamp(min=0), limits)


def limits(sizes: Sequence[tuple[int, int]], like: torch.Tensor) -> torch.Tensor:
    """[B, 4] for :func:`clip`, of (height, width) of each image."""
    return constant([(width, height, width, height) for height, width in sizes], like)


def at_least(boxes: torch.Tensor, side: float) -> torch.Tensor:
    """Whether width and height are at least ``side``; False for NaN."""
    return (boxes[..., 2:] - boxes[..., :2] >= side).all(-1)


def match(iou: torch.Tensor, high: float, low: float, keep_best: bool = False) -> torch.Tensor:
    """Which object each box is to find.

    Args:
        iou (Tensor[M, N]): overlaps of M objects, at least one, with N boxes.
        high: an overlap of at least this is a match.
        low: a smaller overlap is background; one in between counts as neither.
        keep_best: every object also gets the boxes that overlap it most, ties included, however little. Such a box takes
            the object that it overlaps most itself.

    Returns:
        Tensor[N]: the object's number, BACKGROUND or BETWEEN.
    """
    best, object = iou.max(0)
    matches = torch.where(best >= high, object, torch.where(best < low, BACKGROUND, BETWEEN))
    if keep_best:
        matches = torch.where((iou == iou.amax(1, keepdim=True)).any(0), object, matches)
    return matches


def sample(labels: torch.Tensor, count: int, positive_fraction: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Draws at most ``count`` boxes, of which at most the given fraction are positive.

    Args:
        labels (Tensor[N]): at least 1 is positive, 0 negative; others are never drawn.

    Returns:
        Sorted indices of the positive and of the negative ones. They come from two calls of torch.randperm, positives first,
        as torchvision's do.
    """
    drawn = []
    wanted = int(count * positive_fraction)
    for candidates in (labels >= 1, labels == 0):
        indices = candidates.nonzero()[:, 0]
        indices = indices[torch.randperm(len(indices), device=labels.device)[:wanted]]
        drawn.append(indices.sort().values)
        wanted = count - len(indices)
    return drawn[0], drawn[1]


def first_of_each(
    order: torch.Tensor, chosen: torch.Tensor, group: torch.Tensor, groups: int, limit: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """For each group, the first ``limit`` of the ``chosen`` entries of ``order``, which indexes ``group``, in its order.

    Entries of other groups than 0 to ``groups - 1`` are left out. Sizes do not depend on values, so that the host need not
    wait for any.

    Returns:
        Tensor[groups, L]: entries of ``order``, L at most ``limit``; and Tensor[groups]: how many of each row are meant. What
        follows them in a row is arbitrary.
    """
    group = torch.where(chosen, group[order], groups)
    counts = (group == torch.arange(groups, device=group.device)[:, None]).sum(1)
    order = order[group.argsort(stable=True)]
    place = (counts.cumsum(0) - counts)[:, None] + torch.arange(min(limit, len(order)), device=group.device)
    return order[place.clamp(max=max(len(order) - 1, 0))], counts.clamp(max=limit)
