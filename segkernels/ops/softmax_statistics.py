"""What every loss on softmax probabilities needs of its pixels, in one pass forward and one backward."""

from __future__ import annotations

from typing import Any

import torch

from segkernels._layout import memory_format
from segkernels._register import double_backward_through, register
from segkernels.ops._arguments import check_floating, check_same_device
from segkernels.ops._loss_arguments import Weights, channel_weights
from segkernels.reference import softmax_statistics as reference

_OPTIONS = (
    "Tensor? class_weights, int? ignore_index, float label_smoothing, float gamma, bool regions, bool losses, "
    "bool align_corners"
)
_LABELS = frozenset((torch.uint8, torch.int32, torch.int64))


def _fake(input, target, class_weights, ignore_index, label_smoothing, gamma, regions, losses, align_corners):
    n, c = input.shape[:2]
    float64 = {"dtype": torch.float64, "device": input.device}
    dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    size = target.shape[1:] if losses else (0, 0)
    return (
        torch.empty((n, c if regions else 0, 3), **float64),
        torch.empty((n, 3), **float64),
        torch.empty((n, *size), dtype=dtype, device=input.device),
    )


def _backward_fake(grad_region, grad_pixel, grad_losses, input, *others):
    return torch.empty(input.shape, dtype=input.dtype, device=input.device, memory_format=memory_format(input))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    input, target, class_weights, *ctx.options = inputs
    ctx.save_for_backward(input, target, class_weights)


def _backward(ctx: Any, grad_region: torch.Tensor, grad_pixel: torch.Tensor, grad_losses: torch.Tensor) -> tuple[Any, ...]:
    if ctx.needs_input_grad[2]:
        raise RuntimeError("softmax_statistics: class_weights have no gradient; detach() them")
    grad = _op_backward(grad_region, grad_pixel, grad_losses, *ctx.saved_tensors, *ctx.options)
    return grad, *(None,) * 8


_op = register(
    "softmax_statistics",
    f"(Tensor input, Tensor target, {_OPTIONS}) -> (Tensor region, Tensor pixel, Tensor losses)",
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
)
_double_backward, _setup_context_backward = double_backward_through(reference.softmax_statistics_backward)
_op_backward = register(
    "softmax_statistics_backward",
    f"(Tensor grad_region, Tensor grad_pixel, Tensor grad_losses, Tensor input, Tensor target, {_OPTIONS}) -> Tensor",
    fake=_backward_fake,
    backward=_double_backward,
    setup_context=_setup_context_backward,
)


def softmax_statistics(
    input: torch.Tensor,
    target: torch.Tensor,
    class_weights: Weights | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    gamma: float = 0.0,
    regions: bool = True,
    losses: bool = False,
    upsample: bool = False,
    align_corners: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    r"""Sums of every class and every sample from which the losses on ``p = softmax(input)`` follow.

    The loss of a valid pixel of label t, weight w and cross entropy ``ce = -log p_t`` is
    ``(1 - label_smoothing) * w_t * (1 - p_t)**gamma * ce - label_smoothing / C * sum_c w_c * log p_c``: the cross entropy of
    :func:`torch.nn.functional.cross_entropy` at gamma = 0, the focal loss (Lin et al. 2017) otherwise.

    Args:
        input (Tensor[N, C, h, w]): logits; float32, float64, float16 or bfloat16.
        target (Tensor[N, H, W]): labels, uint8, int32 or int64.
        class_weights: one for each class, or one for all.
        ignore_index: label of pixels that take no part.
        label_smoothing: in [0, 1].
        gamma: at least 0.
        regions: whether the sums of the classes are wanted.
        losses: whether the loss of each pixel is wanted.
        upsample: ``input`` is upsampled bilinearly to the size of ``target`` on the way; else the sizes are equal. The
            upsampled logits exist only in cache.
        align_corners: as in :func:`torch.nn.functional.interpolate`.

    Returns:
        tuple: ``region`` (float64 Tensor[N, C, 3]): sums over the valid pixels of p * t, p and t; empty without ``regions``.
        ``pixel`` (float64 Tensor[N, 3]): sums of the losses, of the weights of the labels, and of the valid pixels.
        ``losses`` (Tensor[N, H, W]): float64 for float64 input, else float32; 0 at ignored pixels; empty without ``losses``.

    Nothing of full size is saved but the inputs. Sums are float32 over at most 512 pixels and float64 above. Bit-equal between
    runs and numbers of threads; twice differentiable in ``input``.

    Raises:
        ValueError, TypeError: for a wrong rank, dtype, device, shape or range.
        RuntimeError: on CPU, for a label outside [0, C) other than ``ignore_index``.
    """
    check_floating(input, "input")
    if not isinstance(target, torch.Tensor):
        raise TypeError(f"target: expected a Tensor, got {type(target).__name__}")
    if target.dtype not in _LABELS:
        raise TypeError(f"target: expected labels of uint8, int32 or int64, got {target.dtype}")
    check_same_device(input, target, "input", "target")
    shape, size = input.shape, target.shape
    if len(shape) != 4 or shape[1] == 0:
        raise ValueError(f"input: expected [N, C, H, W] with C >= 1 for mode='multiclass', got shape {list(shape)}")
    if len(size) != 3 or size[0] != shape[0]:
        raise ValueError(f"target: expected labels [N, H, W] for input {list(shape)}, got shape {list(size)}")
    if not upsample and (size[1] != shape[2] or size[2] != shape[3]):
        raise ValueError(f"target: expected [N, H, W] for input {list(shape)}, got shape {list(size)} (see Upsample...Loss)")
    if upsample and not (0 < shape[2] <= size[1] and 0 < shape[3] <= size[2]):
        raise ValueError(f"target: expected labels at least as large as input {list(shape)}, got shape {list(size)}")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing: expected a value in [0, 1], got {label_smoothing}")
    if not gamma >= 0:
        raise ValueError(f"gamma: expected a value of at least 0, got {gamma}")
    weights = None if class_weights is None else channel_weights(class_weights, "class_weights", input)
    return _op(input, target, weights, ignore_index, label_smoothing, gamma, regions, losses, align_corners)
