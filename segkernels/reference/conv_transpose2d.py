"""Transposed convolution in plain PyTorch: zero insertion, then convolution with the flipped kernel (Dumoulin & Visin)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from segkernels._layout import memory_format


def conv_transpose2d(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: list[int],
    padding: list[int],
    output_padding: list[int],
    groups: int,
    dilation: list[int],
) -> torch.Tensor:
    n, c, h, w = input.shape
    kernel = weight.shape[2:]
    # Zeros between the input pixels: "fractional stride".
    spread = input.new_zeros((n, c, (h - 1) * stride[0] + 1, (w - 1) * stride[1] + 1))
    spread[:, :, :: stride[0], :: stride[1]] = input
    # [Cin, Cout / groups, KH, KW] -> [Cout, Cin / groups, KH, KW], flipped.
    grouped = weight.unflatten(0, (groups, c // groups)).transpose(1, 2).flatten(0, 1).flip(2, 3)
    border = [dilation[d] * (kernel[d] - 1) - padding[d] for d in range(2)]
    padded = F.pad(spread, (border[1], border[1] + output_padding[1], border[0], border[0] + output_padding[0]))
    output = F.conv2d(padded, grouped, bias, dilation=dilation, groups=groups)
    return output.contiguous(memory_format=memory_format(input))


def conv_transpose2d_backward(
    grad_output: torch.Tensor,
    input: torch.Tensor,
    weight: torch.Tensor,
    stride: list[int],
    padding: list[int],
    output_padding: list[int],
    groups: int,
    dilation: list[int],
    need_input: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients that are not asked for come back empty."""
    mask = [need_input, need_weight, need_bias]
    grads = torch.ops.aten.convolution_backward(
        grad_output, input, weight, [grad_output.shape[1]], stride, padding, dilation, True, output_padding, groups, mask
    )
    none = input.new_empty(0)
    return (
        grads[0].contiguous(memory_format=memory_format(input)) if need_input else none,
        grads[1].contiguous() if need_weight else none.clone(),
        grads[2] if need_bias else none.clone(),
    )
