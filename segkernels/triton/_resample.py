"""What the resampling kernels share: places of elements in memory, and torch's source coordinates."""

from __future__ import annotations

import math
import struct

import torch
import triton
import triton.language as tl


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
def bilinear_tap(output, in_size, out_size, scale_bits, ALIGN_CORNERS: tl.constexpr, ACC: tl.constexpr):
    """``(low, high, weight of high)``; csrc/common/bilinear.h says the same."""
    scale = scale_bits.to(tl.int64).to(tl.float64, bitcast=True).to(ACC)
    position = output.to(ACC)
    if ALIGN_CORNERS:
        source = position * scale
    else:
        source = tl.fma(position + 0.5, scale + tl.zeros_like(position), tl.zeros_like(position) - 0.5)
    source = tl.maximum(source, 0.0)
    low = tl.minimum(source.to(tl.int64), in_size - 1)
    high = tl.minimum(low + 1, in_size - 1)
    weight = tl.minimum(source - low.to(ACC), 1.0)
    same = in_size == out_size
    low = tl.where(same, output, low)
    return low, tl.where(same, output, high), tl.where(same, 0.0, weight).to(ACC)


def acc_type(dtype: torch.dtype) -> tuple[torch.dtype, tl.dtype]:
    return (torch.float64, tl.float64) if dtype == torch.float64 else (torch.float32, tl.float32)


def bilinear_scale(
    in_size: int, out_size: int, align_corners: bool, scale_factor: float | None, dtype: torch.dtype
) -> tuple[float, int]:
    """Source coordinates per output coordinate, rounded as ``dtype`` has it, and the bits of that float64: Triton hands
    Python's floats over in float32."""
    if align_corners:
        ratio = (in_size - 1) / (out_size - 1) if out_size > 1 else 0.0
    elif scale_factor is not None and scale_factor > 0:
        ratio = 1.0 / scale_factor
    else:
        ratio = in_size / out_size
    scale = ratio if dtype == torch.float64 else struct.unpack("f", struct.pack("f", ratio))[0]
    return scale, struct.unpack("q", struct.pack("d", scale))[0]


def candidates(in_size: int, out_size: int, scale: float, before: float) -> tuple[float, int]:
    """Where the outputs that may read a source coordinate lie: ``count`` of them from ``(source - before) * inverse`` on,
    less 3 for rounding. The kernel asks each of them."""
    if scale == 0.0 or in_size == out_size:
        return (0.0, out_size) if in_size != out_size else (1.0, math.ceil(before) + 6)
    inverse = 1.0 / scale
    beyond = out_size - math.floor((in_size - 1 - before) * inverse) + 4  # the last coordinate takes all that is left
    return inverse, max(math.ceil((before + 1) * inverse) + 6, beyond)
