"""Sums over sigmoid probabilities in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from segkernels._layout import memory_format


def _resizes(x: torch.Tensor, target: torch.Tensor) -> bool:
    return x.shape[2:] != target.shape[2:] and 0 not in target.shape


def _pixels(
    input: torch.Tensor, target: torch.Tensor, ignore_index: int | None, align_corners: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits and target at the target's size, and 1 where a pixel is valid; ignored pixels hold zeros."""
    x = input.to(torch.float64 if input.dtype == torch.float64 else torch.float32)
    valid = torch.ones_like(target, dtype=torch.bool) if ignore_index is None else target != ignore_index
    labels = target.masked_fill(~valid, 0)
    if not target.is_floating_point() and bool(((labels != 0) & (labels != 1)).any()):
        allowed = " (or ignore_index)" if ignore_index is not None else ""
        raise RuntimeError(f"sigmoid_statistics: expected labels 0 and 1 in target{allowed}, found another")
    if _resizes(x, target):
        x = F.interpolate(x, target.shape[2:], mode="bilinear", align_corners=align_corners)
    return torch.where(valid, x, 0.0), labels.to(x.dtype), valid.to(x.dtype)


def _cross_entropy(x: torch.Tensor, t: torch.Tensor, positive: torch.Tensor, negative: float) -> torch.Tensor:
    return positive * t * F.softplus(-x, threshold=100) + negative * (1 - t) * F.softplus(x, threshold=100)


def _weight(positive: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor:
    return x.new_ones(()) if positive is None else positive.to(x.dtype).reshape(-1, 1, 1)


def _power(error: torch.Tensor, gamma: float) -> torch.Tensor:
    if gamma == 0:
        return torch.ones_like(error)
    # Where the error is 0 so is the loss, and the derivative of a power below 1 is infinite.
    return torch.where(error == 0, 0.0, torch.where(error == 0, 1.0, error) ** gamma)


def sigmoid_statistics(
    input: torch.Tensor,
    target: torch.Tensor,
    positive: torch.Tensor | None,
    negative: float,
    gamma: float,
    ignore_index: int | None,
    min_intersection: bool,
    losses: bool,
    align_corners: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x, t, valid = _pixels(input, target, ignore_index, align_corners)
    p, q = torch.sigmoid(x), torch.sigmoid(-x)
    every = _power(p * (1 - t) + q * t, gamma) * _cross_entropy(x, t, _weight(positive, x), negative) * valid
    intersection = (p + t - (p - t).abs()) / 2 if min_intersection else p * t
    region = torch.stack([(part * valid).to(torch.float64).sum((2, 3)) for part in (intersection, p, t)], 2)
    pixel = torch.stack([part.to(torch.float64).sum((2, 3)) for part in (every, valid)], 2)
    return region, pixel, every.contiguous() if losses else every.new_empty((*every.shape[:2], 0, 0))


def sigmoid_statistics_backward(
    grad_region: torch.Tensor,
    grad_pixel: torch.Tensor,
    grad_losses: torch.Tensor,
    input: torch.Tensor,
    target: torch.Tensor,
    positive: torch.Tensor | None,
    negative: float,
    gamma: float,
    ignore_index: int | None,
    min_intersection: bool,
    losses: bool,
    align_corners: bool,
) -> torch.Tensor:
    x, t, valid = _pixels(input, target, ignore_index, align_corners)
    p, q, weight = torch.sigmoid(x), torch.sigmoid(-x), _weight(positive, x)
    by_intersection, by_probability = (g.to(x.dtype)[..., None, None] for g in grad_region.unbind(2)[:2])
    by_loss = grad_pixel[..., 0].to(x.dtype)[..., None, None]
    if losses:
        by_loss = by_loss + grad_losses
    slope = (1 - t) * p * negative - t * q * weight
    if gamma:
        error = p * (1 - t) + q * t
        # d error / dx over the error; both vanish together.
        change = (1 - 2 * t) * p * q / error.clamp_min(torch.finfo(x.dtype).tiny)
        slope = _power(error, gamma) * (slope + gamma * change * _cross_entropy(x, t, weight, negative))
    inside = (1 - torch.sign(p - t)) / 2 if min_intersection else t
    grad = slope * by_loss + p * q * (inside * by_intersection + by_probability)
    grad = torch.where(valid > 0, grad, 0.0)
    if _resizes(input, target):
        grad = torch.ops.aten.upsample_bilinear2d_backward(
            grad.contiguous(), target.shape[2:], input.shape, align_corners, None, None
        )
    return grad.to(input.dtype).contiguous(memory_format=memory_format(input))
