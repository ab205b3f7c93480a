"""What the kernels of regions share: the boxes' images, levels and samples; csrc/common/roi_align.h says the same."""

from __future__ import annotations

import struct

import torch
import triton
import triton.language as tl

#: Pixels a side of the tile of a gradient that a program gathers.
TILE = 8
#: Bins along an axis whose weights it holds at once.
BINS = 16
#: Boxes that a program looks at together for those that reach its tile.
BOXES = 64


def bits(value: float) -> int:
    """Those of the float64: Triton hands Python's floats over in float32."""
    return struct.unpack("q", struct.pack("d", value))[0]


@triton.jit
def real(value, ACC: tl.constexpr):
    """Of an integer argument, which is no tensor where it is 1."""
    return tl.full((), value, ACC)


@triton.jit
def from_bits(value, ACC: tl.constexpr):
    return tl.full((), value, tl.int64).to(tl.float64, bitcast=True).to(ACC)


@triton.jit
def divide(a, b, ACC: tl.constexpr):
    """Correctly rounded, as the number of samples of a box whose bins are whole pixels needs it."""
    if ACC == tl.float64:
        return a / b
    else:
        return tl.div_rn(a, b)


@triton.jit
def bin_of(item, channels, bins, bins_w, CHANNELS_LAST: tl.constexpr):
    """``(c, bin_y, bin_x)`` of a box's outputs in the order of memory."""
    if CHANNELS_LAST:
        bin = item // channels
        c = item - bin * channels
    else:
        c = item // bins
        bin = item - c * bins
    bin_y = bin // bins_w
    return c, bin_y, bin - bin_y * bins_w


@triton.jit
def tile_of(program, channels, height, width, TILE: tl.constexpr, CHANNELS: tl.constexpr):
    """``(image, c, tile_y, tile_x, y, x)``: the channels and the tile, its first pixel and all, that a program gathers."""
    slabs = tl.cdiv(channels, CHANNELS)
    tiles_w = tl.cdiv(width, TILE)
    rest = program // slabs
    c = (program - rest * slabs) * CHANNELS + tl.arange(0, CHANNELS)
    row_of_tiles = rest // tiles_w
    tile_x = (rest - row_of_tiles * tiles_w) * TILE
    image = row_of_tiles // tl.cdiv(height, TILE)
    tile_y = (row_of_tiles - image * tl.cdiv(height, TILE)) * TILE
    pixel = tl.arange(0, TILE * TILE)
    return image, c, tile_y, tile_x, tile_y + pixel // TILE, tile_x + pixel % TILE


@triton.jit
def store_tile(grad_input_ptr, total, image, c, place, mask, channels, height, width, CHANNELS_LAST: tl.constexpr):
    plane = tl.full((), height, tl.int64) * width
    if CHANNELS_LAST:
        offset = place * channels + c[None, :]
    else:
        offset = c.to(tl.int64)[None, :] * plane + place
    target = grad_input_ptr + image.to(tl.int64) * channels * plane + offset
    tl.store(target, total.to(grad_input_ptr.dtype.element_ty), mask=mask)


@triton.jit
def box_image(id, batch):
    """-1 where it names none."""
    valid = (id > -1) & (id < batch)
    return tl.where(valid, id, -1).to(tl.int32)


@triton.jit
def box_level(x1, y1, x2, y2, levels, level_min, level_max, scale_bits, level_bits, ACC: tl.constexpr):
    """Equation 1 of Lin et al. 2017 with torchvision's epsilon; -1 for a box without a level."""
    area = (x2 - x1) * (y2 - y1)
    side = tl.sqrt(area) if ACC == tl.float64 else tl.sqrt_rn(area)
    level = tl.log2(divide(side, from_bits(scale_bits, ACC) + tl.zeros_like(side), ACC))
    level = tl.floor(from_bits(level_bits, ACC) + level + 1e-6)
    clamped = tl.minimum(tl.maximum(level, real(level_min, ACC)), real(level_max, ACC))
    number = tl.where(level == level, clamped, real(level_min, ACC) - 1).to(tl.int32) - level_min
    number = tl.where((number >= 0) & (number < levels), number, -1)
    return tl.where(levels == 1, 0, number)


@triton.jit
def level_map(level, map_ptrs, sizes, scales_bits, LEVELS: tl.constexpr, ACC: tl.constexpr):
    """``(pointer, height, width, scale)`` of one level; tuples are indexed by constants only. Level 0's for -1."""
    map = map_ptrs[0]
    height = tl.full((), sizes[0], tl.int32)
    width = tl.full((), sizes[1], tl.int32)
    scale = from_bits(scales_bits[0], ACC)
    for i in tl.static_range(1, LEVELS):
        map = tl.where(level == i, map_ptrs[i], map)
        height = tl.where(level == i, sizes[2 * i], height)
        width = tl.where(level == i, sizes[2 * i + 1], width)
        scale = tl.where(level == i, from_bits(scales_bits[i], ACC), scale)
    return map, height, width, scale


