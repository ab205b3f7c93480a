"""Tiles of pixels and their softmax: what the kernels of losses on softmax probabilities share."""

from __future__ import annotations

import triton
import triton.language as tl

from segkernels.triton._gather import source_row


@triton.jit
def tile_taps(places_ptr, weights_ptr, y, x, in_h, out_h, out_w, GROUPS: tl.constexpr, ROWS: tl.constexpr):
    """Left and right sources of columns ``x`` and the weight of the right ones; of each group of ROWS outputs from ``y`` on
    its three source rows, which of its outputs lie between the second and the third, and the weights of their lower ones."""
    columns_ptr = places_ptr + 2 * out_h + in_h + 2 + x
    known = x < out_w
    left = tl.load(columns_ptr, mask=known, other=0)
    right = tl.load(columns_ptr + out_w, mask=known, other=0)
    right_weight = tl.load(weights_ptr + 2 * out_h + out_w + x, mask=known, other=0.0)
    first = y + tl.arange(0, GROUPS) * ROWS
    row = tl.minimum(first[:, None] + tl.arange(0, ROWS)[None, :], out_h - 1)
    top = tl.load(places_ptr + tl.minimum(first, out_h - 1))
    middle = tl.load(places_ptr + out_h + tl.minimum(first, out_h - 1))
    bottom = tl.load(places_ptr + out_h + tl.minimum(first + ROWS - 1, out_h - 1))
    below_first = tl.load(places_ptr + row) != top[:, None]
    return left, right, right_weight, top, middle, bottom, below_first, tl.load(weights_ptr + out_h + row)


@triton.jit
def tile_logits(
    input_ptr, c, classes, step, unit, in_w, x, inside, valid, left, right, right_weight, top, middle, bottom, below_first,
    lower_weight, UPSAMPLE: tl.constexpr, ACC: tl.constexpr, CLASSES: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """[CLASSES, GROUPS * ROWS * COLUMNS]; 0 where ignored, and -inf of what is no class."""
    known = (c < classes)[:, None]
    pointer = input_ptr + c.to(tl.int64)[:, None] * step
    mask = known & inside[None, :]
    if UPSAMPLE:
        pointer, mask = pointer[:, :, None], mask[:, None, :]
        left, right, weight = left[None, None, :], right[None, None, :], right_weight[None, None, :]
        a = source_row(pointer, top[None, :, None], in_w, unit, left, right, weight, mask, ACC)
        b = source_row(pointer, middle[None, :, None], in_w, unit, left, right, weight, mask, ACC)
        upper, lower = a[:, :, None, :], b[:, :, None, :]
        if ROWS > 1:
            d = source_row(pointer, bottom[None, :, None], in_w, unit, left, right, weight, mask, ACC)
            second = below_first[None, :, :, None]
            upper, lower = tl.where(second, lower, upper), tl.where(second, d[:, :, None, :], lower)
        blended = upper + lower_weight[None, :, :, None] * (lower - upper)
        value = tl.reshape(blended, (CLASSES, GROUPS * ROWS * COLUMNS))
    else:
        value = tl.load(pointer + x.to(tl.int64)[None, :] * unit, mask=mask, other=0.0).to(ACC)
    return tl.where(known, tl.where(valid[None, :], value, 0.0), float("-inf"))


@triton.jit
def scan_classes(
    input_ptr, class_weights_ptr, slopes_ptr, label, classes, step, unit, in_w, x, inside, valid, left, right, right_weight,
    top, middle, bottom, below_first, lower_weight, SLOPES: tl.constexpr, SMOOTH: tl.constexpr, UPSAMPLE: tl.constexpr,
    ACC: tl.constexpr, CLASSES: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """Of each pixel: the largest logit, the sums of exp(x - max), of it times the slopes and of weight * (x - max); the sum
    of the weights; the label's logit less the largest, NaN where the label is no class."""
    most = tl.full((GROUPS * ROWS * COLUMNS,), -1e38, ACC)  # finite: a block of classes may have no logit above -inf
    own = tl.zeros((GROUPS * ROWS * COLUMNS,), ACC)
    total = tl.zeros((GROUPS * ROWS * COLUMNS,), ACC)
    dot = tl.zeros((GROUPS * ROWS * COLUMNS,), ACC)
    smoothed = tl.zeros((GROUPS * ROWS * COLUMNS,), ACC)
    weights = tl.zeros((1,), ACC)
    for first in range(0, classes, CLASSES):
        c = first + tl.arange(0, CLASSES)
        value = tile_logits(
            input_ptr, c, classes, step, unit, in_w, x, inside, valid, left, right, right_weight, top, middle, bottom,
            below_first, lower_weight, UPSAMPLE, ACC, CLASSES, GROUPS, ROWS, COLUMNS,
        )  # fmt: skip
        larger = tl.maximum(most, tl.max(value, 0))
        exponential = tl.exp(value - larger[None, :])
        shrink = tl.exp(most - larger)
        total = total * shrink + tl.sum(exponential, 0)
        if SLOPES:
            slope = tl.load(slopes_ptr + c * 3 + 1, mask=c < classes, other=0.0).to(ACC)
            dot = dot * shrink + tl.sum(exponential * slope[:, None], 0)
        if SMOOTH:
            weight = tl.load(class_weights_ptr + c, mask=c < classes, other=0.0)
            terms = tl.where((c < classes)[:, None], weight[:, None] * (value - larger[None, :]), 0.0)
            smoothed += weights * (most - larger) + tl.sum(terms, 0)
            weights += tl.sum(weight, 0)
        own += tl.sum(tl.where(c[:, None] == label[None, :], value, 0.0), 0)
        most = larger
    shift = tl.where((label >= 0) & (label < classes), own - most, float("nan"))
    return most, total, dot, smoothed, weights, shift


@triton.jit
def focal_power(q, gamma, GAMMA: tl.constexpr):
    """q ** gamma; 0 where q is not above 0."""
    if GAMMA == 2:
        return tl.where(q > 0, q * q, 0.0)
    else:
        return tl.where(q > 0, tl.exp(gamma * tl.log(tl.where(q > 0, q, 1.0))), 0.0)


@triton.jit
def tile_pixels(
    target_ptr, classes, tiles, tiles_w, out_h, out_w, ignore_index, HAS_IGNORE: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """Sample, first row and columns of a program's tile; of its pixels, in the order of rows: places, which lie in the image,
    which count, and labels: -1 where ignored, the number of classes where it is none."""
    program = tl.program_id(0).to(tl.int64)
    n = program // tiles
    tile = program - n * tiles
    row = tile // tiles_w
    y = row * ROWS
    x = (tile - row * tiles_w) * COLUMNS + tl.arange(0, COLUMNS)
    rows = y + tl.arange(0, ROWS)[:, None]
    inside = tl.reshape((rows < out_h) & (x < out_w)[None, :], (ROWS * COLUMNS,))
    place = tl.reshape((n * out_h + rows) * out_w + x[None, :], (ROWS * COLUMNS,))
    label = tl.load(target_ptr + place, mask=inside, other=0).to(tl.int64)
    valid = inside
    if HAS_IGNORE:
        valid = valid & (label != ignore_index)
    label = tl.where((label >= 0) & (label < classes), label, classes)
    return n, y, x, place, inside, valid, tl.where(valid, label, -1).to(tl.int32)
