"""Transposed convolution (deconvolution, up-convolution, fractionally strided convolution)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from segkernels._flops import conv_transpose_backward_flops, conv_transpose_flops
from segkernels._layout import memory_format
from segkernels._register import double_backward_through, register
from segkernels.ops._arguments import check_floating, check_rank, pair
from segkernels.ops._conv_arguments import check_conv_transpose
from segkernels.reference import conv_transpose2d as reference

Size = int | Sequence[int]


def _fake(input, weight, bias, stride, padding, output_padding, groups, dilation):
    size = [
        (input.shape[2 + d] - 1) * stride[d] - 2 * padding[d] + dilation[d] * (weight.shape[2 + d] - 1) + output_padding[d] + 1
        for d in range(2)
    ]
    shape = (input.shape[0], weight.shape[1] * groups, *size)
    return torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=memory_format(input))


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
    def like(tensor, format):
        return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device, memory_format=format)

    return (
        like(input, memory_format(input)) if need_input else input.new_empty(0),
        like(weight, torch.contiguous_format) if need_weight else input.new_empty(0),
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
    return torch.ops.aten.convolution(input, weight, bias, stride, padding, dilation, True, output_padding, groups)


_op = register(
    "conv_transpose2d",
    "(Tensor input, Tensor weight, Tensor? bias, int[2] stride, int[2] padding, int[2] output_padding, int groups, "
    "int[2] dilation) -> Tensor",
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
    vendor=_vendor,
    autocast="lower",
    flops=conv_transpose_flops,
)
_double_backward, _double_setup_context = double_backward_through(reference.conv_transpose2d_backward)
_op_backward = register(
    "conv_transpose2d_backward",
    "(Tensor grad_output, Tensor input, Tensor weight, int[2] stride, int[2] padding, int[2] output_padding, int groups, "
    "int[2] dilation, bool need_input, bool need_weight, bool need_bias) -> (Tensor, Tensor, Tensor)",
    fake=_backward_fake,
    backward=_double_backward,
    setup_context=_double_setup_context,
    vendor=reference.conv_transpose2d_backward,
    flops=conv_transpose_backward_flops,
)


def conv_transpose2d(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
) -> torch.Tensor:
    """Transposed convolution: every input pixel adds its kernel, scaled, to the output.

    Replaces :func:`torch.nn.functional.conv_transpose2d` (Zeiler et al. 2010; Long et al. 2015; Dumoulin & Visin 2016).

    Args:
        input (Tensor[N, Cin, H, W] or Tensor[Cin, H, W]): float32, float64, float16 or bfloat16.
        weight (Tensor[Cin, Cout / groups, KH, KW]): of the same dtype.
        bias (Tensor[Cout], optional)
        stride, padding, output_padding, dilation: one int or (height, width). ``padding`` crops the output;
            ``output_padding`` adds rows and columns on one side and must be smaller than stride or dilation.
        groups: divides both channel counts.

    Returns:
        Tensor[N, Cout, OH, OW]: ``OH = (H - 1) * stride - 2 * padding + dilation * (KH - 1) + output_padding + 1``, in
        the memory format of ``input``; half-precision sums are kept in float32.

    On the CPU a kernel equal to the stride (U-Net, Mask R-CNN) or a multiple of it (DCGAN, FCN) is one matrix product per
    phase of the stride, written once; with groups equal to both channel counts (upsampling as a layer) rows are summed by
    phases. On the GPU the first runs on tensor cores in half precision, the last gathers; the rest is torch's own kernel.
    Deterministic; twice differentiable; autocasts to the lower precision, as torch does.

    Raises:
        ValueError, TypeError: for a wrong rank, dtype, size or channel count.
    """
    check_floating(input, "input")
    check_rank(input, "input", (3, 4), "[N, Cin, H, W] or [Cin, H, W]")
    check_rank(weight, "weight", (4,), "[Cin, Cout / groups, KH, KW]")
    step = pair(stride, "stride", 1)
    spread = pair(dilation, "dilation", 1)
    extra = pair(output_padding, "output_padding", 0)
    pad = pair(padding, "padding", 0)
    if input.dim() == 3:
        return conv_transpose2d(input[None], weight, bias, step, pad, extra, groups, spread)[0]
    check_conv_transpose(input, weight, bias, step, pad, extra, groups, spread)
    return _op(input, weight, bias, step, pad, extra, groups, spread)
