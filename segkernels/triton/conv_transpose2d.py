"""Transposed convolution in Triton: implicit matrix products, so that no im2col and no pixel shuffle exists in memory.

A phase is the place of an output pixel modulo the stride. All phases of one place in the input's grid see the same window of
the input, hence forward is one product of windows with (phase, out channel), stored as a pixel shuffle; a kernel equal to the
stride has windows of one pixel. Sums are kept in float32 (float64 for float64) and have one order; no atomics.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from segkernels._layout import is_channels_last, memory_format
from segkernels.reference.conv_transpose2d import conv_transpose2d_backward as vendor_backward
from segkernels.triton._products import arithmetic, compile_types, launch

#: Pixels summed by one program of grad_weight.
CHUNK = 4096
#: Arguments whose values a choice of blocks is remembered for.
KEYS = ("in_channels", "out_channels", "in_h", "in_w", "stride_h", "stride_w", "CHANNELS_LAST")


@triton.jit
def _split(pixel, height, width):
    """Image, row and column of a pixel of a batch; only the image's offset needs 64 bits."""
    n = pixel // (height * width)
    rest = pixel - n * (height * width)
    y = rest // width
    return n.to(tl.int64), y, rest - y * width


@triton.jit
def _tap_and_channel(index, taps, channels, CHANNELS_LAST: tl.constexpr):
    """Of a place in the rearranged weights, where what lies together in the output runs fastest."""
    if CHANNELS_LAST:
        tap = index // channels
        return tap, index - tap * channels
    else:
        channel = index // taps
        return index - channel * taps, channel


@triton.jit
def conv_transpose2d_fwd_kernel(
    input_ptr, weight_ptr, bias_ptr, output_ptr, pixels, in_channels, out_channels, in_h, in_w, out_h, out_w,
    first_y, first_x, rows, cols, window_h, window_w, stride_h, stride_w, pad_h, pad_w,
    in_n, in_c, in_y, in_x, out_n, out_c, out_y, out_x,
    HAS_BIAS: tl.constexpr, CHANNELS_LAST: tl.constexpr, ACC: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Places of the input's grid times (phase, out channel); the weights are [window, in channel, (phase, out channel)]."""
    pixel = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    phases = stride_h * stride_w
    columns = out_channels * phases
    n, y, x = _split(pixel, rows, cols)
    y += first_y
    x += first_x
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=ACC)
    for place in range(window_h * window_w):
        dy = place // window_w
        from_y = y - dy
        from_x = x - (place - dy * window_w)
        inside = (pixel < pixels) & (from_y >= 0) & (from_y < in_h) & (from_x >= 0) & (from_x < in_w)
        source = input_ptr + n * in_n + (from_y * in_y + from_x * in_x)
        weight = weight_ptr + place * in_channels * columns
        for k0 in range(0, in_channels, BLOCK_K):
            k = k0 + tl.arange(0, BLOCK_K)
            a_mask = inside[:, None] & (k < in_channels)[None, :]
            a = tl.load(source[:, None] + (k * in_c)[None, :], mask=a_mask, other=0.0)
            b_mask = (k < in_channels)[:, None] & (column < columns)[None, :]
            b = tl.load(weight + ((k * columns)[:, None] + column[None, :]), mask=b_mask, other=0.0)
            acc = tl.dot(a.to(OPERAND), b.to(OPERAND), acc, input_precision=PRECISION, out_dtype=ACC)
    phase, channel = _tap_and_channel(column, phases, out_channels, CHANNELS_LAST)
    if HAS_BIAS:
        acc += tl.load(bias_ptr + channel, mask=column < columns, other=0.0).to(ACC)[None, :]
    phase_y = phase // stride_w
    to_y = (y * stride_h - pad_h)[:, None] + phase_y[None, :]
    to_x = (x * stride_w - pad_w)[:, None] + (phase - phase_y * stride_w)[None, :]
    mask = (to_y >= 0) & (to_y < out_h) & (to_x >= 0) & (to_x < out_w)
    mask = mask & (pixel < pixels)[:, None] & (column < columns)[None, :]
    target = (output_ptr + n * out_n)[:, None] + (to_y * out_y + to_x * out_x + (channel * out_c)[None, :])
    tl.store(target, acc.to(output_ptr.dtype.element_ty), mask=mask)


