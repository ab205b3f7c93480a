"""Transposed convolution of sequences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from segkernels._flops import conv_transpose_backward_flops, conv_transpose_flops
from segkernels._register import double_backward_through, register
from segkernels.ops._arguments import check_floating, check_rank, single
from segkernels.ops._conv_arguments import check_conv_transpose
from segkernels.reference import conv_transpose1d as reference

Size = int | Sequence[int]


def _fake(input, weight, bias, stride, padding, output_padding, groups, dilation):
    length = (input.shape[2] - 1) * stride - 2 * padding + dilation * (weight.shape[2] - 1) + output_padding + 1
    return input.new_empty(input.shape[0], weight.shape[1] * groups, length)


def _backward_fake(
    grad_output,
    input,
    weight,
    stride,
    padding,
    output_padding,
    groups,
    dilation,
    need_input,
    need_weight,
    need_bias,
):
    return (
        input.new_empty(input.shape if need_input else 0),
        weight.new_empty(weight.shape if need_weight else 0),
        input.new_empty(grad_output.shape[1] if need_bias else 0),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    input, weight, bias, *ctx.geometry = inputs
    ctx.has_bias = bias is not None
    ctx.save_for_backward(input, weight)


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    input, weight = ctx.saved_tensors
    wanted = [ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.has_bias and ctx.needs_input_grad[2]]
    grads = _op_backward(grad, input, weight, *ctx.geometry, *wanted)
    return *(g if want else None for g, want in zip(grads, wanted)), None, None, None, None, None


def _vendor(input, weight, bias, stride, padding, output_padding, groups, dilation):
    return torch.ops.aten.convolution(input, weight, bias, [stride], [padding], [dilation], True, [output_padding], groups)


_op = register(
    "conv_transpose1d",
    "(Tensor input, Tensor weight, Tensor? bias, int stride, int padding, int output_padding, int groups, int dilation) "
    "-> Tensor",
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
    vendor=_vendor,
    autocast="lower",
    flops=conv_transpose_flops,
)
_double_backward, _double_setup_context = double_backward_through(reference.conv_transpose1d_backward)
_op_backward = register(
    "conv_transpose1d_backward",
    "(Tensor grad_output, Tensor input, Tensor weight, int stride, int padding, int output_padding, int groups, "
    "int dilation, bool need_input, bool need_weight, bool need_bias) -> (Tensor, Tensor, Tensor)",
    fake=_backward_fake,
    backward=_double_backward,
    setup_context=_double_setup_context,
    vendor=reference.conv_transpose1d_backward,
    flops=conv_transpose_backward_flops,
)


def conv_transpose1d(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
) -> torch.Tensor:
    """Transposed convolution of sequences: every input element adds its kernel, scaled, to the output.

    Replaces :func:`torch.nn.functional.conv_transpose1d`.

    Args:
        input (Tensor[N, Cin, L] or Tensor[Cin, L]): float32, float64, float16 or bfloat16.
        weight (Tensor[Cin, Cout / groups, K]): of the same dtype.
        bias (Tensor[Cout], optional)
        stride, padding, output_padding, dilation: one int. ``padding`` crops the output on both sides;
            ``output_padding`` adds elements at the end and must be smaller than stride or dilation.
        groups: divides both channel counts.

    Returns:
        Tensor[N, Cout, OL]: ``OL = (L - 1) * stride - 2 * padding + dilation * (K - 1) + output_padding + 1``,
        contiguous; half-precision sums are kept in float32.

    Runs on the kernels of :func:`conv_transpose2d` with a height of 1. Deterministic; twice differentiable; autocasts
    to the lower precision, as torch does.

    Raises:
        ValueError, TypeError: for a wrong rank, dtype, size or channel count.
    """
    check_floating(input, "input")
    check_rank(input, "input", (2, 3), "[N, Cin, L] or [Cin, L]")
    check_rank(weight, "weight", (3,), "[Cin, Cout / groups, K]")
    step = single(stride, "stride", 1)
    spread = single(dilation, "dilation", 1)
    extra = single(output_padding, "output_padding", 0)
    pad = single(padding, "padding", 0)
    if input.dim() == 2:
        return conv_transpose1d(input[None], weight, bias, step, pad, extra, groups, spread)[0]
    check_conv_transpose(input, weight, bias, [step], [pad], [extra], groups, [spread])
    return _op(input, weight, bias, step, pad, extra, groups, spread)
