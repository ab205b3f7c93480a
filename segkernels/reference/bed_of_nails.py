"""Bed-of-nails unpooling in plain PyTorch."""

from __future__ import annotations

import torch

from segkernels._layout import memory_format


def bed_of_nails(input: torch.Tensor, scale: list[int]) -> torch.Tensor:
    n, c, h, w = input.shape
    zeros = input.new_zeros((n, c, h, scale[0], w, scale[1]))
    spread = torch.cat([input[:, :, :, None, :, None], zeros[..., :1, :, 1:]], 5)
    blocks = torch.cat([spread, zeros[:, :, :, 1:]], 3)
    return blocks.reshape(n, c, h * scale[0], w * scale[1]).contiguous(memory_format=memory_format(input))


def bed_of_nails_backward(grad_output: torch.Tensor, scale: list[int]) -> torch.Tensor:
    layout = memory_format(grad_output)
    return grad_output[:, :, :: scale[0], :: scale[1]].clone(memory_format=layout)