@triton.jit
def sample_axis(low, high, scale, bins, sampling_ratio, ALIGNED: tl.constexpr, ACC: tl.constexpr):
    """``(start, bin, samples)`` of one axis: sample i of bin b lies at start + b * bin + (i + 0.5) * bin / samples."""
    offset = 0.5 if ALIGNED else 0.0
    start = low * scale - offset
    extent = (high * scale - offset) - start
    if not ALIGNED:
        extent = tl.where(extent < 1, 1, extent).to(ACC)
    bin = divide(extent, real(bins, ACC) + tl.zeros_like(extent), ACC)
    adaptive = tl.ceil(bin)
    adaptive = tl.where((adaptive > 0) & (adaptive < 2147483648.0), adaptive, 0).to(tl.int64)
    return start, bin, tl.where(sampling_ratio > 0, tl.full((), sampling_ratio, tl.int64), adaptive)


@triton.jit
def sample_window(start, bin, samples, bins, low, high, ACC: tl.constexpr, EPS: tl.constexpr):
    """``(step, slack, count)``: of a bin at ``base``, at most ``count`` samples from ``(low - base) / step - slack`` on can
    lie from ``low`` to ``high``; a huge box has millions."""
    step = bin / samples.to(ACC)
    reach = tl.abs(start) + (real(bins, ACC) + 1) * tl.abs(bin)
    slack = 3 + 16 * EPS * reach / step
    count = (high - low) / step + 2 * slack + 2
    # Comparisons that NaN fails leave the whole range.
    few = (samples > 8) & (step > 0) & (count < samples.to(ACC))
    return step, slack, tl.where(few, count, samples.to(ACC)).to(tl.int64), few


@triton.jit
def first_sample(base, step, slack, samples, few, low, ACC: tl.constexpr):
    first = tl.floor((low - base) / step - slack)
    first = tl.where(few & (first > 0), first, 0)
    return tl.where(first < samples.to(ACC), first, samples.to(ACC)).to(tl.int64)


@triton.jit
def sample_tap(position, size, ACC: tl.constexpr):
    """``(inside, low, high, weight of high)``; a sample outside the map counts as zero."""
    inside = (position >= -1) & (position <= real(size, ACC))
    position = tl.maximum(tl.where(inside, position, 0).to(ACC), 0)
    low = tl.minimum(position.to(tl.int64), size - 1)
    high = tl.minimum(low + 1, size - 1)
    return inside, low, high, tl.where(low >= size - 1, 0, position - low.to(ACC)).to(ACC)


@triton.jit
def bins_reach(start, bin, samples, first, last, low, high, ACC: tl.constexpr, EPS: tl.constexpr):
    """False only where no sample of bins from ``first`` to ``last`` reads a pixel from ``low`` to ``high``."""
    a = start + first * bin
    b = start + (last + 1) * bin
    slack = 2 + 16 * EPS * (tl.abs(a) + tl.abs(b))
    below = tl.where(a > b, b, a) - slack
    above = tl.where(a > b, a, b) + slack
    return (samples > 0) & (above >= real(low, ACC)) & (below <= real(high, ACC))


@triton.jit
def pixel_weights(pixel, number, start, bin, samples, bins, size, low, high, ACC: tl.constexpr, EPS: tl.constexpr):
    """How much of each pixel, ``[P, 1]`` from ``low`` to ``high``, each bin, ``[1, B]``, takes over all its samples along one
    axis; and from where to where bins take any."""
    base = start + number.to(ACC) * bin
    # The last pixel also takes what lies up to a pixel behind it, the first one what lies before.
    before = tl.where(low <= 0, -1, real(low, ACC) - 1).to(ACC)
    after = tl.where(high >= size - 1, real(size, ACC), real(high, ACC) + 1)
    step, slack, count, few = sample_window(start, bin, samples, bins, before, after, ACC, EPS)
    first = first_sample(base, step, slack, samples, few, before, ACC)
    weights = tl.zeros_like(pixel + number).to(ACC)
    for i in range(count):
        sample = first + i
        position = base + (sample.to(ACC) + 0.5) * bin / samples.to(ACC)
        inside, at, next, part = sample_tap(position, size, ACC)
        inside = inside & (sample < samples) & (number < bins)
        weights += tl.where(pixel == at, tl.where(inside, 1 - part, 0), 0)
        weights += tl.where(pixel == next, tl.where(inside & (next != at), part, 0), 0)
    taken = tl.max(tl.where(weights != 0, 1, 0), axis=0)
    place = tl.arange(0, number.shape[1])
    begin = tl.min(tl.where(taken > 0, place, number.shape[1]), axis=0)
    return weights, begin, tl.max(tl.where(taken > 0, place + 1, 0), axis=0)


def rounding(dtype: torch.dtype) -> dict[str, object]:
    """The constants of kernels: the type of coordinates and sums, and its epsilon."""
    wide = dtype == torch.float64
    return {"ACC": tl.float64 if wide else tl.float32, "EPS": 2.0**-52 if wide else 2.0**-23}


def coordinates(boxes: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return boxes.to(torch.float64 if dtype == torch.float64 else torch.float32).contiguous()
