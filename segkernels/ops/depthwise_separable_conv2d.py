"""Depthwise-separable convolution: one filter per channel, then a 1x1 convolution across channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from segkernels._flops import separable_backward_flops, separable_flops
from segkernels._layout import memory_format
from segkernels._register import double_backward_through, register
from segkernels.ops._arguments import check_floating, check_rank, pair
from segkernels.reference import depthwise_separable_conv2d as reference

Size = int | Sequence[int]


def _output_size(input, weight, stride, padding, dilation):
    return [
        (input.shape[2 + d] + 2 * padding[d] - dilation[d] * (weight.shape[2 + d] - 1) - 1) // stride[d] + 1 for d in range(2)
    ]


def _fake(
    input, depthwise_weight, pointwise_weight, depthwise_bias, pointwise_bias, stride, padding, dilation, relu
):  # fmt: skip
    size = _output_size(input, depthwise_weight, stride, padding, dilation)
    shape = (input.shape[0], pointwise_weight.shape[0], *size)
    return torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=memory_format(input))


def _backward_fake(
    grad_output, output, input, depthwise_weight, pointwise_weight, depthwise_bias, stride, padding, dilation,
    need_input, need_depthwise_weight, need_pointwise_weight, need_depthwise_bias, need_pointwise_bias,
):  # fmt: skip
    def like(tensor, needed, format=torch.contiguous_format):
        if not needed:
            return input.new_empty(0)
        return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device, memory_format=format)

    return (
        like(input, need_input, memory_format(input)),
        like(depthwise_weight, need_depthwise_weight),
        like(pointwise_weight, need_pointwise_weight),
        input.new_empty(depthwise_weight.shape[0] if need_depthwise_bias else 0),
        input.new_empty(pointwise_weight.shape[0] if need_pointwise_bias else 0),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    input, depthwise_weight, pointwise_weight, depthwise_bias, pointwise_bias, *ctx.geometry, relu = inputs
    # The hidden map is computed again in backward; of the output only the sign is used.
    ctx.save_for_backward(output if relu else None, input, depthwise_weight, pointwise_weight, depthwise_bias)


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    wanted = list(ctx.needs_input_grad[:5])
    grads = _op_backward(grad, *ctx.saved_tensors, *ctx.geometry, *wanted)
    return *(g if want else None for g, want in zip(grads, wanted)), None, None, None, None


_op = register(
    "depthwise_separable_conv2d",
    "(Tensor input, Tensor depthwise_weight, Tensor pointwise_weight, Tensor? depthwise_bias, Tensor? pointwise_bias, "
    "int[2] stride, int[2] padding, int[2] dilation, bool relu) -> Tensor",
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
    autocast="lower",
    flops=separable_flops,
)
_double_backward, _double_setup_context = double_backward_through(reference.depthwise_separable_conv2d_backward)
_op_backward = register(
    "depthwise_separable_conv2d_backward",
    "(Tensor grad_output, Tensor? output, Tensor input, Tensor depthwise_weight, Tensor pointwise_weight, "
    "Tensor? depthwise_bias, int[2] stride, int[2] padding, int[2] dilation, bool need_input, bool need_depthwise_weight, "
    "bool need_pointwise_weight, bool need_depthwise_bias, bool need_pointwise_bias) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    fake=_backward_fake,
    backward=_double_backward,
    setup_context=_double_setup_context,
    flops=separable_backward_flops,
)


def depthwise_separable_conv2d(
    input: torch.Tensor,
    depthwise_weight: torch.Tensor,
    pointwise_weight: torch.Tensor,
    depthwise_bias: torch.Tensor | None = None,
    pointwise_bias: torch.Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    activation: str | None = None,
) -> torch.Tensor:
    """Depthwise and pointwise convolution in one op, atrous too.

    Replaces :func:`torch.nn.functional.conv2d` with ``groups=C`` and a 1x1 one after it (Howard et al. 2017, MobileNets;
    Chen et al. 2018, DeepLabv3+), and with ``activation="relu"`` a ReLU after each.

    Args:
        input (Tensor[N, C, H, W] or Tensor[C, H, W]): float32, float64, float16 or bfloat16.
        depthwise_weight (Tensor[C * M, 1, KH, KW]): of the same dtype; M >= 1 is the channel multiplier.
        pointwise_weight (Tensor[O, C * M, 1, 1])
        depthwise_bias (Tensor[C * M], optional)
        pointwise_bias (Tensor[O], optional)
        stride, dilation: of the depthwise convolution, one int or (height, width).
        padding: zeros around the input, one int or (height, width), or ``"same"`` (stride 1 only) or ``"valid"``.
        activation: None or ``"relu"``, applied between the two convolutions and after them.

    Returns:
        Tensor[N, O, OH, OW]: in the memory format of ``input``; half-precision sums are kept in float32.

    On the CPU with few channels (``C * M * O`` below 1024, NCHW) the depthwise result of a tile of pixels stays in cache until
    the pointwise product has used it: nothing of its size is allocated, and the result has the same bits for any number of
    threads. Else this package's depthwise convolution and torch's product follow each other, which is faster. Backward
    computes the depthwise result again. Twice differentiable; autocasts to the lower precision, as torch does.

    Raises:
        ValueError, TypeError: for a wrong rank, dtype, size, channel count, padding or activation.
    """
    check_floating(input, "input")
    check_rank(input, "input", (3, 4), "[N, C, H, W] or [C, H, W]")
    check_rank(depthwise_weight, "depthwise_weight", (4,), "[C * M, 1, KH, KW]")
    check_rank(pointwise_weight, "pointwise_weight", (4,), "[O, C * M, 1, 1]")
    if activation not in (None, "relu"):
        raise ValueError(f"activation: expected None or 'relu', got {activation!r}")
    step = pair(stride, "stride", 1)
    spread = pair(dilation, "dilation", 1)
    if isinstance(padding, str):
        input, pad = _named_padding(input, depthwise_weight, step, padding, spread)
    else:
        pad = pair(padding, "padding", 0)
    if input.dim() == 3:
        return depthwise_separable_conv2d(
            input[None], depthwise_weight, pointwise_weight, depthwise_bias, pointwise_bias, step, pad, spread, activation
        )[0]
    _check(input, depthwise_weight, pointwise_weight, depthwise_bias, pointwise_bias, step, pad, spread)
    return _op(
        input, depthwise_weight, pointwise_weight, depthwise_bias, pointwise_bias, step, pad, spread, activation is not None
    )


def _named_padding(
    input: torch.Tensor, weight: torch.Tensor, stride: list[int], padding: str, dilation: list[int]
) -> tuple[torch.Tensor, list[int]]:
    if padding == "valid":
        return input, [0, 0]
    if padding != "same":
        raise ValueError(f"padding: expected ints, 'same' or 'valid', got {padding!r}")
    if stride != [1, 1]:
        raise ValueError(f"padding: 'same' is defined for stride 1, got stride {stride}")
    total = [dilation[d] * (weight.shape[2 + d] - 1) for d in range(2)]
    if total[0] % 2 or total[1] % 2:  # an even kernel: one more on the right, as torch has it
        input = F.pad(input, (0, total[1] % 2, 0, total[0] % 2))
    return input, [total[0] // 2, total[1] // 2]


def _check(
    input: torch.Tensor,
    depthwise_weight: torch.Tensor,
    pointwise_weight: torch.Tensor,
    depthwise_bias: torch.Tensor | None,
    pointwise_bias: torch.Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> None:
    channels = input.shape[1]
    hidden = depthwise_weight.shape[0]
    if channels < 1 or hidden < 1 or hidden % channels or depthwise_weight.shape[1] != 1:
        raise ValueError(
            f"depthwise_weight: expected [C * M, 1, KH, KW] with C = {channels}, got {list(depthwise_weight.shape)}"
        )
    if pointwise_weight.shape[1] != hidden or pointwise_weight.shape[2] != 1 or pointwise_weight.shape[3] != 1:
        raise ValueError(f"pointwise_weight: expected [O, {hidden}, 1, 1], got {list(pointwise_weight.shape)}")
    others = (
        ("depthwise_weight", depthwise_weight, None),
        ("pointwise_weight", pointwise_weight, None),
        ("depthwise_bias", depthwise_bias, hidden),
        ("pointwise_bias", pointwise_bias, pointwise_weight.shape[0]),
    )
    for name, tensor, size in others:
        if tensor is None:
            continue
        if tensor.dtype != input.dtype and not torch.is_autocast_enabled(input.device.type):
            raise TypeError(f"{name}: expected the dtype of input, {input.dtype}, got {tensor.dtype}")
        if tensor.device != input.device:
            raise ValueError(f"{name}: expected the device of input, {input.device}, got {tensor.device}")
        if size is not None and (tensor.dim() != 1 or tensor.shape[0] != size):
            raise ValueError(f"{name}: expected [{size}], got {list(tensor.shape)}")
    if min(_output_size(input, depthwise_weight, stride, padding, dilation)) < 1 or min(input.shape[2:]) < 1:
        raise ValueError(
            f"input: expected a size that gives a positive output, got {list(input.shape)} with kernel "
            f"{list(depthwise_weight.shape[2:])}, stride {stride}, padding {padding}, dilation {dilation}"
        )
