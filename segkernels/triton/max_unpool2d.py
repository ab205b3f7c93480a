"""Max-unpooling in Triton: the same two paths as csrc/cuda/max_unpool2d.cu, with the same results bit for bit."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from segkernels._layout import is_channels_last, memory_format
from segkernels.triton._planes import element_offset, split_offset

BLOCK = 1024


@triton.jit
def _position(index, y, x, out_h, out_w, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, OFFSETS: tl.constexpr):
    """Flat position in the output plane, or -1 when it lies outside."""
    if OFFSETS:
        index = index.to(tl.int64)
        dy = index // kernel_w
        row = y * stride_h - pad_h + dy
        col = x * stride_w - pad_w + (index - dy * kernel_w)
        inside = (dy < kernel_h) & (row >= 0) & (row < out_h) & (col >= 0) & (col < out_w)
        return tl.where(inside, row * out_w + col, -1)
    else:
        return tl.where((index >= 0) & (index < out_h * out_w), index, -1)


@triton.jit
def max_unpool2d_fwd_kernel(
    input_ptr, indices_ptr, output_ptr, total, channels, in_h, in_w, out_h, out_w,
    kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w,
    OFFSETS: tl.constexpr, CHANNELS_LAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One output element per lane; disjoint windows, so its one window's index decides."""
    offset = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offset < total
    plane, place = split_offset(offset, channels, out_h * out_w, CHANNELS_LAST)
    row = place // out_w
    col = place - row * out_w
    y = (row + pad_h) // stride_h
    x = (col + pad_w) // stride_w
    inside = mask & (y < in_h) & (x < in_w)
    entry = element_offset(plane, y * in_w + x, channels, in_h * in_w, CHANNELS_LAST)
    index = tl.load(indices_ptr + entry, mask=inside, other=0)
    position = _position(index, y, x, out_h, out_w, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, OFFSETS)
    value = tl.load(input_ptr + entry, mask=inside & (position == place), other=0.0)
    tl.store(output_ptr + offset, value, mask=mask)