@triton.jit
def conv_transpose2d_grad_input_kernel(
    grad_ptr, weight_ptr, grad_input_ptr, pixels, in_channels, out_channels, in_h, in_w, out_h, out_w,
    kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, in_n, in_c, in_y, in_x, out_n, out_c, out_y, out_x,
    CHANNELS_LAST: tl.constexpr, ACC: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Input pixels times in channels: the convolution whose transpose this is; the weights are [(tap, out channel), C]."""
    pixel = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    channel = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    depth = out_channels * kernel_h * kernel_w
    n, y, x = _split(pixel, in_h, in_w)
    source = grad_ptr + n * out_n
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=ACC)
    for k0 in range(0, depth, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)
        tap, from_channel = _tap_and_channel(k, kernel_h * kernel_w, out_channels, CHANNELS_LAST)
        ky = tap // kernel_w
        from_y = (y * stride_h - pad_h)[:, None] + ky[None, :]
        from_x = (x * stride_w - pad_w)[:, None] + (tap - ky * kernel_w)[None, :]
        a_mask = (from_y >= 0) & (from_y < out_h) & (from_x >= 0) & (from_x < out_w)
        a_mask = a_mask & (pixel < pixels)[:, None] & (k < depth)[None, :]
        offset = from_y * out_y + from_x * out_x + (from_channel * out_c)[None, :]
        a = tl.load(source[:, None] + offset, mask=a_mask, other=0.0)
        b_mask = (k < depth)[:, None] & (channel < in_channels)[None, :]
        b = tl.load(weight_ptr + ((k * in_channels)[:, None] + channel[None, :]), mask=b_mask, other=0.0)
        acc = tl.dot(a.to(OPERAND), b.to(OPERAND), acc, input_precision=PRECISION, out_dtype=ACC)
    target = (grad_input_ptr + n * in_n + (y * in_y + x * in_x))[:, None] + (channel * in_c)[None, :]
    mask = (pixel < pixels)[:, None] & (channel < in_channels)[None, :]
    tl.store(target, acc.to(grad_input_ptr.dtype.element_ty), mask=mask)


@triton.jit
def conv_transpose2d_grad_weight_kernel(
    grad_ptr, input_ptr, partial_ptr, pixels, chunk, in_channels, out_channels, in_h, in_w, out_h, out_w,
    kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, in_n, in_c, in_y, in_x, out_n, out_c, out_y, out_x,
    CHANNELS_LAST: tl.constexpr, ACC: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """In channels times (tap, out channel), summed over one chunk of the pixels."""
    columns = out_channels * kernel_h * kernel_w
    blocks_m = tl.cdiv(in_channels, BLOCK_M)
    block_n = tl.program_id(0) // blocks_m
    channel = (tl.program_id(0) - block_n * blocks_m) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = block_n * BLOCK_N + tl.arange(0, BLOCK_N)
    tap, from_channel = _tap_and_channel(column, kernel_h * kernel_w, out_channels, CHANNELS_LAST)
    ky = tap // kernel_w
    dy = ky - pad_h
    dx = tap - ky * kernel_w - pad_w
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=ACC)
    for k0 in range(0, chunk, BLOCK_K):
        pixel = tl.program_id(1) * chunk + k0 + tl.arange(0, BLOCK_K)
        n, y, x = _split(pixel, in_h, in_w)
        place = n * in_n + (y * in_y + x * in_x)
        a_mask = (channel < in_channels)[:, None] & (pixel < pixels)[None, :]
        a = tl.load(input_ptr + ((channel * in_c)[:, None] + place[None, :]), mask=a_mask, other=0.0)
        from_y = (y * stride_h)[:, None] + dy[None, :]
        from_x = (x * stride_w)[:, None] + dx[None, :]
        b_mask = (from_y >= 0) & (from_y < out_h) & (from_x >= 0) & (from_x < out_w)
        b_mask = b_mask & (pixel < pixels)[:, None] & (column < columns)[None, :]
        source = (grad_ptr + n * out_n)[:, None]
        b = tl.load(source + (from_y * out_y + from_x * out_x + (from_channel * out_c)[None, :]), mask=b_mask, other=0.0)
        acc = tl.dot(a.to(OPERAND), b.to(OPERAND), acc, input_precision=PRECISION, out_dtype=ACC)
    row = tl.program_id(1).to(tl.int64) * in_channels + channel
    mask = (channel < in_channels)[:, None] & (column < columns)[None, :]
    tl.store(partial_ptr + (row * columns)[:, None] + column[None, :], acc, mask=mask)


def _windows(kernel, stride):
    """Input pixels that reach one output pixel, per axis."""
    return [-(-k // s) for k, s in zip(kernel, stride)]


def _pays(input, weight, stride, size, groups, dilation):
    """Whether the kernels here run; without a stride this is a convolution, and the rest has little to share in a tile."""
    kernel = weight.shape[2:]
    window = _windows(kernel, stride)
    padded = math.prod(window) * math.prod(stride)
    # Offsets in an image and in the weights are of 32 bits, and a launch has at most 65535 blocks along its second axis.
    pixels = input.shape[0] * max(input.shape[2] * input.shape[3], (size[0] + stride[0]) * (size[1] + stride[1]))
    columns = weight.shape[1] * padded
    elements = max(input[:1].numel(), weight.shape[1] * size[0] * size[1], weight.shape[0] * columns)
    return (
        (groups, dilation) == (1, [1, 1])
        and stride != [1, 1]
        and padded <= 2 * math.prod(kernel)
        and pixels < 2**27
        and columns < 2**20
        and elements < 2**30
    )


def _forward_weight(weight, stride, last):
    """[C, O, KH, KW] as [window, C, phase, O], or [window, C, O, phase]; zeros where the kernel ends within a phase."""
    window = _windows(weight.shape[2:], stride)
    spare = [window[d] * stride[d] - weight.shape[2 + d] for d in range(2)]
    if any(spare):
        weight = torch.nn.functional.pad(weight, (0, spare[1], 0, spare[0]))
    weight = weight.unflatten(3, (window[1], stride[1])).unflatten(2, (window[0], stride[0]))
    return weight.permute((2, 4, 0, 3, 5, 1) if last else (2, 4, 0, 1, 3, 5)).contiguous()


def conv_transpose2d(input, weight, bias, stride, padding, output_padding, groups, dilation):
    n, c, h, w = input.shape
    kernel = weight.shape[2:]
    size = [
        (input.shape[2 + d] - 1) * stride[d] - 2 * padding[d] + dilation[d] * (kernel[d] - 1) + output_padding[d] + 1
        for d in range(2)
    ]
    layout = memory_format(input)
    if not _pays(input, weight, stride, size, groups, dilation):
        output = torch.ops.aten.convolution(input, weight, bias, stride, padding, dilation, True, output_padding, groups)
        return output.contiguous(memory_format=layout)
    channels = weight.shape[1]
    output = torch.empty((n, channels, *size), dtype=input.dtype, device=input.device, memory_format=layout)
    if output.numel() == 0:
        return output
    values = input.contiguous(memory_format=layout)
    last = is_channels_last(values)
    weights = _forward_weight(weight, stride, last)
    # Places of the input's grid, with its borders, that the output covers.
    first = [padding[d] // stride[d] for d in range(2)]
    count = [(size[d] - 1 + padding[d]) // stride[d] - first[d] + 1 for d in range(2)]
    pixels = n * count[0] * count[1]
    launch(
        conv_transpose2d_fwd_kernel,
        (*KEYS, "window_h", "window_w"),
        lambda b: (triton.cdiv(pixels, b["BLOCK_M"]), triton.cdiv(channels * stride[0] * stride[1], b["BLOCK_N"])),
        values, weights, weights if bias is None else bias.contiguous(), output, pixels, c, channels, h, w, *size,
        *first, *count, *_windows(kernel, stride), *stride, *padding, *values.stride(), *output.stride(),
        HAS_BIAS=bias is not None, CHANNELS_LAST=last, **arithmetic(input.dtype),
    )  # fmt: skip
    return output


def conv_transpose2d_backward(
    grad_output, input, weight, stride, padding, output_padding, groups, dilation, need_input, need_weight, need_bias
):  # fmt: skip
    """Gradients that are not asked for come back empty."""
    n, c, h, w = input.shape
    channels, *kernel = weight.shape[1:]
    size = grad_output.shape[2:]
    if not _pays(input, weight, stride, size, groups, dilation):
        needs = need_input, need_weight, need_bias
        return vendor_backward(grad_output, input, weight, stride, padding, output_padding, groups, dilation, *needs)
    layout = memory_format(input)
    values, grad = input.contiguous(memory_format=layout), grad_output.contiguous(memory_format=layout)
    last = is_channels_last(values)
    geometry = (c, channels, h, w, *size, *kernel, *stride, *padding, *values.stride(), *grad.stride())
    constants = {"CHANNELS_LAST": last, **arithmetic(input.dtype)}
    keys = (*KEYS, "kernel_h", "kernel_w")
    pixels = n * h * w
    results = [input.new_empty(0) for _ in range(3)]
    if need_input:
        results[0] = torch.empty_like(values)
        if values.numel():
            launch(
                conv_transpose2d_grad_input_kernel, keys,
                lambda b: (triton.cdiv(pixels, b["BLOCK_M"]), triton.cdiv(c, b["BLOCK_N"])),
                grad, weight.permute((2, 3, 1, 0) if last else (1, 2, 3, 0)).contiguous(), results[0], pixels, *geometry,
                **constants,
            )  # fmt: skip
    if need_weight:
        columns = channels * kernel[0] * kernel[1]
        chunks = triton.cdiv(pixels, CHUNK)
        sums = torch.promote_types(input.dtype, torch.float32)
        partial = input.new_empty((chunks, c, *((*kernel, channels) if last else (channels, *kernel))), dtype=sums)
        if partial.numel():
            launch(
                conv_transpose2d_grad_weight_kernel, keys,
                lambda b: (triton.cdiv(c, b["BLOCK_M"]) * triton.cdiv(columns, b["BLOCK_N"]), chunks),
                grad, values, partial, pixels, min(CHUNK, pixels), *geometry, **constants,
            )  # fmt: skip
        total = partial.sum(0).to(weight.dtype)
        results[1] = total.permute(0, 3, 1, 2).contiguous() if last else total
    if need_bias:
        # Memory is what limits this sum, even where float64 is slow.
        results[2] = grad.sum((0, 2, 3), dtype=torch.float64).to(grad.dtype)
    return tuple(results)


def compile_cases():
    """Yields ``(kernel, types of its pointers, its constants)`` for tests/triton/test_compile.py."""
    names = ("input_ptr", "weight_ptr", "bias_ptr", "output_ptr", "grad_ptr", "grad_input_ptr")
    kernels = conv_transpose2d_fwd_kernel, conv_transpose2d_grad_input_kernel, conv_transpose2d_grad_weight_kernel
    for value, sums, constants in compile_types():
        pointers = {**dict.fromkeys(names, value), "partial_ptr": sums}
        for kernel in kernels:
            yield kernel, pointers, {"HAS_BIAS": True, "CHANNELS_LAST": value == "*bf16", **constants}
