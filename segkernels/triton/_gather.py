"""The adjoint of bilinear upsampling where the gradient of an output is computed as it is read: each source adds up the
outputs between it and its neighbours, by the tables of ``taps_kernel``."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def source_row(pointer, row, in_w, unit, left, right, right_weight, mask, ACC: tl.constexpr):
    """A row of sources blended to columns of outputs."""
    pointer += row.to(tl.int64) * in_w * unit
    low = tl.load(pointer + left * unit, mask=mask, other=0.0).to(ACC)
    return low + right_weight * (tl.load(pointer + right * unit, mask=mask, other=0.0).to(ACC) - low)


@triton.jit
def output_rows(places_ptr, line, lines, in_h, out_h, reach):
    """Image and source row of a line, its neighbours above and below; the first output that it is the lower source of, the
    first that it is the upper one of, and their end. ``reach`` is 0 where rows keep their number, else 1."""
    known = line < lines
    image = line // in_h
    row = (line - image * in_h).to(tl.int32)
    starts_ptr = places_ptr + 2 * out_h + row
    before = tl.load(starts_ptr + 1 - reach, mask=known, other=0)
    begin = tl.load(starts_ptr + 1, mask=known, other=0)
    end = tl.load(starts_ptr + 2, mask=known, other=0)
    return image, row, tl.maximum(row - reach, 0), tl.minimum(row + reach, in_h - 1), before, begin, end


@triton.jit
def output_columns(places_ptr, column, in_h, in_w, out_h, out_w, reach):
    """The same of source columns: the first output, the first that it is the left source of, the end."""
    known = column < in_w
    starts_ptr = places_ptr + 2 * out_h + in_h + 2 + 2 * out_w + column
    before = tl.load(starts_ptr + 1 - reach, mask=known, other=0)
    return before, tl.load(starts_ptr + 1, mask=known, other=0), tl.load(starts_ptr + 2, mask=known, other=0)


@triton.jit
def column_taps(places_ptr, weights_ptr, x, reads, begin, in_h, out_h, out_w):
    """Left and right sources of output columns, the weight of the right one, and the share of the source that begins there."""
    columns_ptr = places_ptr + 2 * out_h + in_h + 2 + x
    left = tl.load(columns_ptr, mask=reads, other=0)
    right = tl.load(columns_ptr + out_w, mask=reads, other=0)
    weight = tl.load(weights_ptr + 2 * out_h + out_w + x, mask=reads, other=0.0)
    return left, right, weight, tl.where(x < begin, weight, 1 - weight)
