"""Dice + binary cross entropy in plain PyTorch."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from segkernels._dice import MEAN, NONE, SMP, dice_groups
from segkernels._layout import memory_format

SPATIAL = (2, 3)


class Pixels(NamedTuple):
    """What the loss sees of its inputs, in the type that sums are kept in; ignored pixels hold neutral values."""

    x: torch.Tensor
    t: torch.Tensor
    valid: torch.Tensor  # 1 or 0
    p: torch.Tensor
    q: torch.Tensor  # 1 - p


def _pixels(input: torch.Tensor, target: torch.Tensor, ignore_index: int | None, from_logits: bool) -> Pixels:
    x = input.to(torch.float64 if input.dtype == torch.float64 else torch.float32)
    valid = torch.ones_like(target, dtype=torch.bool) if ignore_index is None else target != ignore_index
    labels = target.masked_fill(~valid, 0)
    if not target.is_floating_point() and bool(((labels != 0) & (labels != 1)).any()):
        allowed = " (or ignore_index)" if ignore_index is not None else ""
        raise RuntimeError(f"dice_bce_loss: expected labels 0 and 1 in target{allowed}, found another")
    x = torch.where(valid, x, 0.0)
    if not from_logits and bool(((x < 0) | (x > 1)).any()):
        raise RuntimeError("dice_bce_loss: expected probabilities in [0, 1] in input (from_logits=False)")
    p, q = (torch.sigmoid(x), torch.sigmoid(-x)) if from_logits else (x, 1 - x)
    return Pixels(x, labels.to(x.dtype), valid.to(x.dtype), p, q)


def _channel(weights: torch.Tensor | None, pixels: Pixels) -> torch.Tensor:
    """[C or 1, 1, 1]"""
    return pixels.x.new_ones(()) if weights is None else weights.to(pixels.x.dtype).reshape(-1, 1, 1)


def _intersection(pixels: Pixels, target: torch.Tensor, style: int) -> torch.Tensor:
    if style == SMP and target.is_floating_point():
        return (pixels.p + pixels.t - (pixels.p - pixels.t).abs()) / 2
    return pixels.p * pixels.t


def _bce(pixels: Pixels, pos_weight: torch.Tensor | None, from_logits: bool) -> torch.Tensor:
    weighted = _channel(pos_weight, pixels) * pixels.t
    if from_logits:
        return weighted * F.softplus(-pixels.x, threshold=100) + (1 - pixels.t) * F.softplus(pixels.x, threshold=100)
    logs = [value.log().clamp_min(-100) for value in (pixels.p, pixels.q)]
    return -weighted * logs[0] - (1 - pixels.t) * logs[1]


def _plane_sums(values: torch.Tensor) -> torch.Tensor:
    return values.sum(SPATIAL, keepdim=True)


def dice_bce_loss(
    input: torch.Tensor,
    target: torch.Tensor,
    pos_weight: torch.Tensor | None,
    class_weights: torch.Tensor | None,
    dice_weight: float,
    bce_weight: float,
    smooth: float,
    ignore_index: int | None,
    reduction: int,
    style: int,
    batch_dice: bool,
    include_background: bool,
    log_loss: bool,
    from_logits: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    pixels = _pixels(input, target, ignore_index, from_logits)
    bce = _bce(pixels, pos_weight, from_logits) * pixels.valid
    parts = [_intersection(pixels, target, style), pixels.p, pixels.t, bce, torch.ones_like(bce)]
    sums = [_plane_sums(part * pixels.valid) for part in parts]
    statistics = torch.cat(sums, 2).squeeze(3).to(torch.float64)
    intersection, probability, positive, _, valid = sums
    groups = dice_groups(
        intersection, probability, positive, valid, class_weights, smooth, reduction, style, batch_dice,
        include_background, log_loss,
    )  # fmt: skip
    loss = torch.zeros_like(bce)
    if bce_weight != 0:
        loss = loss + bce_weight * _channel(class_weights, pixels) * bce
    dice = groups.weight * groups.loss
    if reduction == NONE:
        if dice_weight != 0:
            loss = loss + dice_weight * dice * pixels.valid
        layout = memory_format(input)
        return loss.contiguous(memory_format=layout), statistics
    loss = loss.sum()
    if reduction == MEAN:
        loss = loss / valid.sum().clamp_min(1)
    if dice_weight != 0:
        loss = loss + dice_weight * dice.sum()
    return loss, statistics


def dice_bce_loss_backward(
    grad_output: torch.Tensor,
    input: torch.Tensor,
    target: torch.Tensor,
    statistics: torch.Tensor,
    pos_weight: torch.Tensor | None,
    class_weights: torch.Tensor | None,
    dice_weight: float,
    bce_weight: float,
    smooth: float,
    ignore_index: int | None,
    reduction: int,
    style: int,
    batch_dice: bool,
    include_background: bool,
    log_loss: bool,
    from_logits: bool,
) -> torch.Tensor:
    """Sums are taken from the input again, not from `statistics`, so that they are differentiated too."""
    pixels = _pixels(input, target, ignore_index, from_logits)
    x, t, valid, p, q = pixels
    grad_output = grad_output.to(x.dtype)
    intersection, probability, positive, count = (
        _plane_sums(part * valid) for part in (_intersection(pixels, target, style), p, t, torch.ones_like(p))
    )
    groups = dice_groups(
        intersection, probability, positive, count, class_weights, smooth, reduction, style, batch_dice,
        include_background, log_loss,
    )  # fmt: skip
    dp = p * q if from_logits else torch.ones_like(p)
    weighted = _channel(pos_weight, pixels) * t
    grad = torch.zeros_like(x)
    if bce_weight != 0:
        dbce = (1 - t) * p - weighted * q
        if not from_logits:
            dbce = dbce / (p * q).clamp_min(1e-12)
        scale = count.sum().clamp_min(1) if reduction == MEAN else 1.0
        grad = grad + grad_output * bce_weight / scale * _channel(class_weights, pixels) * dbce
    if dice_weight != 0:
        upstream = grad_output
        if reduction == NONE:
            upstream = _plane_sums(grad_output * valid)
            if batch_dice:
                upstream = upstream.sum(0, keepdim=True)
        soft = style == SMP and target.is_floating_point()
        inside = (1 - torch.sign(p - t)) / 2 if soft else t
        slope = inside * groups.d_intersection + groups.d_cardinality
        grad = grad + upstream * dice_weight * groups.weight * slope * dp
    layout = memory_format(input)
    return torch.where(valid > 0, grad, 0.0).to(input.dtype).contiguous(memory_format=layout)
