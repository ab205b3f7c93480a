"""Bed-of-nails unpooling: the partial inverse of average pooling and of subsampling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from segkernels._layout import memory_format
from segkernels._register import register
from segkernels.ops._arguments import check_floating, check_rank, pair


def _empty(tensor, height, width):
    shape = (tensor.shape[0], tensor.shape[1], height, width)
    return torch.empty(shape, dtype=tensor.dtype, device=tensor.device, memory_format=memory_format(tensor))


def _fake(input, scale):
    return _empty(input, input.shape[2] * scale[0], input.shape[3] * scale[1])


def _backward_fake(grad_output, scale):
    return _empty(grad_output, grad_output.shape[2] // scale[0], grad_output.shape[3] // scale[1])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    ctx.scale = inputs[1]


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    return _op_backward(grad, ctx.scale), None


def _double_backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    # Linear in grad_output, and its transpose is the forward op.
    return _op(grad, ctx.scale), None


_op = register(
    "bed_of_nails",
    "(Tensor input, int[2] scale) -> Tensor",
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
)
_op_backward = register(
    "bed_of_nails_backward",
    "(Tensor grad_output, int[2] scale) -> Tensor",
    fake=_backward_fake,
    backward=_double_backward,
    setup_context=_setup_context,
)


def bed_of_nails(input: torch.Tensor, scale: int | Sequence[int]) -> torch.Tensor:
    """Unpooling that puts each value at the top left of a block of zeros.

    Replaces a transposed convolution with a 1x1 kernel of ones, ``stride=scale`` and ``output_padding=scale - 1``; the "bed
    of nails" of deconvolution networks and of convolution over zero-stuffed inputs.

    Args:
        input (Tensor[N, C, h, w]): float32, float64, float16 or bfloat16, NCHW or channels_last.
        scale: height and width of a block, at least 1; one int for both.

    Returns:
        Tensor[N, C, h * scale, w * scale]: in the memory format and dtype of ``input``. Deterministic, forward and backward;
        twice differentiable.

    Raises:
        ValueError, TypeError: for a wrong rank, dtype or scale.
    """
    check_floating(input, "input")
    check_rank(input, "input", (4,), "[N, C, h, w]")
    return _op(input, pair(scale, "scale", 1))
