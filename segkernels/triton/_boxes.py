"""Intersection over union as csrc/common/boxes.h has it, rounded alike: kernels are launched with EXACT."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from segkernels.triton._regions import divide

#: A product fused with a sum would round overlaps and corners otherwise than torchvision does.
EXACT = {"enable_fp_fusion": False}


@triton.jit
def load_box(boxes_ptr, number, mask):
    at = boxes_ptr + number.to(tl.int64) * 4
    return tl.load(at, mask, 0), tl.load(at + 1, mask, 0), tl.load(at + 2, mask, 0), tl.load(at + 3, mask, 0)


@triton.jit
def intersection_over_union(ax1, ay1, ax2, ay2, bx1, by1, bx2, by2, ACC: tl.constexpr):
    """NaN where a coordinate is: comparisons pass it on."""
    left = tl.where(bx1 < ax1, ax1, bx1)
    top = tl.where(by1 < ay1, ay1, by1)
    right = tl.where(ax2 < bx2, ax2, bx2)
    bottom = tl.where(ay2 < by2, ay2, by2)
    width = right - left
    height = bottom - top
    width = tl.where(width < 0, 0, width)
    height = tl.where(height < 0, 0, height)
    intersection = width * height
    total = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1)
    return divide(intersection, total - intersection, ACC)


def coordinate_type(boxes: torch.Tensor) -> torch.dtype:
    return torch.float64 if boxes.dtype == torch.float64 else torch.float32


def acc(dtype: torch.dtype) -> tl.dtype:
    return tl.float64 if dtype == torch.float64 else tl.float32
