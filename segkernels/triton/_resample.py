"""What the resampling kernels share: places of elements in memory, torch's source coordinates, and the adjoint.

Coordinates are computed once, into tables, by a launch of their own: what reads them is then as short for a source that
takes a hundred outputs as for one that takes two. Kernels call no other jitted function, whose every call costs Triton's
interpreter ten milliseconds.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl

from segkernels._layout import is_channels_last, memory_format
from segkernels.triton._regions import bits

TAPS = 128  # outputs, and sources, of a program that computes tables


@triton.jit
def split(offset, channels, height, width, CHANNELS_LAST: tl.constexpr):
    """``(n, c, y, x)`` of a memory offset."""
    if CHANNELS_LAST:
        pixel = offset // channels
        c = offset - pixel * channels
        row = pixel // width
        x = pixel - row * width
        n = row // height
        y = row - n * height
    else:
        row = offset // width
        x = offset - row * width
        plane = row // height
        y = row - plane * height
        n = plane // channels
        c = plane - n * channels
    return n, c, y, x


@triton.jit
def place(n, c, y, x, channels, height, width, CHANNELS_LAST: tl.constexpr):
    """The memory offset of an element."""
    if CHANNELS_LAST:
        return ((n * height + y) * width + x) * channels + c
    else:
        return ((n * channels + c) * height + y) * width + x


@triton.jit
def taps_kernel(
    places_ptr, weights_ptr, in_h, in_w, out_h, out_w, scale_h_bits, scale_w_bits,
    MODE: tl.constexpr, STARTS: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Of rows and then of columns: the two sources of each output, STARTS: and from which output on each source, beginning
    with the one before the first, is the lower one; the two weights. csrc/common/bilinear.h and nearest.h say the same."""
    axis = tl.program_id(0)
    block = tl.program_id(1)
    in_size = tl.where(axis == 0, in_h, in_w)
    out_size = tl.where(axis == 0, out_h, out_w)
    scale = tl.where(axis == 0, scale_h_bits, scale_w_bits).to(tl.int64).to(tl.float64, bitcast=True).to(ACC)
    low_ptr = places_ptr + axis * (2 * out_h + in_h + 2)
    low_weight_ptr = weights_ptr + axis * 2 * out_h
    source = block * BLOCK + tl.arange(0, BLOCK)
    start = tl.full((BLOCK,), 0, tl.int32)
    for chunk in range(0 if STARTS else block, (out_size + BLOCK - 1) // BLOCK if STARTS else block + 1):
        output = chunk * BLOCK + tl.arange(0, BLOCK)
        position = output.to(ACC)
        same = in_size == out_size
        if MODE == "nearest":
            low = tl.minimum((output.to(tl.float32) * scale.to(tl.float32)).to(tl.int32), in_size - 1)
            low = tl.where(out_size == 2 * in_size, output // 2, low)
            low = tl.where(same, output, low)
            high = low
            high_weight = position * 0
        else:
            if MODE == "align_corners":
                coordinate = position * scale
            else:
                coordinate = tl.fma(position + 0.5, position * 0 + scale, position * 0 - 0.5)
            coordinate = tl.maximum(coordinate, 0.0)
            low = tl.minimum(coordinate.to(tl.int32), in_size - 1)
            high_weight = tl.minimum(coordinate - low.to(ACC), 1.0)
            low = tl.where(same, output, low)
            high = tl.where(same, output, tl.minimum(low + 1, in_size - 1))
            high_weight = tl.where(same, 0.0, high_weight)
            if STARTS:  # what an output gives to a single source counts as low
                high_weight = tl.where(high == low, 0.0, high_weight)
        inside = output < out_size
        if chunk == block:
            tl.store(low_ptr + output, low, mask=inside)
            tl.store(low_ptr + out_size + output, high, mask=inside)
            tl.store(low_weight_ptr + output, 1 - high_weight, mask=inside)
            tl.store(low_weight_ptr + out_size + output, high_weight, mask=inside)
        if STARTS:
            start += tl.sum((inside[None, :] & (low[None, :] < source[:, None] - 1)).to(tl.int32), 1)
    if STARTS:
        tl.store(low_ptr + 2 * out_size + source, start, mask=source < in_size + 2)


@triton.jit
def gather_rows_kernel(
    grad_output_ptr, sums_ptr, places_ptr, weights_ptr, lines, row_elements, tiles, in_h, out_h, two, count,
    ACC: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """[images, out_h, row] to [images, in_h, row]: the adjoint of rows. An output gives its low weight to one source and,
    where ``two`` says so, its high weight to the next; at most ``count`` have one lower source."""
    program = tl.program_id(0)
    line = (program // tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    place = program % tiles * BLOCK + tl.arange(0, BLOCK)[None, :]
    known = line < lines
    image = line // in_h
    starts_ptr = places_ptr + 2 * out_h + (line - image * in_h)
    begin = tl.load(starts_ptr + 1, mask=known, other=0)
    end = tl.load(starts_ptr + 2, mask=known, other=0)
    inside = known & (place < row_elements)
    from_ptr = grad_output_ptr + image * out_h * row_elements + place
    result = tl.full((ROWS, BLOCK), 0, ACC)
    if two != 0:
        before = tl.load(starts_ptr, mask=known, other=0)
        for i in range(count):
            y = before + i
            reads = y < begin
            weight = tl.load(weights_ptr + out_h + y, mask=reads, other=0.0)
            grad = tl.load(from_ptr + y.to(tl.int64) * row_elements, mask=inside & reads, other=0.0)
            result += grad.to(ACC) * weight
    for i in range(count):
        y = begin + i
        reads = y < end
        weight = tl.load(weights_ptr + y, mask=reads, other=0.0)
        grad = tl.load(from_ptr + y.to(tl.int64) * row_elements, mask=inside & reads, other=0.0)
        result += grad.to(ACC) * weight
    tl.store(sums_ptr + line * row_elements + place, result, mask=inside)


@triton.jit
def gather_columns_kernel(
    sums_ptr, grad_input_ptr, places_ptr, weights_ptr, lines, channels, tiles, in_h, in_w, out_h, out_w, two, count,
    CHANNELS_LAST: tl.constexpr, ACC: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """[images, in_h, out_w, channels] to [images, in_h, in_w, channels]: the adjoint of columns."""
    program = tl.program_id(0)
    line = (program // tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    place = program % tiles * BLOCK + tl.arange(0, BLOCK)[None, :]
    known = place < in_w * channels
    source = place // channels if CHANNELS_LAST else place
    starts_ptr = places_ptr + 2 * out_h + in_h + 2 + 2 * out_w + source
    begin = tl.load(starts_ptr + 1, mask=known, other=0)
    end = tl.load(starts_ptr + 2, mask=known, other=0)
    inside = known & (line < lines)
    weights_ptr += 2 * out_h
    from_ptr = sums_ptr + line * out_w * channels + (place - source * channels)
    result = tl.full((ROWS, BLOCK), 0, ACC)
    if two != 0:
        before = tl.load(starts_ptr, mask=known, other=0)
        for i in range(count):
            x = before + i
            reads = x < begin
            weight = tl.load(weights_ptr + out_w + x, mask=reads, other=0.0)
            result += tl.load(from_ptr + x * channels, mask=inside & reads, other=0.0) * weight
    for i in range(count):
        x = begin + i
        reads = x < end
        weight = tl.load(weights_ptr + x, mask=reads, other=0.0)
        result += tl.load(from_ptr + x * channels, mask=inside & reads, other=0.0) * weight
    to_ptr = grad_input_ptr + line * in_w * channels + place
    tl.store(to_ptr, result.to(grad_input_ptr.dtype.element_ty), mask=inside)


def acc_type(dtype: torch.dtype) -> tuple[torch.dtype, tl.dtype]:
    return (torch.float64, tl.float64) if dtype == torch.float64 else (torch.float32, tl.float32)


def bilinear_mode(align_corners: bool) -> str:
    return "align_corners" if align_corners else "bilinear"


def bilinear_scale(
    in_size: int, out_size: int, align_corners: bool, scale_factor: float | None, dtype: torch.dtype
) -> tuple[float, int]:
    """Source coordinates per output coordinate, rounded as ``dtype`` has it, and the bits of that float64."""
    if align_corners:
        ratio = (in_size - 1) / (out_size - 1) if out_size > 1 else 0.0
    elif scale_factor is not None and scale_factor > 0:
        ratio = 1.0 / scale_factor
    else:
        ratio = in_size / out_size
    scale = ratio if dtype == torch.float64 else struct.unpack("f", struct.pack("f", ratio))[0]
    return scale, bits(scale)


def nearest_scale(in_size: int, out_size: int, scale_factor: float | None) -> tuple[float, int]:
    """The same for nearest-neighbour resampling, whose coordinates are float32 for every dtype."""
    return bilinear_scale(in_size, out_size, False, scale_factor, torch.float32)


def taps(
    mode: str,
    in_size: Sequence[int],
    out_size: Sequence[int],
    scale_bits: Sequence[int],
    acc: tl.dtype,
    starts: bool,
    device: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tables of places and weights, see taps_kernel."""
    places = torch.empty(2 * sum(out_size) + sum(in_size) + 4, dtype=torch.int32, device=device)
    weights = torch.empty(2 * sum(out_size), dtype=torch.float64 if acc == tl.float64 else torch.float32, device=device)
    longest = max(*out_size, *(size + 2 for size in in_size)) if starts else max(out_size)
    taps_kernel[(2, triton.cdiv(longest, TAPS))](
        places, weights, *in_size, *out_size, *scale_bits, MODE=mode, STARTS=starts, ACC=acc, BLOCK=TAPS
    )
    return places, weights


def launch_over(lines: int, row: int) -> tuple[tuple[int], int, dict[str, int]]:
    """Grid, tiles of a row, and the block's rows and columns: for so many rows of so many elements."""
    block = min(256, max(16, triton.next_power_of_2(row)))
    rows = 2048 // block
    tiles = triton.cdiv(row, block)
    return (triton.cdiv(lines, rows) * tiles,), tiles, {"ROWS": rows, "BLOCK": block}


def _longest_group(in_size: int, out_size: int, scale: float) -> int:
    """At least as many outputs as have one lower source. Rounding moves an end by less than one, of very many by more."""
    inverse = 1.0 / scale if scale else 0.0
    if in_size == out_size:
        return 1
    rounding = 1 + math.ceil(out_size * 2.0**-22)
    remaining = out_size - math.floor((in_size - 1) * inverse)  # all go to the last source
    return min(out_size, max(math.ceil(1.5 * inverse), remaining, 2) + 1 + rounding)


def gather_gradient(
    mode: str, grad_output: torch.Tensor, input_size: Sequence[int], scales: Sequence[tuple[float, int]]
) -> torch.Tensor:
    """Backward of a resampling in either mode; ``scales`` as bilinear_scale gives them, of rows and columns."""
    layout = memory_format(grad_output)
    n, c, out_h, out_w = grad_output.shape
    in_h, in_w = input_size
    device = grad_output.device
    grad_input = torch.empty((n, c, in_h, in_w), dtype=grad_output.dtype, device=device, memory_format=layout)
    if grad_input.numel() == 0:
        return grad_input
    last = is_channels_last(grad_output)
    images, channels = (n, c) if last else (n * c, 1)
    dtype, acc = acc_type(grad_output.dtype)
    tables = taps(mode, (in_h, in_w), (out_h, out_w), [scale_bits for _, scale_bits in scales], acc, True, device)
    sums = torch.empty(images * in_h * out_w * channels, dtype=dtype, device=device)
    scale_h, scale_w = (
        0.5 if mode == "nearest" and o == 2 * i else s for (s, _), i, o in zip(scales, input_size, (out_h, out_w))
    )
    lines = images * in_h
    grid, tiles, blocks = launch_over(lines, out_w * channels)
    gather_rows_kernel[grid](
        grad_output.contiguous(memory_format=layout), sums, *tables, lines, out_w * channels, tiles, in_h, out_h,
        int(mode != "nearest" and in_h != out_h), _longest_group(in_h, out_h, scale_h), ACC=acc, **blocks,
    )  # fmt: skip
    grid, tiles, blocks = launch_over(lines, in_w * channels)
    gather_columns_kernel[grid](
        sums, grad_input, *tables, lines, channels, tiles, in_h, in_w, out_h, out_w,
        int(mode != "nearest" and in_w != out_w), _longest_group(in_w, out_w, scale_w),
        CHANNELS_LAST=last, ACC=acc, **blocks,
    )  # fmt: skip
    return grad_input
