"""What every loss on sigmoid probabilities needs of its pixels, in one pass forward and one backward."""

from __future__ import annotations

from typing import Any

import torch

from segkernels._layout import memory_format
from segkernels._register import double_backward_through, register
from segkernels.ops._arguments import check_floating, check_same_device
from segkernels.ops._loss_arguments import Weights, channel_weights, planes
from segkernels.reference import sigmoid_statistics as reference

_OPTIONS = (
    "Tensor? positive, float negative, float gamma, int? ignore_index, bool min_intersection, bool losses, bool align_corners"
)


def _fake(input, target, positive, negative, gamma, ignore_index, min_intersection, losses, align_corners):
    n, c = input.shape[:2]
    float64 = {"dtype": torch.float64, "device": input.device}
    dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    size = target.shape[2:] if losses else (0, 0)
    return (
        torch.empty((n, c, 3), **float64),
        torch.empty((n, c, 2), **float64),
        torch.empty((n, c, *size), dtype=dtype, device=input.device),
    )


def _backward_fake(grad_region, grad_pixel, grad_losses, input, *others):
    return torch.empty(input.shape, dtype=input.dtype, device=input.device, memory_format=memory_format(input))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    input, target, positive, *ctx.options = inputs
    ctx.save_for_backward(input, target, positive)


def _backward(ctx: Any, grad_region: torch.Tensor, grad_pixel: torch.Tensor, grad_losses: torch.Tensor) -> tuple[Any, ...]:
    if any(ctx.needs_input_grad[1:3]):
        raise RuntimeError("sigmoid_statistics: target and positive have no gradient; detach() them")
    grad = _op_backward(grad_region, grad_pixel, grad_losses, *ctx.saved_tensors, *ctx.options)
    return grad, *(None,) * 8


_op = register(
    "sigmoid_statistics",
    f"(Tensor input, Tensor target, {_OPTIONS}) -> (Tensor region, Tensor pixel, Tensor losses)",
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
)
_double_backward, _setup_context_backward = double_backward_through(reference.sigmoid_statistics_backward)
_op_backward = register(
    "sigmoid_statistics_backward",
    f"(Tensor grad_region, Tensor grad_pixel, Tensor grad_losses, Tensor input, Tensor target, {_OPTIONS}) -> Tensor",
    fake=_backward_fake,
    backward=_double_backward,
    setup_context=_setup_context_backward,
)


def sigmoid_statistics(
    input: torch.Tensor,
    target: torch.Tensor,
    positive: Weights | None = None,
    negative: float = 1.0,
    gamma: float = 0.0,
    ignore_index: int | None = None,
    *,
    mode: str = "binary",
    min_intersection: bool = False,
    losses: bool = False,
    upsample: bool = False,
    align_corners: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    r"""Sums of every sample and channel from which the losses on ``p = sigmoid(input)`` follow.

    The loss of a pixel with target t is

    .. math:: -(p (1 - t) + (1 - p) t)^\gamma \big(w_+ t \log p + w_- (1 - t) \log(1 - p)\big)

    which is the binary cross entropy for gamma 0 (``positive`` is then its ``pos_weight``) and the focal loss (Lin et al.
    2017) with ``positive`` alpha and ``negative`` 1 - alpha. Nothing of the target's size is saved but the target: backward
    computes the probabilities again.

    Args:
        input (Tensor[N, 1, H, W] or Tensor[N, H, W]; Tensor[N, C, H, W] for multilabel): logits; float32, float64, float16 or
            bfloat16.
        target (Tensor[N, H, W] or Tensor[N, 1, H, W]; Tensor[N, C, H, W] for multilabel): 0 and 1 as uint8, bool, int32 or
            int64, or soft targets in a floating type.
        positive, negative: the weights above; ``positive`` may have one value for each channel.
        gamma: the exponent above, at least 0.
        ignore_index: label of pixels that take no part.
        mode: ``"binary"`` or ``"multilabel"``.
        min_intersection: the first sum is that of min(p, t) (soft targets in segmentation-models-pytorch).
        losses: also return every pixel's loss.
        upsample: ``input`` is [N, 1, h, w] or [N, C, h, w] with h <= H and w <= W, upsampled bilinearly as it is read; the
            gradient reaches it directly and upsampled logits never exist.
        align_corners: that of :func:`torch.nn.functional.interpolate`.

    Returns:
        tuple: region (Tensor[N, C, 3]), the float64 sums of p t, p and t; pixel (Tensor[N, C, 2]), the sum of the losses and
        the number of valid pixels; losses (Tensor[N, C, H, W], or [N, C, 0, 0] without ``losses``), float64 for float64 input
        and float32 otherwise.

    Bit-equal between runs and numbers of threads; twice differentiable in ``input``.

    Raises:
        ValueError, TypeError: for a wrong mode, rank, dtype, device, shape or range.
        RuntimeError: on CPU, for an integer label other than 0, 1 and ``ignore_index``.
    """
    check_floating(input, "input")
    if gamma < 0:
        raise ValueError(f"gamma: expected a value of at least 0, got {gamma}")
    values, labels = _upsampled_planes(input, target, mode) if upsample else planes(input, target, mode)
    weights = None if positive is None else channel_weights(positive, "positive", values)
    return _op(values, labels, weights, negative, gamma, ignore_index, min_intersection, losses, align_corners)


def _upsampled_planes(input: torch.Tensor, target: torch.Tensor, mode: str) -> tuple[torch.Tensor, torch.Tensor]:
    if not isinstance(target, torch.Tensor):
        raise TypeError(f"target: expected a Tensor, got {type(target).__name__}")
    check_same_device(input, target, "input", "target")
    if input.dim() == 3 and mode == "binary":
        input = input.unsqueeze(1)
    if target.dim() == 3 and mode == "binary":
        target = target.unsqueeze(1)
    shape, target_shape = input.shape, target.shape
    if len(shape) != 4 or (mode == "binary" and shape[1] != 1):
        raise ValueError(f"input: expected [N, {'1' if mode == 'binary' else 'C'}, h, w], got shape {list(shape)}")
    _, target = planes(target, target, mode)  # the checks of rank, dtype and mode
    fits = shape[2] <= target_shape[2] and shape[3] <= target_shape[3] and (0 not in shape[2:] or 0 in target_shape[2:])
    if shape[:2] != target_shape[:2] or not fits:
        raise ValueError(
            f"target: expected [N, C, H, W] of at least the size of input {list(shape)}, got {list(target_shape)}"
        )
    return input, target
