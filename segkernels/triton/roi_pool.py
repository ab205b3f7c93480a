"""RoI pooling in Triton. Forward a lane looks at the pixels of its bin; backward a program gathers a tile of the map from the
boxes that reach it, in their order: no atomics, the same bits in every run."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from segkernels._layout import is_channels_last, memory_format
from segkernels.triton._regions import (
    BOXES,
    TILE,
    bin_of,
    bits,
    box_image,
    coordinates,
    divide,
    from_bits,
    real,
    rounding,
    store_tile,
    tile_of,
)

BLOCK = 256
CHANNELS = 32


@triton.jit
def _rounded(value):
    """Half away from zero; beyond 2^30 is outside of every map, and NaN is 0."""
    wide = value.to(tl.float64)
    wide = tl.where(wide == wide, tl.minimum(tl.maximum(wide, -1073741824.0), 1073741824.0), 0.0)
    whole = tl.floor(tl.abs(wide) + 0.5).to(tl.int64)
    return tl.where(wide < 0, -whole, whole)


@triton.jit
def _pool_axis(low, high, scale_bits, bins, ACC: tl.constexpr):
    """``(start, size of a bin)`` of one axis of a box."""
    scale = from_bits(scale_bits, ACC)
    start = _rounded(low * scale)
    extent = tl.maximum(_rounded(high * scale) - start + 1, 1)
    size = extent.to(ACC)
    return start, divide(size, real(bins, ACC) + tl.zeros_like(size), ACC)


@triton.jit
def _pixels(start, bin, number, size, ACC: tl.constexpr):
    """Those of a bin that lie in the map: ``(begin, end)``."""
    begin = tl.floor(number.to(ACC) * bin).to(tl.int64) + start
    end = tl.ceil((number + 1).to(ACC) * bin).to(tl.int64) + start
    return tl.minimum(tl.maximum(begin, 0), size), tl.minimum(tl.maximum(end, 0), size)


@triton.jit
def roi_pool_fwd_kernel(
    input_ptr, boxes_ptr, output_ptr, argmax_ptr, batch, channels, height, width, scale_bits, bins_h, bins_w, chunks,
    CHANNELS_LAST: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Outputs of one box in the order of memory."""
    program = tl.program_id(0).to(tl.int64)
    k = program // chunks
    box = boxes_ptr + k * 5
    image = box_image(tl.load(box), batch)
    bins = bins_h * bins_w
    item = (program - k * chunks).to(tl.int32) * BLOCK + tl.arange(0, BLOCK)
    mask = item < bins * channels
    c, bin_y, bin_x = bin_of(item, channels, bins, bins_w, CHANNELS_LAST)
    best = tl.zeros((BLOCK,), ACC)
    place = tl.full((BLOCK,), -1, tl.int64)
    if image >= 0:
        top, size_y = _pool_axis(tl.load(box + 2), tl.load(box + 4), scale_bits, bins_h, ACC)
        left, size_x = _pool_axis(tl.load(box + 1), tl.load(box + 3), scale_bits, bins_w, ACC)
        begin_y, end_y = _pixels(top, size_y, bin_y, height, ACC)
        begin_x, end_x = _pixels(left, size_x, bin_x, width, ACC)
        plane = tl.full((), height, tl.int64) * width
        pixel_step = channels if CHANNELS_LAST else 1
        source = input_ptr + image.to(tl.int64) * channels * plane
        source = source + (c.to(tl.int64) if CHANNELS_LAST else c.to(tl.int64) * plane)
        for i in range(tl.max(end_y - begin_y, axis=0)):
            y = begin_y + i
            for j in range(tl.max(end_x - begin_x, axis=0)):
                x = begin_x + j
                inside = mask & (y < end_y) & (x < end_x)
                value = tl.load(source + (y * width + x) * pixel_step, mask=inside, other=0).to(ACC)
                # The first maximum stays, and the first NaN.
                take = inside & ((place < 0) | (value > best) | ((value != value) & (best == best)))
                best = tl.where(take, value, best)
                place = tl.where(take, y * width + x, place)
    entry = k * channels * bins + item
    tl.store(output_ptr + entry, best.to(output_ptr.dtype.element_ty), mask=mask)
    tl.store(argmax_ptr + entry, place, mask=mask)


