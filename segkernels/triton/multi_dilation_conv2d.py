"""Convolutions of several dilations in Triton: implicit matrix products that skip the taps of a block in the padding.

One launch a rate writes its channels of the output in place. Sums are kept in float32 (float64 for float64) and have one
order; no atomics.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from segkernels._layout import memory_format
from segkernels.triton._products import arithmetic, compile_types, launch

#: Pixels summed by one program of grad_weight.
CHUNK = 4096


@triton.jit
def _split(pixel, height, width):
    """Image, row and column of a pixel of a batch; the offsets that follow from the image need 64 bits."""
    n = pixel // (height * width)
    rest = pixel - n * (height * width)
    y = rest // width
    return n.to(tl.int64), y, rest - y * width


@triton.jit
def multi_dilation_conv2d_shifted_kernel(
    source_ptr, weight_ptr, target_ptr, pixels, depth, rows, height, width, kernel_h, kernel_w, dilation,
    source_n, source_c, source_pixel, target_n, target_c, target_pixel, weight_tap, weight_k, weight_row,
    ACCUMULATE: tl.constexpr, ACC: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Pixels times rows of the weights, which are channels of the target; `dilation` is negative for grad_input."""
    pixel = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n, y, x = _split(pixel, height, width)
    centre = source_ptr + n * source_n + (y * width + x).to(tl.int64) * source_pixel
    row = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=ACC)
    for tap in range(kernel_h * kernel_w):
        ky = tap // kernel_w
        kx = tap - ky * kernel_w
        dy = (ky - kernel_h // 2) * dilation
        dx = (kx - kernel_w // 2) * dilation
        inside = (pixel < pixels) & (y + dy >= 0) & (y + dy < height) & (x + dx >= 0) & (x + dx < width)
        if tl.max(inside.to(tl.int32), 0) > 0:
            source = centre + (dy * width + dx).to(tl.int64) * source_pixel
            weight = weight_ptr + (ky.to(tl.int64) * kernel_w + kx) * weight_tap
            for k0 in range(0, depth, BLOCK_K):
                k = k0 + tl.arange(0, BLOCK_K)
                a_mask = inside[:, None] & (k < depth)[None, :]
                a = tl.load(source[:, None] + (k.to(tl.int64) * source_c)[None, :], mask=a_mask, other=0.0)
                b_mask = (k < depth)[:, None] & (row < rows)[None, :]
                b = tl.load(weight + (k * weight_k)[:, None] + (row * weight_row)[None, :], mask=b_mask, other=0.0)
                acc = tl.dot(a.to(OPERAND), b.to(OPERAND), acc, input_precision=PRECISION, out_dtype=ACC)
    image = pixel // (height * width)
    place = (pixel - image * (height * width)).to(tl.int64) * target_pixel + image.to(tl.int64) * target_n
    target = target_ptr + place[:, None] + (row.to(tl.int64) * target_c)[None, :]
    mask = (pixel < pixels)[:, None] & (row < rows)[None, :]
    if ACCUMULATE:
        acc += tl.load(target, mask=mask, other=0.0).to(ACC)
    tl.store(target, acc.to(target_ptr.dtype.element_ty), mask=mask)


@triton.jit
def multi_dilation_conv2d_grad_weight_kernel(
    grad_ptr, source_ptr, partial_ptr, pixels, chunk, in_channels, out_channels, height, width, kernel_h, kernel_w, dilation,
    grad_n, grad_c, grad_pixel, source_n, source_c, source_pixel,
    ACC: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """In channels times out channels of one tap, summed over one chunk of the pixels: partial[chunk, tap, C, O]."""
    blocks_m = tl.cdiv(in_channels, BLOCK_M)
    block_n = tl.program_id(0) // blocks_m
    m = (tl.program_id(0) - block_n * blocks_m) * BLOCK_M + tl.arange(0, BLOCK_M)
    j = block_n * BLOCK_N + tl.arange(0, BLOCK_N)
    tap = tl.program_id(1)
    ky = tap // kernel_w
    dy = (ky - kernel_h // 2) * dilation
    dx = (tap - ky * kernel_w - kernel_w // 2) * dilation
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=ACC)
    for k0 in range(0, chunk, BLOCK_K):
        pixel = tl.program_id(2) * chunk + k0 + tl.arange(0, BLOCK_K)
        n, y, x = _split(pixel, height, width)
        inside = (pixel < pixels) & (y + dy >= 0) & (y + dy < height) & (x + dx >= 0) & (x + dx < width)
        if tl.max(inside.to(tl.int32), 0) > 0:
            place = n * source_n + ((y + dy) * width + x + dx).to(tl.int64) * source_pixel
            a_mask = (m < in_channels)[:, None] & inside[None, :]
            a = tl.load(source_ptr + (m.to(tl.int64) * source_c)[:, None] + place[None, :], mask=a_mask, other=0.0)
            place = n * grad_n + (y * width + x).to(tl.int64) * grad_pixel
            b_mask = inside[:, None] & (j < out_channels)[None, :]
            b = tl.load(grad_ptr + place[:, None] + (j.to(tl.int64) * grad_c)[None, :], mask=b_mask, other=0.0)
            acc = tl.dot(a.to(OPERAND), b.to(OPERAND), acc, input_precision=PRECISION, out_dtype=ACC)
    part = tl.program_id(2).to(tl.int64) * (kernel_h * kernel_w) + tap
    entry = (part * in_channels + m)[:, None] * out_channels + j[None, :]
    tl.store(partial_ptr + entry, acc, mask=(m < in_channels)[:, None] & (j < out_channels)[None, :])


def _by_tap(weight):
    """[O, C, KH, KW] as [KH, KW, C, O], so that blocks of one tap lie together."""
    return weight.permute(2, 3, 1, 0).contiguous()


def _strides(map):
    """Of image, channel and pixel, where the pixels of an image are dense."""
    return map.stride(0), map.stride(1), map.stride(3)


def _shifted(source, weight, target, dilation, transposed=False, accumulate=False):
    """target = or += the products of one rate with `weight` [KH, KW, C, O]; transposed: from O channels to C."""
    n, depth, height, width = source.shape
    rows = target.shape[1]
    weight_k, weight_row = (1, depth) if transposed else (rows, 1)
    launch(
        multi_dilation_conv2d_shifted_kernel,
        ("depth", "rows", "height", "width", "kernel_h", "ACCUMULATE"),
        lambda b: (triton.cdiv(n * height * width, b["BLOCK_M"]), triton.cdiv(rows, b["BLOCK_N"])),
        source, weight, target, n * height * width, depth, rows, height, width, *weight.shape[:2],
        -dilation if transposed else dilation, *_strides(source), *_strides(target), depth * rows, weight_k, weight_row,
        ACCUMULATE=accumulate, **arithmetic(source.dtype),
    )  # fmt: skip


def _rates(weights, dilations):
    return [(0 if len(weights) == 1 else r, dilation) for r, dilation in enumerate(dilations)]


def multi_dilation_conv2d(input, weights, dilations):
    out_channels = weights[0].shape[0]
    shape = (input.shape[0], out_channels * len(dilations), *input.shape[2:])
    output = torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=memory_format(input))
    if output.numel() == 0:
        return output
    input = input.contiguous(memory_format=memory_format(input))
    kernels = [_by_tap(weight) for weight in weights]
    for r, (i, dilation) in enumerate(_rates(weights, dilations)):
        _shifted(input, kernels[i], output.narrow(1, r * out_channels, out_channels), dilation)
    return output


def multi_dilation_conv2d_backward(grad_output, input, weights, dilations, need_input, need_weights):
    n, channels, height, width = input.shape
    out_channels = weights[0].shape[0]
    sums = torch.float64 if input.dtype == torch.float64 else torch.float32
    layout = memory_format(input)
    input, grad_output = input.contiguous(memory_format=layout), grad_output.contiguous(memory_format=layout)
    grads = [grad_output.narrow(1, r * out_channels, out_channels) for r in range(len(dilations))]
    results = [input.new_empty(0) for _ in range(1 + len(weights))]
    if need_input:
        # Rates are added one after the other, in the type of the sums.
        total = torch.empty(input.shape, dtype=sums, device=input.device, memory_format=layout)
        kernels = [_by_tap(weight) for weight in weights]
        for r, (i, dilation) in enumerate(_rates(weights, dilations)):
            if total.numel():
                _shifted(grads[r], kernels[i], total, dilation, transposed=True, accumulate=r > 0)
        results[0] = total.to(input.dtype)
    for i, weight in enumerate(weights if need_weights else ()):
        kernel = weight.shape[2:]
        pixels = n * height * width
        chunks = triton.cdiv(pixels, CHUNK)
        parts = []
        for r, (place, dilation) in enumerate(_rates(weights, dilations)):
            if place != i:
                continue
            partial = input.new_empty((chunks, *kernel, channels, out_channels), dtype=sums)
            if partial.numel():
                launch(
                    multi_dilation_conv2d_grad_weight_kernel,
                    ("in_channels", "out_channels", "height", "width", "kernel_h"),
                    lambda b: (
                        triton.cdiv(channels, b["BLOCK_M"]) * triton.cdiv(out_channels, b["BLOCK_N"]),
                        kernel[0] * kernel[1],  # noqa: B023
                        chunks,  # noqa: B023
                    ),
                    grads[r], input, partial, pixels, min(CHUNK, pixels), channels, out_channels, height, width, *kernel,
                    dilation, *_strides(grads[r]), *_strides(input), **arithmetic(input.dtype),
                )  # fmt: skip
            parts.append(partial.sum(0))
        results[1 + i] = sum(parts[1:], parts[0]).permute(3, 2, 0, 1).to(weight.dtype).contiguous()
    return results


def compile_cases():
    """Yields ``(kernel, types of its pointers, its constants)`` for tests/triton/test_compile.py."""
    for value, sums, constants in compile_types():
        pointers = {**dict.fromkeys(("source_ptr", "weight_ptr", "grad_ptr"), value), "target_ptr": sums, "partial_ptr": sums}
        yield multi_dilation_conv2d_shifted_kernel, pointers, {"ACCUMULATE": True, **constants}
        yield multi_dilation_conv2d_grad_weight_kernel, pointers, constants
