"""RoI Align in plain PyTorch: every sample of every bin is read by its four pixels."""

from __future__ import annotations

import torch

from segkernels._layout import memory_format


def box_images(boxes: torch.Tensor, batch: int, op: str) -> torch.Tensor:
    """The image of each box, int64 [K]; raises on the CPU for one that names none, and gives -1 on a GPU."""
    ids = boxes[:, 0]
    valid = (ids > -1) & (ids < batch)
    if boxes.device.type == "cpu" and not bool(valid.all()):
        k = int((~valid).nonzero()[0])
        raise RuntimeError(f"{op}: expected boxes to name an image from 0 to {batch - 1}, got {ids[k].item()} in box {k}")
    return torch.where(valid, ids, -1).long()


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def axis_weights(
    low: torch.Tensor, high: torch.Tensor, size: int, bins: int, scale: float, sampling_ratio: int, aligned: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """How much of each pixel along one axis each bin takes, [K, bins, size], and the number of samples, [K]."""
    offset = 0.5 if aligned else 0.0
    start = low * scale - offset
    extent = (high * scale - offset) - start
    if not aligned:
        extent = extent.clamp(min=1.0)
    bin_size = extent / bins
    if sampling_ratio > 0:
        samples = torch.full_like(bin_size, sampling_ratio)
    else:
        samples = torch.ceil(bin_size)
        samples = torch.where((samples > 0) & (samples < 2**31), samples, 0)
    weights = low.new_zeros((low.shape[0], bins, size))
    number = torch.arange(bins, device=low.device, dtype=low.dtype)
    pixel = torch.arange(size, device=low.device)
    base = start[:, None] + number * bin_size[:, None]
    first = torch.zeros_like(base)
    most = samples
    if sampling_ratio <= 0:
        # Of a huge box only the samples that can lie inside the map.
        step = (bin_size / samples)[:, None]
        slack = 3 + 16 * torch.finfo(low.dtype).eps * (base.abs() + bin_size[:, None]) / step
        first = torch.where(samples[:, None] > 8, ((-1 - base) / step - slack).floor(), 0).nan_to_num(0).clamp(min=0)
        most = torch.minimum(samples, ((size + 1) / step + 2 * slack + 2).nan_to_num(0, 0, 0).amax(1))
    for i in range(int(most.max()) if len(most) else 0):
        sample = first + i
        position = base + (sample + 0.5) * bin_size[:, None] / samples[:, None]
        inside = (position >= -1) & (position <= size) & (sample < samples[:, None])
        position = torch.where(inside, position, 0).clamp(min=0)
        lower = position.long().clamp(max=size - 1)
        upper = (lower + 1).clamp(max=size - 1)
        part = torch.where(lower >= size - 1, 0, position - lower)
        for index, weight in ((lower, 1 - part), (upper, part)):
            weights = weights + torch.where((pixel == index[..., None]) & inside[..., None], weight[..., None], 0)
    return weights, samples


def roi_align(
    input: torch.Tensor,
    boxes: torch.Tensor,
    output_size: list[int],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> torch.Tensor:
    images = box_images(boxes, input.shape[0], "roi_align")
    dtype = compute_dtype(input.dtype)
    values = boxes.to(dtype)
    height, width = input.shape[2:]
    rows, samples_h = axis_weights(values[:, 2], values[:, 4], height, output_size[0], spatial_scale, sampling_ratio, aligned)
    columns, samples_w = axis_weights(
        values[:, 1], values[:, 3], width, output_size[1], spatial_scale, sampling_ratio, aligned
    )
    rows = rows / (samples_h * samples_w).clamp(min=1)[:, None, None]
    rows = torch.where((images >= 0)[:, None, None], rows, 0)
    if input.shape[0] == 0:
        output = input.new_zeros((len(boxes), input.shape[1], *output_size))
    else:
        maps = input.to(dtype)[images.clamp(min=0)]
        output = torch.einsum("kph,kchw,kqw->kcpq", rows, maps, columns).to(input.dtype)
    return output.contiguous(memory_format=memory_format(input))


def roi_align_backward(
    grad_output: torch.Tensor,
    boxes: torch.Tensor,
    batch: int,
    height: int,
    width: int,
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
    channels_last: bool,
) -> torch.Tensor:
    images = box_images(boxes, batch, "roi_align_backward")
    dtype = compute_dtype(grad_output.dtype)
    values = boxes.to(dtype)
    bins_h, bins_w = grad_output.shape[2:]
    rows, samples_h = axis_weights(values[:, 2], values[:, 4], height, bins_h, spatial_scale, sampling_ratio, aligned)
    columns, samples_w = axis_weights(values[:, 1], values[:, 3], width, bins_w, spatial_scale, sampling_ratio, aligned)
    rows = rows / (samples_h * samples_w).clamp(min=1)[:, None, None]
    rows = torch.where((images >= 0)[:, None, None], rows, 0)
    each = torch.einsum("kph,kcpq,kqw->kchw", rows, grad_output.to(dtype), columns)
    grad = each.new_zeros((batch, *each.shape[1:]))
    # One image at a time: a scatter by index would have no fixed order on a GPU.
    if len(boxes):
        grad = torch.stack([torch.where((images == n)[:, None, None, None], each, 0).sum(0) for n in range(batch)])
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return grad.to(grad_output.dtype).contiguous(memory_format=layout)
