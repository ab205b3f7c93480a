"""RoI pooling in plain PyTorch, one box and bin after another."""

from __future__ import annotations

import math

import torch

from segkernels._layout import memory_format
from segkernels.reference.roi_align import box_images, compute_dtype

#: Rounded coordinates beyond it are outside of every map.
LIMIT = 2**30


def rounded(value: float) -> int:
    """Half away from zero; NaN is 0 and everything is kept within LIMIT, so that integers hold it."""
    if math.isnan(value):
        return 0
    value = max(-LIMIT, min(LIMIT, value))
    return int(math.floor(abs(value) + 0.5) * math.copysign(1, value))


def bin_ranges(low: int, high: int, bins: int, size: int, dtype: torch.dtype) -> list[tuple[int, int]]:
    """Pixels [begin, end) of each bin along one axis."""
    number = torch.arange(bins + 1, dtype=dtype)
    edge = number * (torch.tensor(max(high - low + 1, 1), dtype=dtype) / bins)
    begin = (edge[:-1].floor().long() + low).clamp(0, size).tolist()
    end = (edge[1:].ceil().long() + low).clamp(0, size).tolist()
    return list(zip(begin, end))


def roi_pool(
    input: torch.Tensor, boxes: torch.Tensor, output_size: list[int], spatial_scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    batch, channels, height, width = input.shape
    images = box_images(boxes, batch, "roi_pool").tolist()
    dtype = compute_dtype(input.dtype)
    corners = (boxes[:, 1:].to(dtype) * spatial_scale).tolist()
    zero, none = input.new_zeros(channels), torch.full((channels,), -1, dtype=torch.int64, device=input.device)
    values, places = [], []
    for image, corner in zip(images, corners):
        x1, y1, x2, y2 = (rounded(value) for value in corner)
        for top, bottom in bin_ranges(y1, y2, output_size[0], height, dtype):
            for left, right in bin_ranges(x1, x2, output_size[1], width, dtype):
                if image < 0 or bottom <= top or right <= left:
                    values.append(zero)
                    places.append(none)
                    continue
                window = input[image, :, top:bottom, left:right].flatten(1)
                # The first of equal values; NaN wins, as in max-pooling.
                place = window.detach().argmax(1)
                values.append(window.gather(1, place[:, None])[:, 0])
                places.append((top + place // (right - left)) * width + left + place % (right - left))
    shape = (len(images), *output_size, channels)
    layout = memory_format(input)
    if not values:
        empty = input.new_zeros((0, channels, *output_size))
        return empty.contiguous(memory_format=layout), empty.long().contiguous(memory_format=layout)
    output, argmax = (torch.stack(parts).view(shape).permute(0, 3, 1, 2) for parts in (values, places))
    return output.contiguous(memory_format=layout), argmax.contiguous(memory_format=layout)


def roi_pool_backward(
    grad_output: torch.Tensor,
    argmax: torch.Tensor,
    boxes: torch.Tensor,
    spatial_scale: float,
    batch: int,
    height: int,
    width: int,
    channels_last: bool,
) -> torch.Tensor:
    images = box_images(boxes, batch, "roi_pool_backward")
    count, channels = grad_output.shape[:2]
    dtype = compute_dtype(grad_output.dtype)
    grad = grad_output.new_zeros((batch, channels, height * width), dtype=dtype)
    flat, places = grad_output.to(dtype).flatten(2), argmax.flatten(2)
    valid = (places >= 0) & (places < height * width) & (images >= 0)[:, None, None]
    for k in range(count if grad.numel() else 0):
        one = torch.zeros_like(grad[0]).scatter_add(1, places[k].clamp(0, height * width - 1), flat[k] * valid[k])
        grad = grad.index_add(0, images[k : k + 1].clamp(min=0), one[None])
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return grad.view(batch, channels, height, width).to(grad_output.dtype).contiguous(memory_format=layout)
