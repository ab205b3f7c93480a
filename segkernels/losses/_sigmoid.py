"""The losses of the modes binary and multilabel from :func:`segkernels.ops.sigmoid_statistics`: O(N*C) work in torch."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from segkernels.losses._region import Region, region_loss
from segkernels.ops import sigmoid_statistics
from segkernels.ops._loss_arguments import REDUCTIONS, Weights, channel_weights, choice

#: Probabilities are kept this far from 0 and 1 before their logits are taken (smp's eps).
_EPS = 1e-7


def sigmoid_region_loss(
    input: torch.Tensor,
    target: torch.Tensor,
    region: Region,
    *,
    mode: str = "binary",
    from_logits: bool = True,
    ignore_index: int | None = None,
    class_weights: Weights | None = None,
    upsample: bool = False,
    align_corners: bool = False,
) -> torch.Tensor:
    """Dice, Jaccard or Tversky of sigmoid probabilities."""
    sums, pixel, _ = sigmoid_statistics(
        _logits(input, from_logits),
        target,
        ignore_index=ignore_index,
        mode=mode,
        min_intersection=region.style == "smp" and target.is_floating_point(),
        upsample=upsample,
        align_corners=align_corners,
    )
    weights = _weights(class_weights, sums)
    return _result(_region(region, sums, pixel, weights), input)


def sigmoid_pixel_loss(
    input: torch.Tensor,
    target: torch.Tensor,
    positive: Weights | None,
    negative: float,
    gamma: float,
    *,
    mode: str = "binary",
    from_logits: bool = True,
    ignore_index: int | None = None,
    class_weights: Weights | None = None,
    reduction: str = "mean",
    upsample: bool = False,
    align_corners: bool = False,
) -> torch.Tensor:
    """Cross entropy, balanced cross entropy or the focal loss, averaged over the valid pixels of all channels."""
    every = choice(reduction, "reduction", REDUCTIONS) == REDUCTIONS["none"]
    _, pixel, losses = sigmoid_statistics(
        _logits(input, from_logits),
        target,
        positive,
        negative,
        gamma,
        ignore_index,
        mode=mode,
        losses=every,
        upsample=upsample,
        align_corners=align_corners,
    )
    weights = _weights(class_weights, pixel)
    if every:
        weighted = losses if weights is None else losses * weights.to(losses.dtype).reshape(-1, 1, 1)
        return weighted.squeeze(1) if input.dim() == 3 else weighted
    return _result(_pixel_total(pixel, weights, reduction == "mean"), input)


def sigmoid_dice_bce_loss(
    input: torch.Tensor,
    target: torch.Tensor,
    dice_weight: float,
    bce_weight: float,
    region: Region,
    pos_weight: Weights | None,
    *,
    class_weights: Weights | None = None,
    ignore_index: int | None = None,
    **options: Any,
) -> torch.Tensor:
    """``dice_weight * Dice + bce_weight * BCE``; ``options`` are those of :func:`sigmoid_statistics`. Without a reduction: at
    every valid pixel its cross entropy plus the Dice loss of its group."""
    every = region.reduction == "none"
    soft = region.style == "smp" and target.is_floating_point()
    sums, pixel, losses = sigmoid_statistics(
        input, target, pos_weight, ignore_index=ignore_index, min_intersection=soft, losses=every, **options
    )
    weights = _weights(class_weights, sums)
    dice = _region(region, sums, pixel, weights)
    if every:
        # Without the background there is no Dice term of channel 0.
        dice = F.pad(dice, (sums.shape[1] - dice.shape[-1], 0)).reshape(-1, sums.shape[1], 1, 1)
        bce = losses if weights is None else losses * weights.reshape(-1, 1, 1)
    else:
        bce = _pixel_total(pixel, weights, region.reduction == "mean")
        dice = dice.sum()
    # A weight of 0 switches its term off, also where that is infinite.
    parts = [w * part for w, part in ((dice_weight, dice), (bce_weight, bce)) if w != 0]
    loss = _result(sum(parts, torch.zeros_like(bce)), input)
    if every and ignore_index is not None:
        loss = torch.where(target.reshape(loss.shape) == ignore_index, 0.0, loss)
    return loss.squeeze(1) if every and input.dim() == 3 else loss


def _logits(input: torch.Tensor, from_logits: bool) -> torch.Tensor:
    return input if from_logits else torch.logit(input, _EPS)


def _weights(class_weights: Weights | None, sums: torch.Tensor) -> torch.Tensor | None:
    return None if class_weights is None else channel_weights(class_weights, "class_weights", sums)


def _region(region: Region, sums: torch.Tensor, pixel: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    intersection, probability, target = sums.unbind(2)
    return region_loss(region, intersection, probability, target, pixel[..., 1], weights)


def _pixel_total(pixel: torch.Tensor, weights: torch.Tensor | None, mean: bool) -> torch.Tensor:
    losses, valid = pixel.unbind(2)
    total = (losses if weights is None else losses * weights).sum()
    return total / valid.sum().clamp_min(1) if mean else total


def _result(loss: torch.Tensor, input: torch.Tensor) -> torch.Tensor:
    """float32: a sum of half-precision losses overflows."""
    return loss if input.dtype == torch.float64 else loss.float()
