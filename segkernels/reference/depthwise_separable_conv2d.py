"""Depthwise and pointwise convolution in plain PyTorch, one after the other."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from segkernels._layout import memory_format


def depthwise_separable_conv2d(
    input: torch.Tensor,
    depthwise_weight: torch.Tensor,
    pointwise_weight: torch.Tensor,
    depthwise_bias: torch.Tensor | None,
    pointwise_bias: torch.Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    relu: bool,
) -> torch.Tensor:
    hidden = F.conv2d(input, depthwise_weight, depthwise_bias, stride, padding, dilation, input.shape[1])
    output = F.conv2d(hidden.relu() if relu else hidden, pointwise_weight, pointwise_bias)
    return (output.relu() if relu else output).contiguous(memory_format=memory_format(input))


def depthwise_separable_conv2d_backward(
    grad_output: torch.Tensor,
    output: torch.Tensor | None,
    input: torch.Tensor,
    depthwise_weight: torch.Tensor,
    pointwise_weight: torch.Tensor,
    depthwise_bias: torch.Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    need_input: bool,
    need_depthwise_weight: bool,
    need_pointwise_weight: bool,
    need_depthwise_bias: bool,
    need_pointwise_bias: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """`output` stands for the activation: None without one. Gradients that are not asked for come back empty."""
    backward = torch.ops.aten.convolution_backward
    channels = input.shape[1]
    hidden = F.conv2d(input, depthwise_weight, depthwise_bias, stride, padding, dilation, channels)
    positive = hidden > 0
    if output is not None:
        grad_output = grad_output * (output > 0)
        hidden = hidden.relu()
    need_hidden = need_input or need_depthwise_weight or need_depthwise_bias
    grad_hidden, grad_pointwise_weight, grad_pointwise_bias = backward(
        grad_output, hidden, pointwise_weight, [pointwise_weight.shape[0]], [1, 1], [0, 0], [1, 1], False, [0, 0], 1,
        [need_hidden, need_pointwise_weight, need_pointwise_bias],
    )  # fmt: skip
    none = input.new_empty(0)
    grad_input, grad_depthwise_weight, grad_depthwise_bias = none, none, none
    if need_hidden:
        if output is not None:
            grad_hidden = grad_hidden * positive
        grad_input, grad_depthwise_weight, grad_depthwise_bias = backward(
            grad_hidden, input, depthwise_weight, [hidden.shape[1]], stride, padding, dilation, False, [0, 0], channels,
            [need_input, need_depthwise_weight, need_depthwise_bias],
        )  # fmt: skip
    return (
        grad_input.contiguous(memory_format=memory_format(input)) if need_input else none,
        grad_depthwise_weight.contiguous() if need_depthwise_weight else none.clone(),
        grad_pointwise_weight.contiguous() if need_pointwise_weight else none.clone(),
        grad_depthwise_bias if need_depthwise_bias else none.clone(),
        grad_pointwise_bias if need_pointwise_bias else none.clone(),
    )
