"""The Lovasz losses in plain PyTorch."""

from __future__ import annotations

import torch

from segkernels._layout import memory_format

HINGE, SOFTMAX, PROBABILITIES = range(3)


def _softmax(values: torch.Tensor) -> torch.Tensor:
    # Written out: torch's own depends on the number of threads in the last bit.
    exponentials = (values - values.amax(1, keepdim=True)).exp()
    return exponentials / exponentials.sum(1, keepdim=True)


def _jaccard_steps(positive: torch.Tensor) -> torch.Tensor:
    """How much the Jaccard loss grows with each pixel, in the order given; exact until the division."""
    positives = positive.sum()
    intersection = positives - positive.cumsum(0) + positive
    union = positives + (1 - positive).cumsum(0) - (1 - positive)
    one = torch.ones((), dtype=torch.float64, device=positive.device)
    above = torch.where(positive > 0, union + 1, intersection)
    return torch.where(union == 0, one, above / (union * (union + 1)).clamp_min(1))


def _flat_loss(error: torch.Tensor, positive: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss, and its derivative by what an error of a positive pixel falls with."""
    value, order = torch.sort(error, descending=True, stable=True)
    sign = 1 - 2 * positive[order]
    steps = torch.where(value <= 0, 0.0, _jaccard_steps(positive[order]))
    slopes = torch.zeros_like(error, dtype=torch.float64).index_put((order,), steps * sign)
    return (value.to(torch.float64) * steps).sum(), slopes


def _labels(input: torch.Tensor, target: torch.Tensor, errors: int, ignore_index: int | None) -> torch.Tensor:
    valid = torch.ones_like(target, dtype=torch.bool) if ignore_index is None else target != ignore_index
    allowed = " (or ignore_index)" if ignore_index is not None else ""
    labels = target[valid]
    if errors == HINGE:
        if bool(((labels != 0) & (labels != 1)).any()):
            raise RuntimeError(f"lovasz_loss: expected labels 0 and 1 in target{allowed}, found another")
    elif bool(((labels < 0) | (labels >= input.shape[1])).any()):
        classes = f"[0, {input.shape[1]})"
        raise RuntimeError(f"lovasz_loss: expected integer labels in {classes} in target{allowed}, found another")
    return valid


def lovasz_loss(
    input: torch.Tensor, target: torch.Tensor, errors: int, ignore_index: int | None, per_image: bool, all_classes: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    valid = _labels(input, target, errors, ignore_index)
    values = input.to(torch.float64 if input.dtype == torch.float64 else torch.float32)
    if errors == SOFTMAX:
        values = _softmax(values)
    slopes = torch.zeros(values.shape, dtype=torch.float64, device=input.device)
    losses = []
    for group in range(input.shape[0]) if per_image else (slice(None),):
        part = slice(group, group + 1) if isinstance(group, int) else group
        keep = valid[part]
        if errors == HINGE:
            positive = target[part][keep].to(torch.float64)
            error = 1 - values[part][keep] * (2 * positive.to(values.dtype) - 1)
            loss, slope = _flat_loss(error, positive)
            slopes[part] = slopes[part].masked_scatter(keep, slope)
            losses.append(loss)
            continue
        labels = target[part][keep].to(torch.int64)
        count = input.shape[1]
        classes = range(count) if all_classes and labels.numel() else labels.unique().tolist()
        total = slopes.new_zeros(())
        for c in classes:
            positive = (labels == c).to(torch.float64)
            error = (positive.to(values.dtype) - values[part, c][keep]).abs()
            loss, slope = _flat_loss(error, positive)
            total = total + loss / len(classes)
            slopes[part, c] = slopes[part, c].masked_scatter(keep, slope / len(classes))
        losses.append(total)
    loss = torch.stack(losses) if losses else slopes.new_zeros(0)
    return loss.to(values.dtype), slopes.to(values.dtype)


def lovasz_loss_backward(
    grad_output: torch.Tensor, input: torch.Tensor, slopes: torch.Tensor, errors: int, per_image: bool
) -> torch.Tensor:
    grad = slopes * grad_output.reshape(-1, 1, 1, 1)
    if errors == SOFTMAX:
        p = _softmax(input.to(slopes.dtype))
        # Without a slope there is no gradient, whatever an ignored pixel holds.
        grad = torch.where((slopes != 0).any(1, keepdim=True), p * (grad - (p * grad).sum(1, keepdim=True)), 0.0)
    return grad.to(input.dtype).contiguous(memory_format=memory_format(input))
