"""Bed-of-nails unpooling in Triton: every output element is written once, zeros included."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from segkernels._layout import is_channels_last, memory_format
from segkernels.triton._resample import place, split

BLOCK = 1024


@triton.jit
def bed_of_nails_fwd_kernel(
    input_ptr, output_ptr, total, channels, in_h, in_w, scale_h, scale_w,
    CHANNELS_LAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One output element per lane."""
    offset = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offset < total
    n, c, y, x = split(offset, channels, in_h * scale_h, in_w * scale_w, CHANNELS_LAST)
    row = y // scale_h
    col = x // scale_w
    nail = mask & (row * scale_h == y) & (col * scale_w == x)
    source = place(n, c, row, col, channels, in_h, in_w, CHANNELS_LAST)
    value = tl.load(input_ptr + source, mask=nail, other=0.0)
    tl.store(output_ptr + offset, value, mask=mask)


@triton.jit
def bed_of_nails_bwd_kernel(
    grad_output_ptr, grad_input_ptr, total, channels, in_h, in_w, scale_h, scale_w,
    CHANNELS_LAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    offset = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offset < total
    n, c, y, x = split(offset, channels, in_h, in_w, CHANNELS_LAST)
    source = place(n, c, y * scale_h, x * scale_w, channels, in_h * scale_h, in_w * scale_w, CHANNELS_LAST)
    tl.store(grad_input_ptr + offset, tl.load(grad_output_ptr + source, mask=mask), mask=mask)


def _run(kernel, values, result, in_h, in_w, scale):
    if result.numel():
        kernel[(triton.cdiv(result.numel(), BLOCK),)](
            values.contiguous(memory_format=memory_format(values)), result, result.numel(), values.shape[1], in_h, in_w,
            *scale, CHANNELS_LAST=is_channels_last(values), BLOCK=BLOCK,
        )  # fmt: skip
    return result


def _empty(like, height, width):
    shape = (*like.shape[:2], height, width)
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=memory_format(like))


def bed_of_nails(input, scale):
    h, w = input.shape[2:]
    return _run(bed_of_nails_fwd_kernel, input, _empty(input, h * scale[0], w * scale[1]), h, w, scale)


def bed_of_nails_backward(grad_output, scale):
    h, w = grad_output.shape[2] // scale[0], grad_output.shape[3] // scale[1]
    return _run(bed_of_nails_bwd_kernel, grad_output, _empty(grad_output, h, w), h, w, scale)


def compile_cases():
    """Yields ``(kernel, types of its arguments, its constants)`` for tests/triton/test_compile.py."""
    for value, last in (("*fp32", False), ("*fp64", True), ("*bf16", True)):
        types = dict.fromkeys(("input_ptr", "output_ptr", "grad_output_ptr", "grad_input_ptr"), value)
        yield bed_of_nails_fwd_kernel, types, {"CHANNELS_LAST": last, "BLOCK": BLOCK}
        yield bed_of_nails_bwd_kernel, types, {"CHANNELS_LAST": last, "BLOCK": BLOCK}
