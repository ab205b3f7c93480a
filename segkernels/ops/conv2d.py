"""Convolution: dense, atrous (dilated), grouped and depthwise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from segkernels._flops import conv_backward_flops, conv_flops
from segkernels._layout import memory_format
from segkernels._register import double_backward_through, register
from segkernels.ops._arguments import check_floating, check_rank, pair
from segkernels.reference import conv2d as reference

Size = int | Sequence[int]


def _fake(input, weight, bias, stride, padding, dilation, groups):
    size = [
        (input.shape[2 + d] + 2 * padding[d] - dilation[d] * (weight.shape[2 + d] - 1) - 1) // stride[d] + 1 for d in range(2)
    ]
    shape = (input.shape[0], weight.shape[0], *size)
    return torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=memory_format(input))


def _backward_fake(
    grad_output, input, weight, stride, padding, dilation, groups, need_input, need_weight, need_bias
):  # fmt: skip
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
    return *(g if want else None for g, want in zip(grads, wanted)), None, None, None, None


def _vendor(input, weight, bias, stride, padding, dilation, groups):
    return torch.ops.aten.convolution(input, weight, bias, stride, padding, dilation, False, [0, 0], groups)


_op = register(
    "conv2d",
    "(Tensor input, Tensor weight, Tensor? bias, int[2] stride, int[2] padding, int[2] dilation, int groups) -> Tensor",
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
    vendor=_vendor,
    autocast="lower",
    flops=conv_flops,
)
_double_backward, _double_setup_context = double_backward_through(reference.conv2d_backward)
_op_backward = register(
    "conv2d_backward",
    "(Tensor grad_output, Tensor input, Tensor weight, int[2] stride, int[2] padding, int[2] dilation, int groups, "
    "bool need_input, bool need_weight, bool need_bias) -> (Tensor, Tensor, Tensor)",
    fake=_backward_fake,
    backward=_double_backward,
    setup_context=_double_setup_context,
    vendor=reference.conv2d_backward,
    flops=conv_backward_flops,
)


def conv2d(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> torch.Tensor:
    """Convolution: every output pixel is the weighted sum of a window of the input.

    Replaces :func:`torch.nn.functional.conv2d`; atrous convolution as in DeepLab (Chen et al. 2017), depthwise as in
    Xception (Chollet 2017) and MobileNet (Howard et al. 2017).

    Args:
        input (Tensor[N, Cin, H, W] or Tensor[Cin, H, W]): float32, float64, float16 or bfloat16.
        weight (Tensor[Cout, Cin / groups, KH, KW]): of the same dtype.
        bias (Tensor[Cout], optional)
        stride, dilation: one int or (height, width).
        padding: zeros on both sides, one int or (height, width); ``"valid"`` is 0; ``"same"`` keeps the size, asks for
            stride 1, and adds an odd row or column on the bottom or right.
        groups: divides both channel counts; equal to Cin it makes the convolution depthwise.

    Returns:
        Tensor[N, Cout, OH, OW]: ``OH = (H + 2 * padding - dilation * (KH - 1) - 1) // stride + 1``, in the memory format
        of ``input``; half-precision sums are kept in float32.

    Depthwise convolution reads input and gradient once, in both memory formats; on the CPU atrous convolution in float32
    computes no taps that lie in the padding; the rest is torch's own kernel. Deterministic; twice differentiable; autocasts
    to the lower precision, as torch does.

    Raises:
        ValueError, TypeError: for a wrong rank, dtype, size or channel count.
    """
    check_floating(input, "input")
    check_rank(input, "input", (3, 4), "[N, Cin, H, W] or [Cin, H, W]")
    check_rank(weight, "weight", (4,), "[Cout, Cin / groups, KH, KW]")
    step = pair(stride, "stride", 1)
    spread = pair(dilation, "dilation", 1)
    if isinstance(padding, str):
        input, pad = _named_padding(input, padding, weight, step, spread)
    else:
        pad = pair(padding, "padding", 0)
    if input.dim() == 3:
        return conv2d(input[None], weight, bias, step, pad, spread, groups)[0]
    _check(input, weight, bias, step, pad, spread, groups)
    return _op(input, weight, bias, step, pad, spread, groups)


def _named_padding(
    input: torch.Tensor, padding: str, weight: torch.Tensor, stride: list[int], dilation: list[int]
) -> tuple[torch.Tensor, list[int]]:
    if padding == "valid":
        return input, [0, 0]
    if padding != "same":
        raise ValueError(f"padding: expected ints, 'same' or 'valid', got {padding!r}")
    if stride != [1, 1]:
        raise ValueError(f"padding: 'same' expects stride 1, got {stride}")
    total = [dilation[d] * (weight.shape[2 + d] - 1) for d in range(2)]
    if total[0] % 2 or total[1] % 2:
        input = F.pad(input, (0, total[1] % 2, 0, total[0] % 2))
    return input, [total[0] // 2, total[1] // 2]


def _check(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> None:
    shape, kernel = input.shape, weight.shape
    if groups < 1 or shape[1] != kernel[1] * groups or kernel[0] % groups:
        raise ValueError(
            f"weight: expected [Cout, Cin / groups, KH, KW] with Cin = {shape[1]} and Cout divisible by groups = {groups}, "
            f"got {list(kernel)}"
        )
    if weight.dtype != input.dtype and not torch.is_autocast_enabled(input.device.type):
        raise TypeError(f"weight: expected the dtype of input, {input.dtype}, got {weight.dtype}")
    if weight.device != input.device or (bias is not None and bias.device != input.device):
        raise ValueError(
            f"weight and bias: expected the device of input, {input.device}, got {weight.device}"
            + ("" if bias is None else f" and {bias.device}")
        )
    if bias is not None and (bias.dim() != 1 or bias.shape[0] != kernel[0]):
        raise ValueError(f"bias: expected [Cout] with Cout = {kernel[0]}, got {list(bias.shape)}")
    for d in (0, 1):
        if shape[2 + d] + 2 * padding[d] <= dilation[d] * (kernel[2 + d] - 1) or kernel[2 + d] < 1:
            raise ValueError(
                f"input: expected a padded size of at least the kernel's, got {list(shape)} with kernel "
                f"{list(kernel[2:])}, padding {padding}, dilation {dilation}"
            )
