"""Bilinear resampling in plain PyTorch."""

from __future__ import annotations

import torch

from segkernels._layout import memory_format


def taps(
    in_size: int, out_size: int, align_corners: bool, scale_factor: float | None, dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``(low, high, weight of high)`` of each output coordinate, torch's; the weights in ``dtype``."""
    output = torch.arange(out_size, device=device)
    if in_size == out_size:
        return output, output, torch.zeros(out_size, dtype=dtype, device=device)
    if align_corners:
        ratio = torch.tensor(in_size - 1, dtype=dtype) / max(out_size - 1, 1) if out_size > 1 else torch.tensor(0.0)
        source = output.to(dtype) * ratio.to(dtype).item()
    else:
        ratio = torch.tensor(in_size, dtype=dtype) / torch.tensor(out_size, dtype=dtype)
        if scale_factor is not None and scale_factor > 0:
            ratio = torch.tensor(1.0 / scale_factor, dtype=dtype)
        # In float64 the product is exact: torch's kernels round once, after the subtraction.
        source = ((output.double() + 0.5) * ratio.double().item() - 0.5).to(dtype).clamp(min=0)
    low = source.long().clamp(max=in_size - 1)
    return low, (low + 1).clamp(max=in_size - 1), (source - low).clamp(max=1)


def _compute_dtype(tensor: torch.Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def upsample_bilinear2d(
    input: torch.Tensor, output_size: list[int], align_corners: bool, scales_h: float | None, scales_w: float | None
) -> torch.Tensor:
    dtype = _compute_dtype(input)
    values = input.to(dtype)
    low, high, weight = taps(input.shape[3], output_size[1], align_corners, scales_w, dtype, input.device)
    values = values[..., low] * (1 - weight) + values[..., high] * weight
    low, high, weight = taps(input.shape[2], output_size[0], align_corners, scales_h, dtype, input.device)
    weight = weight[:, None]
    values = values[:, :, low] * (1 - weight) + values[:, :, high] * weight
    return values.to(input.dtype).contiguous(memory_format=memory_format(input))


def _matrix(
    in_size: int, out_size: int, align_corners: bool, scale_factor: float | None, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """[out_size, in_size]; a product with it sums in a fixed order, which a scatter on a GPU does not."""
    low, high, weight = taps(in_size, out_size, align_corners, scale_factor, dtype, device)
    source = torch.arange(in_size, device=device)
    weight = weight[:, None]
    return (low[:, None] == source) * (1 - weight) + (high[:, None] == source) * weight


def upsample_bilinear2d_backward(
    grad_output: torch.Tensor, input_size: list[int], align_corners: bool, scales_h: float | None, scales_w: float | None
) -> torch.Tensor:
    dtype = _compute_dtype(grad_output)
    device = grad_output.device
    rows = _matrix(input_size[0], grad_output.shape[2], align_corners, scales_h, dtype, device)
    columns = _matrix(input_size[1], grad_output.shape[3], align_corners, scales_w, dtype, device)
    grad = rows.t() @ grad_output.to(dtype) @ columns
    return grad.to(grad_output.dtype).contiguous(memory_format=memory_format(grad_output))
