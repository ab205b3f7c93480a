"""Intersection over union of all pairs of boxes in Triton; backward the sums of a box run in a fixed order."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from segkernels.triton._boxes import EXACT, acc, coordinate_type, intersection_over_union, load_box

ROWS = 16
COLUMNS = 128
#: Backward: boxes of a program, and others that it meets at once.
OWN = 16
OTHER = 32


@triton.jit
def box_iou_fwd_kernel(
    boxes1_ptr, boxes2_ptr, output_ptr, rows, columns,
    ACC: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row_tiles = tl.cdiv(rows, ROWS)
    image = tl.program_id(0).to(tl.int64) // row_tiles
    row = (tl.program_id(0) - image * row_tiles) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    ax1, ay1, ax2, ay2 = load_box(boxes1_ptr, image * rows + row, row < rows)
    bx1, by1, bx2, by2 = load_box(boxes2_ptr, image * columns + column, column < columns)
    value = intersection_over_union(
        ax1[:, None], ay1[:, None], ax2[:, None], ay2[:, None],
        bx1[None, :], by1[None, :], bx2[None, :], by2[None, :], ACC,
    )  # fmt: skip
    place = (image * rows + row)[:, None] * columns + column[None, :]
    tl.store(output_ptr + place, value, mask=(row < rows)[:, None] & (column < columns)[None, :])


@triton.jit
def _share(a, b):
    """Share of the derivative of max(a, b) that goes to a: half each where they are equal, as in torch."""
    return tl.where(a > b, 1.0, tl.where(a == b, 0.5, 0.0)).to(tl.float64)


@triton.jit
def box_iou_bwd_kernel(
    grad_output_ptr, own_ptr, other_ptr, grad_ptr, own_count, other_count, own_step, other_step,
    OWN: tl.constexpr, OTHER: tl.constexpr,
):  # fmt: skip
    """The gradient of some boxes, from all that they meet."""
    tiles = tl.cdiv(own_count, OWN)
    image = tl.program_id(0).to(tl.int64) // tiles
    own = (tl.program_id(0) - image * tiles) * OWN + tl.arange(0, OWN)
    valid = own < own_count
    ax1, ay1, ax2, ay2 = load_box(own_ptr, image * own_count + own, valid)
    ax1, ay1, ax2, ay2 = ax1[:, None], ay1[:, None], ax2[:, None], ay2[:, None]
    own_width = (ax2 - ax1).to(tl.float64)
    own_height = (ay2 - ay1).to(tl.float64)
    left = tl.zeros((OWN, OTHER), tl.float64)
    top = tl.zeros((OWN, OTHER), tl.float64)
    right = tl.zeros((OWN, OTHER), tl.float64)
    bottom = tl.zeros((OWN, OTHER), tl.float64)
    for first in range(0, other_count, OTHER):
        other = first + tl.arange(0, OTHER)
        bx1, by1, bx2, by2 = load_box(other_ptr, image * other_count + other, other < other_count)
        bx1, by1, bx2, by2 = bx1[None, :], by1[None, :], bx2[None, :], by2[None, :]
        pair = valid[:, None] & (other < other_count)[None, :]
        place = (
            image * own_count * other_count + own[:, None].to(tl.int64) * own_step + other[None, :].to(tl.int64) * other_step
        )
        grad = tl.load(grad_output_ptr + place, mask=pair, other=0).to(tl.float64)
        raw_width = (tl.where(ax2 < bx2, ax2, bx2) - tl.where(ax1 > bx1, ax1, bx1)).to(tl.float64)
        raw_height = (tl.where(ay2 < by2, ay2, by2) - tl.where(ay1 > by1, ay1, by1)).to(tl.float64)
        width = tl.where(raw_width < 0, 0, raw_width)
        height = tl.where(raw_height < 0, 0, raw_height)
        intersection = width * height
        total = own_width * own_height + (bx2 - bx1).to(tl.float64) * (by2 - by1).to(tl.float64) - intersection
        to_intersection = grad * (total + intersection) / (total * total)
        to_area = -grad * intersection / (total * total)
        to_width = tl.where(raw_width < 0, 0, to_intersection * height)
        to_height = tl.where(raw_height < 0, 0, to_intersection * width)
        left -= tl.where(pair, to_width * _share(ax1, bx1) + to_area * own_height, 0)
        top -= tl.where(pair, to_height * _share(ay1, by1) + to_area * own_width, 0)
        right += tl.where(pair, to_width * _share(bx2, ax2) + to_area * own_height, 0)
        bottom += tl.where(pair, to_height * _share(by2, ay2) + to_area * own_width, 0)
    target = grad_ptr + (image * own_count + own) * 4
    kind = grad_ptr.dtype.element_ty
    tl.store(target, tl.sum(left, axis=1).to(kind), mask=valid)
    tl.store(target + 1, tl.sum(top, axis=1).to(kind), mask=valid)
    tl.store(target + 2, tl.sum(right, axis=1).to(kind), mask=valid)
    tl.store(target + 3, tl.sum(bottom, axis=1).to(kind), mask=valid)


def box_iou(boxes1, boxes2):
    dtype = coordinate_type(boxes1)
    first, second = boxes1.to(dtype).contiguous(), boxes2.to(dtype).contiguous()
    rows, columns = boxes1.shape[-2], boxes2.shape[-2]
    output = first.new_empty((*boxes1.shape[:-1], columns))
    if output.numel():
        batch = output.numel() // (rows * columns)
        box_iou_fwd_kernel[(batch * triton.cdiv(rows, ROWS), triton.cdiv(columns, COLUMNS))](
            first, second, output, rows, columns, ACC=acc(dtype), ROWS=ROWS, COLUMNS=COLUMNS, **EXACT
        )
    return output


def box_iou_backward(grad_output, boxes1, boxes2):
    dtype = coordinate_type(boxes1)
    first, second = boxes1.to(dtype).contiguous(), boxes2.to(dtype).contiguous()
    slopes = grad_output.to(dtype).contiguous()
    columns = boxes2.shape[-2]
    grads = torch.empty_like(first), torch.empty_like(second)
    for grad, own, other, steps in ((grads[0], first, second, (columns, 1)), (grads[1], second, first, (1, columns))):
        count = own.shape[-2]
        if own.numel():
            box_iou_bwd_kernel[(own.numel() // (4 * count) * triton.cdiv(count, OWN),)](
                slopes, own, other, grad, count, other.shape[-2], *steps, OWN=OWN, OTHER=OTHER
            )
    return grads[0].to(boxes1.dtype), grads[1].to(boxes2.dtype)


def compile_cases():
    """Yields ``(kernel, types of its pointers, its constants)`` for tests/triton/test_compile.py."""
    for value, dtype in (("*fp32", torch.float32), ("*fp64", torch.float64)):
        names = ("boxes1_ptr", "boxes2_ptr", "output_ptr", "grad_output_ptr", "own_ptr", "other_ptr", "grad_ptr")
        constants = {"ACC": acc(dtype), "ROWS": ROWS, "COLUMNS": COLUMNS, "OWN": OWN, "OTHER": OTHER}
        yield box_iou_fwd_kernel, dict.fromkeys(names, value), constants
        yield box_iou_bwd_kernel, dict.fromkeys(names, value), constants
