"""Dice, Jaccard and Tversky from the sums of each class: O(N*C) work in plain, differentiable PyTorch.

All three are one score, ``(I + s) / (I + alpha * (P - I) + beta * (T - I) + s)`` (Salehi et al. 2017): alpha = beta = 1/2 is
Dice, 1 is Jaccard.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

#: A denominator or a score below it counts as it (smp's eps).
EPS = 1e-7


@dataclass(frozen=True)
class Region:
    """What a region loss is, apart from its inputs."""

    alpha: float = 0.5
    beta: float = 0.5
    gamma: float = 1.0
    smooth: float = 1.0
    style: str = "lecture"
    reduction: str = "mean"
    batch_dice: bool | None = None
    include_background: bool = True
    log_loss: bool = False

    @staticmethod
    def dice(smooth: float = 1.0, style: str = "lecture", *rest: Any, **named: Any) -> Region:
        # The lecture and MONAI add `smooth` to 2 I and P + T, smp to their halves.
        return Region(0.5, 0.5, 1.0, smooth if style == "smp" else smooth / 2, style, *rest, **named)

    @staticmethod
    def jaccard(smooth: float = 1.0, style: str = "lecture", *rest: Any, **named: Any) -> Region:
        # MONAI adds it to 2 I and 2 U.
        return Region(1.0, 1.0, 1.0, smooth / 2 if style == "monai" else smooth, style, *rest, **named)


def region_loss(
    region: Region,
    intersection: torch.Tensor,
    probability: torch.Tensor,
    target: torch.Tensor,
    valid: torch.Tensor,
    class_weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """The loss from sums over the valid pixels of every sample and class.

    Args:
        intersection, probability, target (Tensor[N, C]): sums of p * t (or min(p, t)), p and t.
        valid (Tensor[N, C] or Tensor[N, 1]): number of valid pixels.
        class_weights (Tensor[C] or Tensor[1]): a weighted mean in the styles lecture and smp, a factor before the mean in
            monai.

    Returns:
        Tensor: scalar; for ``reduction="none"`` the weighted loss of every group, [C] when pooled over the batch and [N, C]
        otherwise, without class 0 for ``include_background=False``.
    """
    pooled = region.style != "monai" if region.batch_dice is None else region.batch_dice
    classes = intersection.shape[1]
    sums = [intersection, probability, target, valid.expand_as(intersection)]
    weights = None if class_weights is None else class_weights.to(intersection.dtype).expand(classes)
    if classes == 1 and region.style == "monai":
        weights = None
    if classes > 1 and not region.include_background:
        sums = [t[:, 1:] for t in sums]
        weights = None if weights is None else weights[1:]
    if pooled:
        sums = [t.sum(0) for t in sums]
    intersection, probability, target, valid = sums

    missed, wrong = target - intersection, probability - intersection
    denominator = intersection + region.alpha * wrong + region.beta * missed + region.smooth
    score = (intersection + region.smooth) / denominator.clamp_min(EPS)
    loss = -score.clamp_min(EPS).log() if region.log_loss else 1 - score
    counted = valid > 0
    if region.style == "smp":
        counted = counted & ~(target <= 0)  # an absent class contributes nothing
    loss = loss * counted
    if region.style != "smp":
        loss = _power(loss, region.gamma)
    if weights is not None:
        loss = loss * weights
    if region.reduction == "none":
        return loss if region.style != "smp" else _power(loss, region.gamma)
    total = loss.sum()
    if region.reduction == "mean":
        if weights is None or region.style == "monai":
            total = total / max(loss.numel(), 1)
        else:
            divisor = weights.sum() * (loss.numel() / max(weights.numel(), 1))
            total = torch.where(divisor == 0, 0.0, total / torch.where(divisor == 0, 1.0, divisor))
    # smp raises the aggregated loss to gamma, Abraham and Khan (2018) that of each class.
    return _power(total, region.gamma) if region.style == "smp" else total


def _power(loss: torch.Tensor, gamma: float) -> torch.Tensor:
    if gamma == 1:
        return loss
    # The slope at 0 is infinite for gamma below 1, and there is nothing left to learn.
    return torch.where(loss <= 0, 0.0, torch.where(loss <= 0, 1.0, loss) ** gamma)
