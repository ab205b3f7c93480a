"""Max-pooling in Triton: each output looks at its window, each input element gathers from the windows that it lies in."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from segkernels._geometry import output_size
from segkernels._layout import is_channels_last, memory_format
from segkernels.triton._planes import element_offset, split_offset

BLOCK = 512


@triton.jit
def max_pool2d_fwd_kernel(
    input_ptr, output_ptr, indices_ptr, total, channels, in_h, in_w, out_h, out_w,
    kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w,
    INDEX_BITS: tl.constexpr, CHANNELS_LAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One output element per lane."""
    entry = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = entry < total
    plane, place = split_offset(entry, channels, out_h * out_w, CHANNELS_LAST)
    y = place // out_w
    top = y * stride_h - pad_h
    left = (place - y * out_w) * stride_w - pad_w
    best = tl.full((BLOCK,), float("-inf"), input_ptr.dtype.element_ty)
    offset = tl.full((BLOCK,), -1, tl.int32)
    for kh in range(kernel_h):
        row = top + kh * dilation_h
        for kw in range(kernel_w):
            col = left + kw * dilation_w
            inside = mask & (row >= 0) & (row < in_h) & (col >= 0) & (col < in_w)
            source = element_offset(plane, row * in_w + col, channels, in_h * in_w, CHANNELS_LAST)
            value = tl.load(input_ptr + source, mask=inside, other=0.0)
            # The first maximum stays, and the last NaN is kept.
            take = inside & ((offset < 0) | (value > best) | (value != value))
            best = tl.where(take, value, best)
            offset = tl.where(take, kh * kernel_w + kw, offset)
    tl.store(output_ptr + entry, best, mask=mask)
    if INDEX_BITS == 8:
        tl.store(indices_ptr + entry, tl.maximum(offset, 0).to(tl.uint8), mask=mask)
    if INDEX_BITS == 64:
        kh = offset // kernel_w
        position = (top + kh * dilation_h) * in_w + left + (offset - kh * kernel_w) * dilation_w
        tl.store(indices_ptr + entry, tl.where(offset < 0, -1, position), mask=mask)


@triton.jit
def max_pool2d_bwd_kernel(
    grad_output_ptr, indices_ptr, grad_input_ptr, total, channels, in_h, in_w, out_h, out_w,
    kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, windows_h, windows_w,
    INDEX_BITS: tl.constexpr, CHANNELS_LAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One input element per lane; at most windows_h x windows_w windows reach it."""
    offset = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offset < total
    plane, place = split_offset(offset, channels, in_h * in_w, CHANNELS_LAST)
    row = place // in_w
    col = place - row * in_w
    last_y = (row + pad_h) // stride_h
    last_x = (col + pad_w) // stride_w
    dtype = tl.float64 if grad_output_ptr.dtype.element_ty == tl.float64 else tl.float32
    total_grad = tl.zeros((BLOCK,), dtype)
    for i in range(windows_h):
        y = last_y - (windows_h - 1 - i)
        dy = row + pad_h - y * stride_h
        for j in range(windows_w):
            x = last_x - (windows_w - 1 - j)
            dx = col + pad_w - x * stride_w
            inside = mask & (y >= 0) & (y < out_h) & (x >= 0) & (x < out_w)
            entry = element_offset(plane, y * out_w + x, channels, out_h * out_w, CHANNELS_LAST)
            index = tl.load(indices_ptr + entry, mask=inside, other=0)
            if INDEX_BITS == 64:
                match = index == place
            else:
                kh = dy // dilation_h
                kw = dx // dilation_w
                match = (index.to(tl.int64) == kh * kernel_w + kw) & (kh * dilation_h == dy) & (kw * dilation_w == dx)
                match = match & (kh < kernel_h) & (kw < kernel_w)
            grad = tl.load(grad_output_ptr + entry, mask=inside & match, other=0.0)
            total_grad += grad.to(dtype)
    tl.store(grad_input_ptr + offset, total_grad.to(grad_input_ptr.dtype.element_ty), mask=mask)


def max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode, index_bits):
    n, c, in_h, in_w = input.shape
    size = output_size((in_h, in_w), kernel_size, stride, padding, dilation, ceil_mode)
    layout = memory_format(input)
    values = input.contiguous(memory_format=layout)
    output = torch.empty((n, c, *size), dtype=input.dtype, device=input.device, memory_format=layout)
    if index_bits == 0:
        indices = torch.empty(0, dtype=torch.uint8, device=input.device)
    else:
        indices = torch.empty_like(output, dtype=torch.int64 if index_bits == 64 else torch.uint8)
    if output.numel():
        max_pool2d_fwd_kernel[(triton.cdiv(output.numel(), BLOCK),)](
            values, output, indices, output.numel(), c, in_h, in_w, *size, *kernel_size, *stride, *padding, *dilation,
            INDEX_BITS=index_bits, CHANNELS_LAST=is_channels_last(values), BLOCK=BLOCK,
        )  # fmt: skip
    return output, indices


def max_pool2d_backward(grad_output, indices, input_size, kernel_size, stride, padding, dilation):
    n, c, h, w = indices.shape
    layout = memory_format(indices)
    grad = grad_output.contiguous(memory_format=layout)
    places = indices.contiguous(memory_format=layout)
    grad_input = torch.empty((n, c, *input_size), dtype=grad.dtype, device=grad.device, memory_format=layout)
    if grad_input.numel():
        windows = [triton.cdiv(dilation[d] * (kernel_size[d] - 1) + 1, stride[d]) for d in range(2)]
        max_pool2d_bwd_kernel[(triton.cdiv(grad_input.numel(), BLOCK),)](
            grad, places, grad_input, grad_input.numel(), c, *input_size, h, w, *kernel_size, *stride, *padding, *dilation,
            *windows,
            INDEX_BITS=64 if indices.dtype == torch.int64 else 8, CHANNELS_LAST=is_channels_last(places), BLOCK=BLOCK,
        )  # fmt: skip
    return grad_input


def compile_cases():
    """Yields ``(kernel, types of its pointers, its constants)`` for tests/triton/test_compile.py."""
    for value, index, last in (("*fp32", "*i64", False), ("*fp64", "*u8", True), ("*bf16", "*i64", True)):
        pointers = {"indices_ptr": index}
        pointers |= dict.fromkeys(("input_ptr", "output_ptr", "grad_output_ptr", "grad_input_ptr"), value)
        constants = {"INDEX_BITS": 64 if index == "*i64" else 8, "CHANNELS_LAST": last, "BLOCK": BLOCK}
        yield max_pool2d_fwd_kernel, pointers, constants
        yield max_pool2d_bwd_kernel, pointers, constants
