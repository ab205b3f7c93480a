"""Pastes masks into the image in Triton: csrc/common/paste_masks.h says the same, rounded alike."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from segkernels.triton._boxes import EXACT, acc
from segkernels.triton._regions import bits, divide, from_bits, real

BLOCK = 1024


@triton.jit
def _taps(pixel, low, high, size, scale_size, image_size, STYLE: tl.constexpr, ACC: tl.constexpr):
    """``(inside, place, its weight, the next one's)`` of each pixel along one axis, in the mask with a border of zeros."""
    if STYLE == 0:
        # The bordered mask resized to whole pixels; the scale is that of the width along both axes.
        scale = divide(real(scale_size, tl.float64) + 2, real(scale_size, tl.float64), tl.float64).to(ACC)
        half = (high - low) * 0.5 * scale
        center = (high + low) * 0.5
        begin, end = center - half, center + half
        finite = (begin - begin == 0) & (end - end == 0)
        # Clamped before the conversion.
        far = 2.0**60
        start = tl.minimum(tl.maximum(tl.where(finite, begin, 0).to(ACC), -far), far).to(tl.int64)
        stop = tl.minimum(tl.maximum(tl.where(finite, end, 0).to(ACC), -far), far).to(tl.int64) + 1
        count = tl.maximum(stop - start, 1)
        inside = (pixel >= start) & (pixel < stop) & (pixel < tl.where(finite, image_size, 0))
        ratio = divide(real(size, ACC) + 2, count.to(ACC), ACC)
        at = tl.where(inside, pixel - start, 0).to(ACC)
        source = tl.fma(ratio + tl.zeros_like(at), at + 0.5, tl.zeros_like(at) - 0.5)
        source = tl.maximum(source, 0)
        place = tl.minimum(source.to(tl.int64), size + 1)
        part = tl.minimum(source - place.to(ACC), 1)
        same = count == size + 2
        place = tl.where(same, tl.where(inside, pixel - start, 0), place)
        return inside, place, tl.where(same, 1, 1 - part).to(ACC), tl.where(same, 0, part).to(ACC)
    else:
        # grid_sample at the pixels' centres.
        extent = high - low
        grid = divide(pixel.to(ACC) + 0.5 - low, extent + tl.zeros_like(pixel).to(ACC), ACC) * 2 - 1
        source = ((grid + 1) * real(size, ACC) - 1) / 2
        finite = (extent > 0) & (extent - extent == 0)
        inside = (source > -1) & (source < real(size, ACC)) & (pixel < tl.where(finite, image_size, 0))
        floor = tl.floor(tl.where(inside, source, 0).to(ACC))
        return inside, floor.to(tl.int64) + 1, floor + 1 - source, source - floor


@triton.jit
def _read(mask_ptr, y, x, wanted, height, width, ACC: tl.constexpr):
    inside = wanted & (y > 0) & (y <= height) & (x > 0) & (x <= width)
    return tl.load(mask_ptr + (y - 1) * width + x - 1, mask=inside, other=0).to(ACC)


@triton.jit
def paste_masks_kernel(
    masks_ptr, boxes_ptr, output_ptr, mask_h, mask_w, image_h, image_w, threshold_bits, chunks,
    STYLE: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Pixels of one mask in the order of memory."""
    program = tl.program_id(0).to(tl.int64)
    n = program // chunks
    place = (program - n * chunks) * BLOCK + tl.arange(0, BLOCK)
    plane = tl.full((), image_h, tl.int64) * image_w
    box = boxes_ptr + n * 4
    x1, y1, x2, y2 = tl.load(box), tl.load(box + 1), tl.load(box + 2), tl.load(box + 3)
    # NaN and infinity have no difference with themselves.
    finite = (x1 - x1) + (y1 - y1) + (x2 - x2) + (y2 - y2) == 0
    y = place // image_w
    x = place - y * image_w
    in_y, row, top, bottom = _taps(y, y1, y2, mask_h, mask_w, image_h, STYLE, ACC)
    in_x, column, left, right = _taps(x, x1, x2, mask_w, mask_w, image_w, STYLE, ACC)
    inside = in_y & in_x & (place < tl.where(finite, plane, 0))
    mask = masks_ptr + n * mask_h * mask_w
    a = _read(mask, row, column, inside, mask_h, mask_w, ACC)
    b = _read(mask, row, column + 1, inside, mask_h, mask_w, ACC)
    c = _read(mask, row + 1, column, inside, mask_h, mask_w, ACC)
    d = _read(mask, row + 1, column + 1, inside, mask_h, mask_w, ACC)
    value = left * (top * a + bottom * c) + right * (top * b + bottom * d)
    pasted = inside & (value >= from_bits(threshold_bits, ACC))
    tl.store(output_ptr + n * plane + place, pasted.to(tl.uint8), mask=place < plane)


def paste_masks(masks, boxes, image_size, threshold, style):
    dtype = torch.float64 if torch.float64 in (masks.dtype, boxes.dtype) else torch.float32
    values, corners = masks.to(dtype).contiguous(), boxes.to(dtype).contiguous()
    output = torch.empty((len(masks), *image_size), dtype=torch.bool, device=masks.device)
    if output.numel():
        chunks = triton.cdiv(image_size[0] * image_size[1], BLOCK)
        paste_masks_kernel[(len(masks) * chunks,)](
            values, corners, output.view(torch.uint8), *masks.shape[1:], *image_size, bits(threshold), chunks,
            STYLE=style, ACC=acc(dtype), BLOCK=BLOCK, **EXACT,
        )  # fmt: skip
    return output


def compile_cases():
    """Yields ``(kernel, types of its arguments, its constants)`` for tests/triton/test_compile.py."""
    for value, dtype, style in (("*fp32", torch.float32, 0), ("*fp32", torch.float32, 1), ("*fp64", torch.float64, 0)):
        types = {"masks_ptr": value, "boxes_ptr": value, "output_ptr": "*u8", "threshold_bits": "i64"}
        yield paste_masks_kernel, types, {"STYLE": style, "ACC": acc(dtype), "BLOCK": BLOCK}
