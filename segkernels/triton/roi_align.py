"""RoI Align in Triton, over one map or all levels of a pyramid in one launch. Forward a lane sums an output's samples;
backward a program gathers a tile of a level's map from the boxes that reach it, in their order: no atomics, the same bits in
every run."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from segkernels._layout import is_channels_last, memory_format
from segkernels.triton._regions import (
    BINS,
    BOXES,
    TILE,
    bin_of,
    bins_reach,
    bits,
    box_image,
    box_level,
    coordinates,
    first_sample,
    level_map,
    pixel_weights,
    real,
    rounding,
    sample_axis,
    sample_tap,
    sample_window,
    store_tile,
    tile_of,
)

BLOCK = 256
CHANNELS = 32


@triton.jit
def roi_align_fwd_kernel(
    map_ptrs, sizes, scales_bits, boxes_ptr, output_ptr, batch, channels, bins_h, bins_w, sampling_ratio, chunks,
    level_min, level_max, canonical_scale_bits, canonical_level_bits,
    LEVELS: tl.constexpr, ALIGNED: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    ACC: tl.constexpr, EPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Outputs of one box in the order of memory."""
    program = tl.program_id(0).to(tl.int64)
    k = program // chunks
    box = boxes_ptr + k * 5
    image = box_image(tl.load(box), batch)
    x1, y1, x2, y2 = tl.load(box + 1), tl.load(box + 2), tl.load(box + 3), tl.load(box + 4)
    level = box_level(x1, y1, x2, y2, LEVELS, level_min, level_max, canonical_scale_bits, canonical_level_bits, ACC)
    input_ptr, height, width, scale = level_map(level, map_ptrs, sizes, scales_bits, LEVELS, ACC)
    bins = bins_h * bins_w
    item = (program - k * chunks).to(tl.int32) * BLOCK + tl.arange(0, BLOCK)
    mask = item < bins * channels
    c, bin_y, bin_x = bin_of(item, channels, bins, bins_w, CHANNELS_LAST)
    total = tl.zeros((BLOCK,), ACC)
    if (image >= 0) & (level >= 0) & (height * width > 0):
        top, size_y, samples_y = sample_axis(y1, y2, scale, bins_h, sampling_ratio, ALIGNED, ACC)
        left, size_x, samples_x = sample_axis(x1, x2, scale, bins_w, sampling_ratio, ALIGNED, ACC)
        border = -tl.full((), 1, ACC)
        step_y, slack_y, count_y, few_y = sample_window(top, size_y, samples_y, bins_h, border, real(height, ACC), ACC, EPS)
        step_x, slack_x, count_x, few_x = sample_window(left, size_x, samples_x, bins_w, border, real(width, ACC), ACC, EPS)
        base_y = top + bin_y.to(ACC) * size_y
        base_x = left + bin_x.to(ACC) * size_x
        first_y = first_sample(base_y, step_y, slack_y, samples_y, few_y, border, ACC)
        first_x = first_sample(base_x, step_x, slack_x, samples_x, few_x, border, ACC)
        plane = tl.full((), height, tl.int64) * width
        pixel_step = channels if CHANNELS_LAST else 1
        source = input_ptr + image.to(tl.int64) * channels * plane
        source = source + (c.to(tl.int64) if CHANNELS_LAST else c.to(tl.int64) * plane)
        for i in range(count_y):
            sample_y = first_y + i
            position = base_y + (sample_y.to(ACC) + 0.5) * size_y / samples_y.to(ACC)
            inside_y, low_y, high_y, part_y = sample_tap(position, height, ACC)
            inside_y = inside_y & (sample_y < samples_y) & mask
            upper_row = source + low_y.to(tl.int64) * width * pixel_step
            lower_row = source + high_y.to(tl.int64) * width * pixel_step
            for j in range(count_x):
                sample_x = first_x + j
                position = base_x + (sample_x.to(ACC) + 0.5) * size_x / samples_x.to(ACC)
                inside, low_x, high_x, part_x = sample_tap(position, width, ACC)
                inside = inside & (sample_x < samples_x) & inside_y
                a = tl.load(upper_row + low_x.to(tl.int64) * pixel_step, mask=inside, other=0).to(ACC)
                b = tl.load(upper_row + high_x.to(tl.int64) * pixel_step, mask=inside, other=0).to(ACC)
                d = tl.load(lower_row + low_x.to(tl.int64) * pixel_step, mask=inside, other=0).to(ACC)
                e = tl.load(lower_row + high_x.to(tl.int64) * pixel_step, mask=inside, other=0).to(ACC)
                upper = (1 - part_y) * (1 - part_x) * a + (1 - part_y) * part_x * b
                total += upper + part_y * (1 - part_x) * d + part_y * part_x * e
        total = total / tl.maximum(samples_y.to(ACC) * samples_x.to(ACC), 1)
    tl.store(output_ptr + k * channels * bins + item, total.to(output_ptr.dtype.element_ty), mask=mask)


