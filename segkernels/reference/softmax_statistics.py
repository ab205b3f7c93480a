"""Sums over pixels of softmax probabilities and of the cross entropy, in plain PyTorch."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from segkernels._layout import memory_format


class Pixels(NamedTuple):
    """What the losses see of their inputs; ignored pixels hold neutral values."""

    logs: torch.Tensor  # [N, C, H, W] log probabilities
    one_hot: torch.Tensor  # [N, C, H, W], 0 where ignored
    valid: torch.Tensor  # [N, 1, H, W]
    weights: torch.Tensor  # [1, C, 1, 1]
    weight: torch.Tensor  # [N, 1, H, W] of the label


def _pixels(
    input: torch.Tensor,
    target: torch.Tensor,
    class_weights: torch.Tensor | None,
    ignore_index: int | None,
    align_corners: bool,
) -> Pixels:
    x = input.to(torch.float64 if input.dtype == torch.float64 else torch.float32)
    classes, size = x.shape[1], target.shape[1:]
    if x.shape[2:] != size:
        x = F.interpolate(x, size=size, mode="bilinear", align_corners=align_corners)
    labels = target.to(torch.int64).unsqueeze(1)
    valid = torch.ones_like(labels, dtype=torch.bool) if ignore_index is None else labels != ignore_index
    labels = labels.masked_fill(~valid, 0)
    if bool(((labels < 0) | (labels >= classes)).any()):
        allowed = " (or ignore_index)" if ignore_index is not None else ""
        raise RuntimeError(f"softmax_statistics: expected labels in [0, {classes}) in target{allowed}, found another")
    logs = F.log_softmax(torch.where(valid, x, 0.0), 1)
    one_hot = torch.zeros_like(logs).scatter_(1, labels, 1.0) * valid
    weights = x.new_ones(1) if class_weights is None else class_weights.to(x.dtype)
    weights = weights.expand(classes).reshape(1, -1, 1, 1)
    return Pixels(logs, one_hot, valid.to(x.dtype), weights, (weights * one_hot).sum(1, keepdim=True))


def softmax_statistics(
    input: torch.Tensor,
    target: torch.Tensor,
    class_weights: torch.Tensor | None,
    ignore_index: int | None,
    label_smoothing: float,
    gamma: float,
    regions: bool,
    losses: bool,
    align_corners: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    logs, one_hot, valid, weights, weight = _pixels(input, target, class_weights, ignore_index, align_corners)
    p = logs.exp() * valid
    cross_entropy = -(logs * one_hot).sum(1, keepdim=True)
    loss = (1 - label_smoothing) * weight * cross_entropy
    if gamma != 0:
        loss = loss * (1 - (p * one_hot).sum(1, keepdim=True)).clamp_min(0) ** gamma
    if label_smoothing != 0:
        loss = loss - label_smoothing / weights.numel() * (weights * logs).sum(1, keepdim=True) * valid
    pixel = torch.stack([value.sum((1, 2, 3)) for value in (loss, weight, valid)], 1).to(torch.float64)
    region = pixel.new_empty((p.shape[0], 0, 3))
    if regions:
        region = torch.stack([value.sum((2, 3)) for value in (p * one_hot, p, one_hot)], 2).to(torch.float64)
    return region, pixel, loss.squeeze(1) if losses else loss.new_empty((p.shape[0], 0, 0))


def softmax_statistics_backward(
    grad_region: torch.Tensor,
    grad_pixel: torch.Tensor,
    grad_losses: torch.Tensor,
    input: torch.Tensor,
    target: torch.Tensor,
    class_weights: torch.Tensor | None,
    ignore_index: int | None,
    label_smoothing: float,
    gamma: float,
    regions: bool,
    losses: bool,
    align_corners: bool,
) -> torch.Tensor:
    logs, one_hot, valid, weights, weight = _pixels(input, target, class_weights, ignore_index, align_corners)
    p = logs.exp() * valid
    upstream = grad_pixel[:, 0].to(p.dtype).reshape(-1, 1, 1, 1) * valid
    if losses:
        upstream = torch.where(valid > 0, upstream + grad_losses.to(p.dtype).unsqueeze(1), 0.0)
    slope = (1 - label_smoothing) * weight * upstream  # of the cross entropy
    if gamma != 0:
        p_target = (p * one_hot).sum(1, keepdim=True)
        q = (1 - p_target).clamp_min(0)
        cross_entropy = -(logs * one_hot).sum(1, keepdim=True)
        safe = torch.where(q > 0, q, 1.0)
        slope = slope * torch.where(q > 0, safe**gamma + gamma * cross_entropy * p_target * safe ** (gamma - 1), 0.0)
    grad = slope * (p - one_hot)
    if label_smoothing != 0:
        grad = grad + label_smoothing / weights.numel() * upstream * (weights.sum() * p - weights * valid)
    if regions:
        d_intersection, d_probability = (grad_region[:, :, k, None, None].to(p.dtype) for k in (0, 1))
        dp = d_probability + d_intersection * one_hot
        grad = grad + p * (dp - (p * dp).sum(1, keepdim=True))
    if input.shape[2:] != grad.shape[2:]:
        grad = torch.ops.aten.upsample_bilinear2d_backward(grad, grad.shape[2:], input.shape, align_corners, None, None)
    return grad.to(input.dtype).contiguous(memory_format=memory_format(input))
