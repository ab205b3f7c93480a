"""Nearest-neighbour resampling in plain PyTorch."""

from __future__ import annotations

import torch

from segkernels._layout import memory_format


def sources(in_size: int, out_size: int, scale_factor: float | None, device: torch.device) -> torch.Tensor:
    """The source coordinate of each output coordinate, torch's; computed in float32 for every dtype."""
    output = torch.arange(out_size, device=device)
    if in_size == out_size:
        return output
    if out_size == 2 * in_size:
        return output // 2  # whatever the scale
    ratio = torch.tensor(float(in_size), dtype=torch.float32) / torch.tensor(float(out_size), dtype=torch.float32)
    if scale_factor is not None and scale_factor > 0:
        ratio = torch.tensor(1.0 / scale_factor, dtype=torch.float32)
    return (output.float() * ratio.to(device)).long().clamp(max=in_size - 1)


def upsample_nearest2d(
    input: torch.Tensor, output_size: list[int], scales_h: float | None, scales_w: float | None
) -> torch.Tensor:
    rows = sources(input.shape[2], output_size[0], scales_h, input.device)
    columns = sources(input.shape[3], output_size[1], scales_w, input.device)
    return input[:, :, rows][..., columns].contiguous(memory_format=memory_format(input))


def _sum(grad: torch.Tensor, source: torch.Tensor, in_size: int) -> torch.Tensor:
    """Sums the last dimension by source, in a fixed order: a scatter on a GPU has none."""
    counts = (source == torch.arange(in_size, device=source.device)[:, None]).sum(1)
    return torch.segment_reduce(grad.movedim(-1, 0).contiguous(), "sum", lengths=counts, axis=0).movedim(0, -1)


def upsample_nearest2d_backward(
    grad_output: torch.Tensor, input_size: list[int], scales_h: float | None, scales_w: float | None
) -> torch.Tensor:
    dtype = torch.float64 if grad_output.dtype == torch.float64 else torch.float32
    rows = sources(input_size[0], grad_output.shape[2], scales_h, grad_output.device)
    columns = sources(input_size[1], grad_output.shape[3], scales_w, grad_output.device)
    grad = _sum(grad_output.to(dtype), columns, input_size[1])
    grad = _sum(grad.transpose(2, 3), rows, input_size[0]).transpose(2, 3)
    return grad.to(grad_output.dtype).contiguous(memory_format=memory_format(grad_output))
