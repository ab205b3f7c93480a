"""Transposed convolution of sequences in plain PyTorch: of two dimensions, with a height of 1."""

from __future__ import annotations

import torch

from segkernels.reference import conv_transpose2d as planes


def _row(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous()[:, :, None]


def conv_transpose1d(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: int,
    padding: int,
    output_padding: int,
    groups: int,
    dilation: int,
) -> torch.Tensor:
    geometry = [1, stride], [0, padding], [0, output_padding], groups, [1, dilation]
    return planes.conv_transpose2d(_row(input), _row(weight), bias, *geometry)[:, :, 0]


def conv_transpose1d_backward(
    grad_output: torch.Tensor,
    input: torch.Tensor,
    weight: torch.Tensor,
    stride: int,
    padding: int,
    output_padding: int,
    groups: int,
    dilation: int,
    need_input: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients that are not asked for come back empty."""
    geometry = [1, stride], [0, padding], [0, output_padding], groups, [1, dilation]
    needs = need_input, need_weight, need_bias
    grads = planes.conv_transpose2d_backward(_row(grad_output), _row(input), _row(weight), *geometry, *needs)
    return (
        grads[0][:, :, 0] if need_input else grads[0],
        grads[1][:, :, 0] if need_weight else grads[1],
        grads[2],
    )
