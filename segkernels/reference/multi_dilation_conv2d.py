"""Convolutions of several dilations in plain PyTorch, one after the other, concatenated."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from segkernels._layout import memory_format


def _rates(weights: list[torch.Tensor], dilations: list[int]) -> list[tuple[int, torch.Tensor, list[int]]]:
    """Of each rate: the place of its weight in the list, the weight, and the padding that keeps the size."""
    places = [0] * len(dilations) if len(weights) == 1 else range(len(weights))
    return [(i, weights[i], [d * (k // 2) for k in weights[i].shape[2:]]) for i, d in zip(places, dilations)]


def multi_dilation_conv2d(input: torch.Tensor, weights: list[torch.Tensor], dilations: list[int]) -> torch.Tensor:
    results = [
        F.conv2d(input, weight, None, 1, padding, dilation)
        for (_, weight, padding), dilation in zip(_rates(weights, dilations), dilations)
    ]
    return torch.cat(results, 1).contiguous(memory_format=memory_format(input))


def multi_dilation_conv2d_backward(
    grad_output: torch.Tensor,
    input: torch.Tensor,
    weights: list[torch.Tensor],
    dilations: list[int],
    need_input: bool,
    need_weights: bool,
) -> list[torch.Tensor]:
    """Of the input, then of each weight; gradients that are not asked for come back empty."""
    sums: list[torch.Tensor | None] = [None] * (1 + len(weights))
    for r, (i, weight, padding) in enumerate(_rates(weights, dilations)):
        grad = grad_output.narrow(1, r * weight.shape[0], weight.shape[0])
        dilation = [dilations[r]] * 2
        found = torch.ops.aten.convolution_backward(
            grad, input, weight, None, [1, 1], padding, dilation, False, [0, 0], 1, [need_input, need_weights, False]
        )
        for place, part in ((0, found[0]), (1 + i, found[1])):
            if part is not None:
                total = sums[place]
                sums[place] = part if total is None else total + part
    layouts = [memory_format(input)] + [torch.contiguous_format] * len(weights)
    return [
        input.new_empty(0) if total is None else total.contiguous(memory_format=layout)
        for total, layout in zip(sums, layouts)
    ]  # fmt: skip
