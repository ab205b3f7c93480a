"""Max-pooling in plain PyTorch: one strided view of the padded input for each tap of the window."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from segkernels._geometry import output_size
from segkernels._layout import memory_format


def _taps(
    padded: torch.Tensor, size: list[int], kernel_size: list[int], stride: list[int], dilation: list[int]
) -> Iterator[tuple[int, torch.Tensor]]:
    """Each window offset with the view ``[..., h, w]`` of what that tap sees."""
    rows = (size[0] - 1) * stride[0] + 1
    columns = (size[1] - 1) * stride[1] + 1
    for kh in range(kernel_size[0]):
        for kw in range(kernel_size[1]):
            y, x = kh * dilation[0], kw * dilation[1]
            yield kh * kernel_size[1] + kw, padded[..., y : y + rows : stride[0], x : x + columns : stride[1]]


def _margins(
    size: list[int], in_size: list[int], kernel_size: list[int], stride: list[int], padding: list[int], dilation: list[int]
) -> list[int]:
    """Padding of ``[W, H]`` after which every window lies inside, as F.pad takes it."""
    last = [(size[d] - 1) * stride[d] - padding[d] + dilation[d] * (kernel_size[d] - 1) for d in range(2)]
    return [padding[1], max(0, last[1] - in_size[1] + 1), padding[0], max(0, last[0] - in_size[0] + 1)]


def flat_positions(
    offsets: torch.Tensor,
    input_size: list[int],
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> torch.Tensor:
    """Window offsets as positions in the flattened input plane, int64 [N, C, h, w]; -1 for one outside the plane."""
    h, w = offsets.shape[-2:]
    offsets = offsets.long()
    row = torch.arange(h, device=offsets.device)[:, None] * stride[0] - padding[0]
    column = torch.arange(w, device=offsets.device) * stride[1] - padding[1]
    row = row + offsets // kernel_size[1] * dilation[0]
    column = column + offsets % kernel_size[1] * dilation[1]
    inside = (row >= 0) & (row < input_size[0]) & (column >= 0) & (column < input_size[1])
    return torch.where(inside, row * input_size[1] + column, -1)


def max_pool2d(
    input: torch.Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    ceil_mode: bool,
    index_bits: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    in_size = list(input.shape[2:])
    size = output_size(in_size, kernel_size, stride, padding, dilation, ceil_mode)
    margins = _margins(size, in_size, kernel_size, stride, padding, dilation)
    output = input.new_full((*input.shape[:2], *size), -torch.inf)
    offsets = torch.full(output.shape, -1, dtype=torch.int64, device=input.device)
    padded = F.pad(input, margins, value=-torch.inf)
    inside = F.pad(input.new_ones((1, 1, *in_size), dtype=torch.bool), margins)
    for (offset, value), (_, valid) in zip(
        _taps(padded, size, kernel_size, stride, dilation), _taps(inside, size, kernel_size, stride, dilation)
    ):
        # The first maximum stays and the last NaN is kept; the first position stands for a window of -inf.
        take = valid & ((offsets < 0) | (value > output) | value.isnan())
        output = torch.where(take, value, output)
        offsets = torch.where(take, offset, offsets)
    layout = memory_format(input)
    output = output.contiguous(memory_format=layout)
    if index_bits == 0:
        return output, torch.empty(0, dtype=torch.uint8, device=input.device)
    if index_bits == 8:
        return output, offsets.clamp(min=0).to(torch.uint8, memory_format=layout)
    positions = flat_positions(offsets.clamp(min=0), in_size, kernel_size, stride, padding, dilation)
    return output, positions.contiguous(memory_format=layout)


def max_pool2d_backward(
    grad_output: torch.Tensor,
    indices: torch.Tensor,
    input_size: list[int],
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> torch.Tensor:
    size = list(indices.shape[2:])
    left, right, top, bottom = _margins(size, input_size, kernel_size, stride, padding, dilation)
    dtype = torch.promote_types(grad_output.dtype, torch.float32)
    shape = (*indices.shape[:2], top + input_size[0] + bottom, left + input_size[1] + right)
    grad = torch.zeros(shape, dtype=dtype, device=grad_output.device)
    for offset, tap in _taps(grad, size, kernel_size, stride, dilation):
        if indices.dtype == torch.uint8:
            match = indices == offset
        else:
            here = torch.full(size, offset, device=indices.device)
            match = indices == flat_positions(here, input_size, kernel_size, stride, padding, dilation)
        # Not in place on grad_output's graph: the taps of one window never see each other's values.
        tap += torch.where(match, grad_output.to(dtype), 0.0)
    grad = grad[..., top : top + input_size[0], left : left + input_size[1]].to(grad_output.dtype)
    layout = memory_format(indices)
    return grad.clone(memory_format=layout)


def max_pool2d_double_backward(
    grad: torch.Tensor,
    indices: torch.Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> torch.Tensor:
    """The transpose of the backward, which is linear: what ``grad`` [N, C, H, W] holds where the maxima were."""
    positions = indices
    if indices.dtype == torch.uint8:
        positions = flat_positions(indices, list(grad.shape[2:]), kernel_size, stride, padding, dilation)
    taken = grad.flatten(2).gather(2, positions.clamp(min=0).flatten(2)).unflatten(2, list(indices.shape[2:]))
    return torch.where(positions >= 0, taken, 0.0)