@triton.jit
def roi_align_bwd_kernel(
    grad_output_ptr, boxes_ptr, map_ptrs, sizes, scales_bits, starts, count, batch, channels, bins_h, bins_w,
    sampling_ratio, level_min, level_max, canonical_scale_bits, canonical_level_bits,
    LEVELS: tl.constexpr, ALIGNED: tl.constexpr, GRAD_LAST: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    ACC: tl.constexpr, EPS: tl.constexpr, TILE: tl.constexpr, CHANNELS: tl.constexpr, BINS: tl.constexpr, BOXES: tl.constexpr,
):  # fmt: skip
    """A tile of one level's map of one image for some channels; ``starts`` tells the first program of each level."""
    level = tl.full((), 0, tl.int32)
    start = tl.full((), 0, tl.int32)
    for i in tl.static_range(1, LEVELS):
        reached = tl.program_id(0) >= starts[i]
        level = tl.where(reached, i, level)
        start = tl.where(reached, starts[i], start)
    grad_input_ptr, height, width, scale = level_map(level, map_ptrs, sizes, scales_bits, LEVELS, ACC)
    image, c, tile_y, tile_x, y, x = tile_of(tl.program_id(0) - start, channels, height, width, TILE, CHANNELS)
    last_y = tile_y + TILE - 1
    last_x = tile_x + TILE - 1
    held = c < channels
    line = tl.arange(0, BINS)[None, :]
    bins = bins_h * bins_w
    grad_step = 1 if GRAD_LAST else bins
    bin_step = channels if GRAD_LAST else 1
    total = tl.zeros((TILE * TILE, CHANNELS), ACC)
    for block in range(tl.cdiv(count, BOXES)):
        number = block * BOXES + tl.arange(0, BOXES)
        some = number < count
        at = boxes_ptr + number.to(tl.int64) * 5
        ids = tl.load(at, mask=some, other=-1)
        x1 = tl.load(at + 1, mask=some, other=0)
        y1 = tl.load(at + 2, mask=some, other=0)
        x2 = tl.load(at + 3, mask=some, other=0)
        y2 = tl.load(at + 4, mask=some, other=0)
        own = box_level(x1, y1, x2, y2, LEVELS, level_min, level_max, canonical_scale_bits, canonical_level_bits, ACC)
        tops, sizes_y, counts_y = sample_axis(y1, y2, scale, bins_h, sampling_ratio, ALIGNED, ACC)
        lefts, sizes_x, counts_x = sample_axis(x1, x2, scale, bins_w, sampling_ratio, ALIGNED, ACC)
        wanted = some & (box_image(ids, batch) == image) & (own == level)
        wanted = wanted & bins_reach(tops, sizes_y, counts_y, 0, bins_h - 1, tile_y, last_y, ACC, EPS)
        wanted = wanted & bins_reach(lefts, sizes_x, counts_x, 0, bins_w - 1, tile_x, last_x, ACC, EPS)
        k = tl.min(tl.where(wanted, number, count), axis=0)
        while k < count:
            box = boxes_ptr + k.to(tl.int64) * 5
            top, size_y, samples_y = sample_axis(
                tl.load(box + 2), tl.load(box + 4), scale, bins_h, sampling_ratio, ALIGNED, ACC
            )
            left, size_x, samples_x = sample_axis(
                tl.load(box + 1), tl.load(box + 3), scale, bins_w, sampling_ratio, ALIGNED, ACC
            )
            source = grad_output_ptr + k.to(tl.int64) * channels * bins + c * grad_step
            for row in range(0, bins_h, BINS):
                weights_y, begin_y, end_y = pixel_weights(
                    y[:, None], row + line, top, size_y, samples_y, bins_h, height, tile_y, last_y, ACC, EPS
                )
                for column in range(0, bins_w, BINS):
                    weights_x, begin_x, end_x = pixel_weights(
                        x[:, None], column + line, left, size_x, samples_x, bins_w, width, tile_x, last_x, ACC, EPS
                    )
                    weights_x = weights_x / tl.maximum(samples_y.to(ACC) * samples_x.to(ACC), 1)
                    for bin_y in range(begin_y, end_y):
                        weight_y = tl.sum(tl.where(line == bin_y, weights_y, 0), axis=1)
                        for bin_x in range(begin_x, end_x):
                            weight = weight_y * tl.sum(tl.where(line == bin_x, weights_x, 0), axis=1)
                            bin = (row + bin_y) * bins_w + column + bin_x
                            grad = tl.load(source + bin * bin_step, mask=held, other=0).to(ACC)
                            total += weight[:, None] * grad[None, :]
            k = tl.min(tl.where(wanted & (number > k), number, count), axis=0)
    place = (y.to(tl.int64) * width + x)[:, None]
    mask = ((y < height) & (x < width))[:, None] & held[None, :]
    store_tile(grad_input_ptr, total, image, c, place, mask, channels, height, width, CHANNELS_LAST)