@triton.jit
def roi_pool_bwd_kernel(
    grad_output_ptr, argmax_ptr, boxes_ptr, grad_input_ptr, count, batch, channels, height, width, scale_bits, bins_h, bins_w,
    GRAD_LAST: tl.constexpr, CHANNELS_LAST: tl.constexpr, ACC: tl.constexpr,
    TILE: tl.constexpr, CHANNELS: tl.constexpr, BOXES: tl.constexpr,
):  # fmt: skip
    """A tile of one image's map for some channels."""
    image, c, tile_y, tile_x, y, x = tile_of(tl.program_id(0), channels, height, width, TILE, CHANNELS)
    place = (y.to(tl.int64) * width + x)[:, None]
    mask = ((y < height) & (x < width))[:, None] & (c < channels)[None, :]
    held = c < channels
    bins = bins_h * bins_w
    grad_step = 1 if GRAD_LAST else bins
    bin_step = channels if GRAD_LAST else 1
    total = tl.zeros((TILE * TILE, CHANNELS), ACC)
    for block in range(tl.cdiv(count, BOXES)):
        number = block * BOXES + tl.arange(0, BOXES)
        some = number < count
        at = boxes_ptr + number.to(tl.int64) * 5
        tops, sizes_y = _pool_axis(tl.load(at + 2, some, 0), tl.load(at + 4, some, 0), scale_bits, bins_h, ACC)
        lefts, sizes_x = _pool_axis(tl.load(at + 1, some, 0), tl.load(at + 3, some, 0), scale_bits, bins_w, ACC)
        above, first_end = _pixels(tops, sizes_y, tl.zeros_like(number), height, ACC)
        last_begin, below = _pixels(tops, sizes_y, tl.zeros_like(number) + bins_h - 1, height, ACC)
        before, first_end = _pixels(lefts, sizes_x, tl.zeros_like(number), width, ACC)
        last_begin, behind = _pixels(lefts, sizes_x, tl.zeros_like(number) + bins_w - 1, width, ACC)
        wanted = some & (box_image(tl.load(at, some, -1), batch) == image)
        wanted = wanted & (below > tile_y) & (above < tile_y + TILE) & (behind > tile_x) & (before < tile_x + TILE)
        k = tl.min(tl.where(wanted, number, count), axis=0)
        while k < count:
            box = boxes_ptr + k.to(tl.int64) * 5
            top, size_y = _pool_axis(tl.load(box + 2), tl.load(box + 4), scale_bits, bins_h, ACC)
            left, size_x = _pool_axis(tl.load(box + 1), tl.load(box + 3), scale_bits, bins_w, ACC)
            entry = k.to(tl.int64) * channels * bins + c * grad_step
            for bin_y in range(bins_h):
                begin_y, end_y = _pixels(top, size_y, tl.full((), bin_y, tl.int32), height, ACC)
                if (end_y > tile_y) & (begin_y < tile_y + TILE):
                    for bin_x in range(bins_w):
                        begin_x, end_x = _pixels(left, size_x, tl.full((), bin_x, tl.int32), width, ACC)
                        if (end_x > tile_x) & (begin_x < tile_x + TILE):
                            bin = (bin_y * bins_w + bin_x) * bin_step
                            largest = tl.load(argmax_ptr + entry + bin, mask=held, other=-1)[None, :]
                            grad = tl.load(grad_output_ptr + entry + bin, mask=held, other=0).to(ACC)[None, :]
                            total += tl.where(largest == place, grad, 0)
            k = tl.min(tl.where(wanted & (number > k), number, count), axis=0)
    store_tile(grad_input_ptr, total, image, c, place, mask, channels, height, width, CHANNELS_LAST)


def _types(dtype):
    return {"ACC": rounding(dtype)["ACC"]}


def roi_pool(input, boxes, output_size, spatial_scale):
    layout = memory_format(input)
    batch, channels, height, width = input.shape
    shape = (len(boxes), channels, *output_size)
    output = torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=layout)
    argmax = torch.empty_like(output, dtype=torch.int64)
    if output.numel():
        chunks = triton.cdiv(output[0].numel(), BLOCK)
        roi_pool_fwd_kernel[(len(boxes) * chunks,)](
            input.contiguous(memory_format=layout), coordinates(boxes, input.dtype), output, argmax, batch, channels,
            height, width, bits(spatial_scale), *output_size, chunks,
            CHANNELS_LAST=is_channels_last(input), BLOCK=BLOCK, **_types(input.dtype),
        )  # fmt: skip
    return output, argmax


def roi_pool_backward(grad_output, argmax, boxes, spatial_scale, batch, height, width, channels_last):
    layout = memory_format(grad_output)
    grad = grad_output.contiguous(memory_format=layout)
    channels = grad.shape[1]
    last = torch.channels_last if channels_last else torch.contiguous_format
    shape = (batch, channels, height, width)
    grad_input = torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=last)
    if grad_input.numel():
        tiles = triton.cdiv(height, TILE) * triton.cdiv(width, TILE)
        roi_pool_bwd_kernel[(batch * tiles * triton.cdiv(channels, CHANNELS),)](
            grad, argmax.contiguous(memory_format=layout), coordinates(boxes, grad.dtype), grad_input, len(boxes), batch,
            channels, height, width, bits(spatial_scale), *grad.shape[2:],
            GRAD_LAST=is_channels_last(grad), CHANNELS_LAST=channels_last, TILE=TILE, CHANNELS=CHANNELS, BOXES=BOXES,
            **_types(grad.dtype),
        )  # fmt: skip
    return grad_input


def compile_cases():
    """Yields ``(kernel, types of its arguments, its constants)`` for tests/triton/test_compile.py."""
    for value, dtype, last in (
        ("*fp32", torch.float32, False),
        ("*fp64", torch.float64, True),
        ("*bf16", torch.bfloat16, True),
    ):
        types = dict.fromkeys(("input_ptr", "output_ptr", "grad_output_ptr", "grad_input_ptr"), value)
        types |= {"boxes_ptr": "*fp64" if value == "*fp64" else "*fp32", "argmax_ptr": "*i64", "scale_bits": "i64"}
        constants = {"CHANNELS_LAST": last, "GRAD_LAST": last, "BLOCK": BLOCK, **_types(dtype)}
        constants |= {"TILE": TILE, "CHANNELS": CHANNELS, "BOXES": BOXES}
        yield roi_pool_fwd_kernel, types, constants
        yield roi_pool_bwd_kernel, types, constants
