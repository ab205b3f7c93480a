"""Max-unpooling in plain PyTorch."""

from __future__ import annotations

import torch

from segkernels._layout import memory_format


def flat_positions(
    indices: torch.Tensor, out_h: int, out_w: int, kernel_size: list[int], stride: list[int], padding: list[int]
) -> torch.Tensor:
    """Positions in the flattened output plane, int64 [N, C, h*w]; raises for one outside the plane."""
    h, w = indices.shape[-2:]
    if indices.dtype == torch.uint8:
        offset = indices.long()
        y = torch.arange(h, device=indices.device)[:, None] * stride[0] - padding[0]
        x = torch.arange(w, device=indices.device) * stride[1] - padding[1]
        row = y + offset // kernel_size[1]
        col = x + offset % kernel_size[1]
        inside = (offset < kernel_size[0] * kernel_size[1]) & (row >= 0) & (row < out_h) & (col >= 0) & (col < out_w)
        positions = torch.where(inside, row * out_w + col, -1)
    else:
        positions = indices.long()
    invalid = (positions < 0) | (positions >= out_h * out_w)
    if bool(invalid.any()):
        value = indices[invalid].flatten()[0].item()
        raise RuntimeError(
            f"max_unpool2d: found an invalid max index in indices: {value} (output planes are of size {out_h}x{out_w})"
        )
    return positions.flatten(2)


def winners(positions: torch.Tensor, plane: int) -> torch.Tensor:
    """The entry that each output element comes from, int64 [N, C, plane]; -1 where none does. The last one wins."""
    entry = torch.arange(positions.shape[-1], device=positions.device).expand_as(positions)
    start = torch.full((*positions.shape[:2], plane), -1, dtype=torch.int64, device=positions.device)
    return start.scatter_reduce(2, positions, entry, "amax")


def max_unpool2d(
    input: torch.Tensor,
    indices: torch.Tensor,
    output_size: list[int],
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
) -> torch.Tensor:
    n, c = input.shape[:2]
    out_h, out_w = output_size
    output = input.new_zeros((n, c, out_h * out_w))
    if input.numel():
        positions = flat_positions(indices, out_h, out_w, kernel_size, stride, padding)
        winner = winners(positions, out_h * out_w)
        taken = input.flatten(2).gather(2, winner.clamp(min=0))
        output = torch.where(winner >= 0, taken, output)
    layout = memory_format(input)
    return output.unflatten(2, (out_h, out_w)).contiguous(memory_format=layout)


def max_unpool2d_backward(
    grad_output: torch.Tensor,
    indices: torch.Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
) -> torch.Tensor:
    out_h, out_w = grad_output.shape[2:]
    if not indices.numel():
        return grad_output.new_zeros(indices.shape)
    positions = flat_positions(indices, out_h, out_w, kernel_size, stride, padding)
    winner = winners(positions, out_h * out_w)
    entry = torch.arange(positions.shape[-1], device=positions.device)
    won = winner.gather(2, positions) == entry
    grad = torch.where(won, grad_output.flatten(2).gather(2, positions), 0.0)
    layout = memory_format(indices)
    return grad.unflatten(2, indices.shape[2:]).contiguous(memory_format=layout)