def _pyramid(spatial_scales, canonical_scale, canonical_level):
    """What the kernels take of the levels' rule."""
    low, high = (int(-math.log2(scale)) for scale in (spatial_scales[0], spatial_scales[-1]))
    return low, high, bits(canonical_scale), bits(canonical_level)


def pool(features, boxes, output_size, spatial_scales, sampling_ratio, aligned, canonical_scale=1.0, canonical_level=0.0):
    """RoI Align over the levels of a pyramid; one map is a pyramid of one level."""
    first = features[0]
    layout = memory_format(first)
    batch, channels = first.shape[:2]
    output = torch.empty((len(boxes), channels, *output_size), dtype=first.dtype, device=first.device, memory_format=layout)
    if output.numel() == 0:
        return output
    chunks = triton.cdiv(output[0].numel(), BLOCK)
    maps = tuple(map.contiguous(memory_format=layout) for map in features)
    roi_align_fwd_kernel[(len(boxes) * chunks,)](
        maps, tuple(size for map in maps for size in map.shape[2:]), tuple(map(bits, spatial_scales)),
        coordinates(boxes, first.dtype), output, batch, channels, *output_size, sampling_ratio, chunks,
        *_pyramid(spatial_scales, canonical_scale, canonical_level),
        LEVELS=len(maps), ALIGNED=aligned, CHANNELS_LAST=is_channels_last(first), BLOCK=BLOCK, **rounding(first.dtype),
    )  # fmt: skip
    return output


def pool_backward(
    grad_output, boxes, batch, sizes, spatial_scales, sampling_ratio, aligned, channels_last,
    canonical_scale=1.0, canonical_level=0.0,
):  # fmt: skip
    """The gradient of every map."""
    layout = memory_format(grad_output)
    grad = grad_output.contiguous(memory_format=layout)
    channels = grad.shape[1]
    last = torch.channels_last if channels_last else torch.contiguous_format
    grads, starts, programs = [], [], 0
    for height, width in zip(sizes[::2], sizes[1::2]):
        shape = (batch, channels, height, width)
        grads.append(torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=last))
        starts.append(programs)
        programs += batch * triton.cdiv(height, TILE) * triton.cdiv(width, TILE) * triton.cdiv(channels, CHANNELS)
    if programs:
        rois = coordinates(boxes, grad.dtype)
        roi_align_bwd_kernel[(programs,)](
            grad, rois, tuple(grads), tuple(sizes), tuple(map(bits, spatial_scales)), tuple(starts), len(rois), batch,
            channels, *grad.shape[2:], sampling_ratio, *_pyramid(spatial_scales, canonical_scale, canonical_level),
            LEVELS=len(grads), ALIGNED=aligned, GRAD_LAST=is_channels_last(grad), CHANNELS_LAST=channels_last,
            TILE=TILE, CHANNELS=CHANNELS, BINS=BINS, BOXES=BOXES, **rounding(grad.dtype),
        )  # fmt: skip
    return grads


def roi_align(input, boxes, output_size, spatial_scale, sampling_ratio, aligned):
    return pool([input], boxes, output_size, [spatial_scale], sampling_ratio, aligned)


def roi_align_backward(
    grad_output, boxes, batch, height, width, spatial_scale, sampling_ratio, aligned, channels_last
):  # fmt: skip
    scales = [spatial_scale]
    return pool_backward(grad_output, boxes, batch, [height, width], scales, sampling_ratio, aligned, channels_last)[0]


def compile_cases():
    """Yields ``(kernel, types of its arguments, its constants)`` for tests/triton/test_compile.py."""
    for value, dtype, last, levels in (
        ("*fp32", torch.float32, False, 1),
        ("*fp64", torch.float64, True, 1),
        ("*bf16", torch.bfloat16, True, 4),
    ):
        types: dict[str, str | tuple[str, ...]] = dict.fromkeys(("output_ptr", "grad_output_ptr"), value)
        types |= {"map_ptrs": (value,) * levels, "scales_bits": ("i64",) * levels}
        types |= {"sizes": ("i32",) * (2 * levels), "starts": ("i32",) * levels}
        types |= {"boxes_ptr": "*fp64" if value == "*fp64" else "*fp32"}
        types |= dict.fromkeys(("canonical_scale_bits", "canonical_level_bits"), "i64")
        constants = {
            "LEVELS": levels,
            "ALIGNED": last,
            "CHANNELS_LAST": last,
            "GRAD_LAST": last,
            "BLOCK": BLOCK,
            **rounding(dtype),
        }
        constants |= {"TILE": TILE, "CHANNELS": CHANNELS, "BINS": BINS, "BOXES": BOXES}
        yield roi_align_fwd_kernel, types, constants
        yield roi_align_bwd_kernel, types, constants
