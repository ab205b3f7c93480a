"""Convolutions of several dilations over one map: the parallel rates of atrous spatial pyramid pooling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from segkernels._flops import multi_dilation_backward_flops, multi_dilation_flops
from segkernels._layout import memory_format
from segkernels._register import register
from segkernels.ops._arguments import check_floating, check_rank


def _fake(input, weights, dilations):
    shape = (input.shape[0], weights[0].shape[0] * len(dilations), *input.shape[2:])
    return torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=memory_format(input))


def _backward_fake(grad_output, input, weights, dilations, need_input, need_weights):
    def like(tensor, needed, format):
        if not needed:
            return input.new_empty(0)
        return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device, memory_format=format)

    grads = [like(weight, need_weights, torch.contiguous_format) for weight in weights]
    return [like(input, need_input, memory_format(input)), *grads]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    input, weights, ctx.dilations = inputs
    ctx.save_for_backward(input, *weights)


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    input, *weights = ctx.saved_tensors
    need_input, need_weights = ctx.needs_input_grad[:2]
    found = _op_backward(grad, input, weights, ctx.dilations, need_input, any(need_weights))
    grads = [grad if need else None for grad, need in zip(found[1:], need_weights)]
    return found[0] if need_input else None, grads, None


def _setup_context_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    grad_output, input, weights, ctx.dilations, *ctx.needed = inputs
    ctx.save_for_backward(grad_output, input, *weights)


def _double_backward(ctx: Any, grads: list[torch.Tensor]) -> tuple[Any, ...]:
    # Linear in each argument: each of the two gradients takes the place of what it is the gradient of.
    grad_output, input, *weights = ctx.saved_tensors
    has_input, has_weights = ctx.needed
    need_output, need_input, need_weights = ctx.needs_input_grad[:3]
    for_input, for_weights, dilations = grads[0], list(grads[1:]), ctx.dilations
    result = None
    if need_output:
        parts = []
        if has_input:
            parts.append(_op(for_input, weights, dilations))
        if has_weights:
            parts.append(_op(input, for_weights, dilations))
        result = parts[0] + parts[1] if len(parts) == 2 else parts[0]
    second_input = None
    if need_input and has_weights:
        second_input = _op_backward(grad_output, input, for_weights, dilations, True, False)[0]
    second_weights: list[torch.Tensor | None] = [None] * len(weights)
    if any(need_weights) and has_input:
        second_weights = list(_op_backward(grad_output, for_input, weights, dilations, False, True)[1:])
    return result, second_input, second_weights, None, None, None


_op = register(
    "multi_dilation_conv2d",
    "(Tensor input, Tensor[] weights, int[] dilations) -> Tensor",
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
    autocast="lower",
    flops=multi_dilation_flops,
)
_op_backward = register(
    "multi_dilation_conv2d_backward",
    "(Tensor grad_output, Tensor input, Tensor[] weights, int[] dilations, bool need_input, bool need_weights) -> Tensor[]",
    fake=_backward_fake,
    backward=_double_backward,
    setup_context=_setup_context_backward,
    flops=multi_dilation_backward_flops,
)


def multi_dilation_conv2d(
    input: torch.Tensor, weights: torch.Tensor | Sequence[torch.Tensor], dilations: Sequence[int]
) -> torch.Tensor:
    """Convolutions of stride 1 with several dilations over one map, which keep its size, in one op.

    Replaces one :func:`torch.nn.functional.conv2d` a rate and the :func:`torch.cat` behind them in atrous spatial pyramid
    pooling (Chen et al. 2017, DeepLabv3); one weight for all rates is kernel-sharing atrous convolution (Huang et al. 2019,
    KSAC).

    Args:
        input (Tensor[N, C, H, W] or Tensor[C, H, W]): float32, float64, float16 or bfloat16.
        weights: one ``Tensor[O, C, KH, KW]`` for each rate, of one ``O`` and of the dtype of ``input``, or a single one that
            all rates share. Kernel sizes are odd and may differ, so that a 1x1 convolution can be one of the rates.
        dilations: one int for each rate; the zeros around the input are ``dilation * (K // 2)`` on each side.

    Returns:
        Tensor[N, R * O, H, W]: the results of ``R`` rates, side by side, in the memory format of ``input``; half-precision
        sums are kept in float32.

    Taps that lie in the padding are not computed: with a dilation of half the map's size that is more than half of them.
    Deterministic, forward and backward, the same bits for any number of threads; twice differentiable; autocasts to the
    lower precision, as torch does.

    Raises:
        ValueError, TypeError: for a wrong number of weights, or a wrong rank, dtype, device, size or dilation.
    """
    check_floating(input, "input")
    check_rank(input, "input", (3, 4), "[N, C, H, W] or [C, H, W]")
    kernels = [weights] if isinstance(weights, torch.Tensor) else list(weights)
    rates = [int(dilation) for dilation in dilations]
    if input.dim() == 3:
        return multi_dilation_conv2d(input[None], kernels, rates)[0]
    if not rates or (len(kernels) != 1 and len(kernels) != len(rates)):
        raise ValueError(f"weights: expected one, or one for each of {len(rates)} dilations (at least 1), got {len(kernels)}")
    if min(rates) < 1:
        raise ValueError(f"dilations: expected at least 1, got {rates}")
    for weight in kernels:
        check_rank(weight, "weights", (4,), "[O, C, KH, KW]")
        out_channels, channels, height, width = weight.shape
        if out_channels != kernels[0].shape[0] or channels != input.shape[1] or height % 2 == 0 or width % 2 == 0:
            raise ValueError(
                f"weights: expected [{kernels[0].shape[0]}, {input.shape[1]}, KH, KW] of odd sizes, got {list(weight.shape)}"
            )
        if weight.dtype != input.dtype and not torch.is_autocast_enabled(input.device.type):
            raise TypeError(f"weights: expected the dtype of input, {input.dtype}, got {weight.dtype}")
        if weight.device != input.device:
            raise ValueError(f"weights: expected the device of input, {input.device}, got {weight.device}")
    return _op(input, kernels, rates)
