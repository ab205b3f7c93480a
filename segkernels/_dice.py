"""The Dice term from the sums of every plane, in the conventions of the lecture, segmentation-models-pytorch and MONAI: O(N*C)
work in torch; csrc/common/dice.h says the same."""

from __future__ import annotations

from typing import NamedTuple

import torch

#: The numbers that dispatcher ops take for names.
LECTURE, SMP, MONAI = range(3)
NONE, MEAN, SUM = range(3)
#: A denominator or a score below it counts as it (smp's eps).
EPS = 1e-7


class Groups(NamedTuple):
    """The Dice term of every plane's group, [N or 1, C, 1, 1], and the derivatives of its loss."""

    loss: torch.Tensor
    weight: torch.Tensor
    d_intersection: torch.Tensor
    d_cardinality: torch.Tensor


def dice_groups(
    intersection: torch.Tensor,
    probability: torch.Tensor,
    positive: torch.Tensor,
    valid: torch.Tensor,
    class_weights: torch.Tensor | None,
    smooth: float,
    reduction: int,
    style: int,
    batch_dice: bool,
    include_background: bool,
    log_loss: bool,
) -> Groups:
    """From the sums of every plane, [N, C, 1, 1]."""
    if batch_dice:
        pooled = (t.sum(0, keepdim=True) for t in (intersection, probability, positive, valid))
        intersection, probability, positive, valid = pooled
    n, c = valid.shape[:2]
    if style == SMP:
        smooth = 2 * smooth
    total = probability + positive + smooth
    denominator = total.clamp_min(2 * EPS)
    score = (2 * intersection + smooth) / denominator
    clamped = score.clamp_min(EPS)
    loss = -clamped.log() if log_loss else 1 - score
    d_score = torch.where(score < EPS, 0.0, -1 / clamped) if log_loss else -torch.ones_like(score)
    counted = (valid > 0).to(score.dtype)
    if style == SMP:
        counted = counted * ~(positive <= 0)

    weight = score.new_ones(c) if class_weights is None else class_weights.to(score.dtype).expand(c)
    if c == 1 and style == MONAI:
        weight = torch.ones_like(weight)
    used = torch.ones_like(weight)
    if c > 1 and not include_background:
        used[0] = 0
    weight = weight * used
    if reduction == MEAN:
        divisor = n * (used if style == MONAI else weight).sum()
        weight = torch.where(divisor == 0, 0.0, weight / divisor)
    return Groups(
        loss * counted,
        weight.reshape(1, -1, 1, 1).expand(n, -1, -1, -1),
        counted * d_score * 2 / denominator,
        counted * torch.where(total < 2 * EPS, 0.0, -d_score * score / denominator),
    )