@triton.jit
def max_unpool2d_foreign_kernel(
    indices_ptr, foreign_ptr, entries, channels, in_h, in_w, out_h, out_w,
    kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w,
    CHANNELS_LAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sets the flag when an index leaves its own window."""
    entry = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = entry < entries
    plane, place = split_offset(entry, channels, in_h * in_w, CHANNELS_LAST)
    y = place // in_w
    x = place - y * in_w
    index = tl.load(indices_ptr + entry, mask=mask, other=-1)
    row = index // out_w
    dy = row - (y * stride_h - pad_h)
    dx = (index - row * out_w) - (x * stride_w - pad_w)
    own = (dy >= 0) & (dy < kernel_h) & (dx >= 0) & (dx < kernel_w)
    foreign = mask & (index >= 0) & (index < out_h * out_w) & (own == 0)
    tl.atomic_max(foreign_ptr, tl.max(foreign.to(tl.int32), axis=0))


@triton.jit
def max_unpool2d_winner_kernel(
    indices_ptr, winner_ptr, foreign_ptr, entries, channels, in_h, in_w, out_h, out_w,
    kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w,
    OFFSETS: tl.constexpr, CHANNELS_LAST: tl.constexpr, CONDITIONAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The last entry, in raster order, of each output element: integer maximum, the same in any order."""
    if CONDITIONAL:
        if tl.load(foreign_ptr) == 0:
            return
    entry = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = entry < entries
    plane, place = split_offset(entry, channels, in_h * in_w, CHANNELS_LAST)
    y = place // in_w
    index = tl.load(indices_ptr + entry, mask=mask, other=0)
    position = _position(
        index, y, place - y * in_w, out_h, out_w, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, OFFSETS
    )
    target = winner_ptr + plane * (out_h * out_w) + position
    tl.atomic_max(target, place.to(tl.int32), mask=mask & (position >= 0))


@triton.jit
def max_unpool2d_fwd_kernel_any(
    input_ptr, winner_ptr, foreign_ptr, output_ptr, total, channels, in_plane, out_plane,
    CHANNELS_LAST: tl.constexpr, CONDITIONAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    if CONDITIONAL:
        if tl.load(foreign_ptr) == 0:
            return
    offset = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offset < total
    plane, place = split_offset(offset, channels, out_plane, CHANNELS_LAST)
    winner = tl.load(winner_ptr + plane * out_plane + place, mask=mask, other=-1)
    entry = element_offset(plane, winner.to(tl.int64), channels, in_plane, CHANNELS_LAST)
    value = tl.load(input_ptr + entry, mask=mask & (winner >= 0), other=0.0)
    tl.store(output_ptr + offset, value, mask=mask)


@triton.jit
def max_unpool2d_bwd_kernel(
    grad_output_ptr, indices_ptr, winner_ptr, foreign_ptr, grad_input_ptr, entries, channels, in_h, in_w, out_h, out_w,
    kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w,
    OFFSETS: tl.constexpr, CHANNELS_LAST: tl.constexpr, WINNERS: tl.constexpr, CONDITIONAL: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    if CONDITIONAL:
        if tl.load(foreign_ptr) == 0:
            return
    entry = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = entry < entries
    plane, place = split_offset(entry, channels, in_h * in_w, CHANNELS_LAST)
    y = place // in_w
    index = tl.load(indices_ptr + entry, mask=mask, other=0)
    position = _position(
        index, y, place - y * in_w, out_h, out_w, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, OFFSETS
    )
    won = mask & (position >= 0)
    if WINNERS:
        winner = tl.load(winner_ptr + plane * (out_h * out_w) + position, mask=won, other=-1)
        won = won & (winner == place)
    source = element_offset(plane, position, channels, out_h * out_w, CHANNELS_LAST)
    grad = tl.load(grad_output_ptr + source, mask=won, other=0.0)
    tl.store(grad_input_ptr + entry, grad, mask=mask)


def _format(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


class _Plan:
    """What both directions share: geometry, the flag, and the winners where windows overlap or an index strays."""

    def __init__(self, indices, output_size, kernel_size, stride, padding):
        n, c, h, w = indices.shape
        out_h, out_w = output_size
        if out_h * out_w >= 2**31:
            raise RuntimeError(f"max_unpool2d: expected planes of less than 2^31 elements, got {out_h}x{out_w}")
        self.channels_last = is_channels_last(indices)
        self.indices = indices.contiguous(memory_format=_format(self.channels_last))
        self.geometry = (c, h, w, out_h, out_w, *kernel_size, *stride, *padding)
        self.entries = self.indices.numel()
        self.total = n * c * out_h * out_w
        self.offsets = indices.dtype == torch.uint8
        self.disjoint = stride[0] >= kernel_size[0] and stride[1] >= kernel_size[1]
        # Window offsets in disjoint windows cannot collide.
        self.may_collide = not (self.disjoint and self.offsets)
        self.foreign = indices.new_zeros(1, dtype=torch.int32)
        self.winner = self.foreign
        if self.may_collide:
            self.winner = indices.new_full((n * c * out_h * out_w,), -1, dtype=torch.int32)
            if self.disjoint:
                max_unpool2d_foreign_kernel[(triton.cdiv(self.entries, BLOCK),)](
                    self.indices, self.foreign, self.entries, *self.geometry,
                    CHANNELS_LAST=self.channels_last, BLOCK=BLOCK,
                )  # fmt: skip
            max_unpool2d_winner_kernel[(triton.cdiv(self.entries, BLOCK),)](
                self.indices, self.winner, self.foreign, self.entries, *self.geometry,
                OFFSETS=self.offsets, CHANNELS_LAST=self.channels_last, CONDITIONAL=self.disjoint, BLOCK=BLOCK,
            )  # fmt: skip


def max_unpool2d(input, indices, output_size, kernel_size, stride, padding):
    n, c, h, w = input.shape
    layout = memory_format(input)
    shape = (n, c, *output_size)
    output = torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=layout)
    if output.numel() == 0 or input.numel() == 0:
        return output.zero_()
    plan = _Plan(indices.contiguous(memory_format=layout), output_size, kernel_size, stride, padding)
    values = input.contiguous(memory_format=_format(plan.channels_last))
    grid = (triton.cdiv(plan.total, BLOCK),)
    if plan.disjoint:
        max_unpool2d_fwd_kernel[grid](
            values, plan.indices, output, plan.total, *plan.geometry,
            OFFSETS=plan.offsets, CHANNELS_LAST=plan.channels_last, BLOCK=BLOCK,
        )  # fmt: skip
    if plan.may_collide:
        max_unpool2d_fwd_kernel_any[grid](
            values, plan.winner, plan.foreign, output, plan.total, c, h * w, output_size[0] * output_size[1],
            CHANNELS_LAST=plan.channels_last, CONDITIONAL=plan.disjoint, BLOCK=BLOCK,
        )  # fmt: skip
    return output


def max_unpool2d_backward(grad_output, indices, kernel_size, stride, padding):
    grad_input = torch.empty(
        indices.shape,
        dtype=grad_output.dtype,
        device=grad_output.device,
        memory_format=memory_format(indices),
    )
    if grad_input.numel() == 0 or grad_output.numel() == 0:
        return grad_input.zero_()
    plan = _Plan(indices, grad_output.shape[2:], kernel_size, stride, padding)
    grad = grad_output.contiguous(memory_format=_format(plan.channels_last))
    for winners, conditional in ((False, False), (True, plan.disjoint)):
        if winners and not plan.may_collide or not winners and not plan.disjoint:
            continue
        max_unpool2d_bwd_kernel[(triton.cdiv(plan.entries, BLOCK),)](
            grad, plan.indices, plan.winner, plan.foreign, grad_input, plan.entries, *plan.geometry,
            OFFSETS=plan.offsets, CHANNELS_LAST=plan.channels_last, WINNERS=winners, CONDITIONAL=conditional,
            BLOCK=BLOCK,
        )  # fmt: skip
    return grad_input


def compile_cases():
    """Yields ``(kernel, types of its pointers, its constants)`` for tests/triton/test_compile.py."""
    for value, index, last in (("*fp32", "*i64", False), ("*fp64", "*u8", True), ("*bf16", "*i64", True)):
        pointers = {"indices_ptr": index, "winner_ptr": "*i32", "foreign_ptr": "*i32"}
        pointers |= dict.fromkeys(("input_ptr", "output_ptr", "grad_output_ptr", "grad_input_ptr"), value)
        constants = {"OFFSETS": index == "*u8", "CHANNELS_LAST": last, "CONDITIONAL": True, "WINNERS": True, "BLOCK": BLOCK}
        yield max_unpool2d_fwd_kernel, pointers, constants
        yield max_unpool2d_fwd_kernel_any, pointers, constants
        yield max_unpool2d_bwd_kernel, pointers, constants
        yield max_unpool2d_winner_kernel, pointers, constants
    yield max_unpool2d_foreign_kernel, pointers, constants
