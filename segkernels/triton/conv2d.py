"""Depthwise convolution in Triton; every other convolution is torch's own.

A program computes a tile of pixels times channels, in NCHW of one channel, so that what stands side by side in memory is read
by neighbouring lanes. Sums are kept in float32 (float64 for float64) and have one order whatever tile is chosen. The
weight's gradient is summed by parts of the pixels, whose number is the shape's alone, and the parts are added up by torch.

The first call of each kind of shape tries the tiles of CONFIGS; Triton keeps the winner on disk, and TRITON_PRINT_AUTOTUNING=1
prints it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from segkernels._layout import is_channels_last, memory_format
from segkernels.triton._products import interpreted

#: (pixels, channels, warps) by whether the layout is channels_last.
CONFIGS = {
    False: [(256, 1, 2), (512, 1, 4), (1024, 1, 4), (1024, 1, 8)],
    True: [(16, 64, 8), (16, 32, 4), (8, 64, 4), (8, 128, 8)],
}
#: Taps, pixels and channels of a tile of the weight's gradient.
WEIGHT_BLOCKS = {False: (16, 128, 1), True: (16, 4, 32)}
#: Few programs, which is what the interpreter's time goes into.
INTERPRETED_BLOCKS = {"BLOCK_P": 128, "BLOCK_C": 16}
#: Programs that fill a GPU: the weight's gradient is split into about so many.
PROGRAMS = 2048


@triton.jit
def _tile(channels, pixels, CHANNELS_LAST: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """Image, places in the plane and channels of this program; neighbours in memory follow each other."""
    program = tl.program_id(0)
    blocks = tl.cdiv(channels, BLOCK_C)
    tiles = tl.cdiv(pixels, BLOCK_P)
    if CHANNELS_LAST:
        rest = program // blocks
        block = program - rest * blocks
        n = rest // tiles
        tile = rest - n * tiles
    else:
        rest = program // tiles
        tile = program - rest * tiles
        n = rest // blocks
        block = rest - n * blocks
    return n.to(tl.int64), tile * BLOCK_P + tl.arange(0, BLOCK_P), block * BLOCK_C + tl.arange(0, BLOCK_C)


@triton.jit
def conv2d_fwd_kernel(
    input_ptr, weight_ptr, bias_ptr, output_ptr, out_channels, multiplier, in_h, in_w, out_h, out_w,
    stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w,
    in_n, in_c, in_y, in_x, out_n, out_c, out_y, out_x, weight_c, weight_t,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr, UNROLL: tl.constexpr, HAS_BIAS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Output pixels times output channels."""
    dtype = tl.float64 if input_ptr.dtype.element_ty == tl.float64 else tl.float32
    n, place, channel = _tile(out_channels, out_h * out_w, CHANNELS_LAST, BLOCK_P, BLOCK_C)
    pixel_mask = place < out_h * out_w
    channel_mask = channel < out_channels
    y = place // out_w
    x = place - y * out_w
    source = input_ptr + n * in_n + ((channel // multiplier).to(tl.int64) * in_c)[None, :]
    weights = weight_ptr + channel.to(tl.int64) * weight_c
    acc = tl.zeros((BLOCK_P, BLOCK_C), dtype)
    if HAS_BIAS:
        acc += tl.load(bias_ptr + channel, mask=channel_mask, other=0.0).to(dtype)[None, :]
    for ky in range(KERNEL_H):
        row = y * stride_h - pad_h + ky * dilation_h
        row_mask = pixel_mask & (row >= 0) & (row < in_h)
        for kx in tl.range(0, KERNEL_W, loop_unroll_factor=UNROLL):
            col = x * stride_w - pad_w + kx * dilation_w
            mask = (row_mask & (col >= 0) & (col < in_w))[:, None] & channel_mask[None, :]
            offset = row.to(tl.int64) * in_y + col.to(tl.int64) * in_x
            value = tl.load(source + offset[:, None], mask=mask, other=0.0)
            weight = tl.load(weights + (ky * KERNEL_W + kx) * weight_t, mask=channel_mask, other=0.0)
            acc += value.to(dtype) * weight.to(dtype)[None, :]
    offset = n * out_n + y.to(tl.int64) * out_y + x.to(tl.int64) * out_x
    to = output_ptr + offset[:, None] + (channel.to(tl.int64) * out_c)[None, :]
    tl.store(to, acc.to(output_ptr.dtype.element_ty), mask=pixel_mask[:, None] & channel_mask[None, :])


@triton.jit
def conv2d_bwd_kernel(
    grad_output_ptr, weight_ptr, grad_input_ptr, in_channels, multiplier, in_h, in_w, out_h, out_w,
    stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w,
    in_n, in_c, in_y, in_x, out_n, out_c, out_y, out_x, weight_c, weight_t,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr, UNROLL: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Input pixels times input channels: each gathers from the outputs whose windows it lies in."""
    dtype = tl.float64 if grad_output_ptr.dtype.element_ty == tl.float64 else tl.float32
    n, place, channel = _tile(in_channels, in_h * in_w, CHANNELS_LAST, BLOCK_P, BLOCK_C)
    pixel_mask = place < in_h * in_w
    channel_mask = channel < in_channels
    row = place // in_w
    col = place - row * in_w
    acc = tl.zeros((BLOCK_P, BLOCK_C), dtype)
    for q in range(multiplier):
        out_channel = channel.to(tl.int64) * multiplier + q
        source = grad_output_ptr + n * out_n + (out_channel * out_c)[None, :]
        weights = weight_ptr + out_channel * weight_c
        for ky in range(KERNEL_H):
            up = row + pad_h - ky * dilation_h
            y = up // stride_h
            row_mask = pixel_mask & (up >= 0) & (y * stride_h == up) & (y < out_h)
            for kx in tl.range(0, KERNEL_W, loop_unroll_factor=UNROLL):
                left = col + pad_w - kx * dilation_w
                x = left // stride_w
                mask = row_mask & (left >= 0) & (x * stride_w == left) & (x < out_w)
                mask = mask[:, None] & channel_mask[None, :]
                offset = y.to(tl.int64) * out_y + x.to(tl.int64) * out_x
                grad = tl.load(source + offset[:, None], mask=mask, other=0.0)
                weight = tl.load(weights + (ky * KERNEL_W + kx) * weight_t, mask=channel_mask, other=0.0)
                acc += grad.to(dtype) * weight.to(dtype)[None, :]
    offset = n * in_n + row.to(tl.int64) * in_y + col.to(tl.int64) * in_x
    to = grad_input_ptr + offset[:, None] + (channel.to(tl.int64) * in_c)[None, :]
    tl.store(to, acc.to(grad_input_ptr.dtype.element_ty), mask=pixel_mask[:, None] & channel_mask[None, :])


@triton.jit
def conv2d_weight_kernel(
    grad_output_ptr, input_ptr, partial_ptr, batch, images, places, splits, out_channels, taps, multiplier,
    in_h, in_w, out_h, out_w, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w,
    in_n, in_c, in_y, in_x, out_n, out_c, out_y, out_x,
    BLOCK_T: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Taps times output channels, summed over `images` images and `places` places of each."""
    dtype = tl.float64 if input_ptr.dtype.element_ty == tl.float64 else tl.float32
    channel = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    tap = tl.program_id(2) * BLOCK_T + tl.arange(0, BLOCK_T)
    channel_mask = channel < out_channels
    ky = tap // kernel_w
    down = (ky * dilation_h - pad_h)[:, None]
    right = ((tap - ky * kernel_w) * dilation_w - pad_w)[:, None]
    part = tl.program_id(1)
    first_image = part // splits * images
    first_place = part % splits * places
    last_place = tl.minimum(first_place + places, out_h * out_w)
    sources = input_ptr + first_image.to(tl.int64) * in_n + ((channel // multiplier).to(tl.int64) * in_c)[None, None, :]
    grads = grad_output_ptr + first_image.to(tl.int64) * out_n + (channel.to(tl.int64) * out_c)[None, :]
    acc = tl.zeros((BLOCK_T, BLOCK_C), dtype)
    for _ in range(first_image, tl.minimum(first_image + images, batch)):
        for start in range(first_place, last_place, BLOCK_P):
            place = start + tl.arange(0, BLOCK_P)
            pixel_mask = place < last_place
            y = place // out_w
            x = place - y * out_w
            offset = y.to(tl.int64) * out_y + x.to(tl.int64) * out_x
            grad = tl.load(grads + offset[:, None], mask=pixel_mask[:, None] & channel_mask[None, :], other=0.0)
            row = (y * stride_h)[None, :] + down
            col = (x * stride_w)[None, :] + right
            inside = (row >= 0) & (row < in_h) & (col >= 0) & (col < in_w)
            mask = (inside & pixel_mask[None, :] & (tap < taps)[:, None])[:, :, None] & channel_mask[None, None, :]
            offset = row.to(tl.int64) * in_y + col.to(tl.int64) * in_x
            value = tl.load(sources + offset[:, :, None], mask=mask, other=0.0)
            acc += tl.sum(value.to(dtype) * grad.to(dtype)[None, :, :], axis=1)
        sources += in_n
        grads += out_n
    entry = (part.to(tl.int64) * out_channels + channel)[None, :] * taps + tap[:, None]
    tl.store(partial_ptr + entry, acc, mask=(tap < taps)[:, None] & channel_mask[None, :])


def _tuned(kernel):
    """The kernel for either layout, with its tile chosen; the interpreter has nothing to measure."""
    if interpreted():

        def untuned(grid, *args, **constants):
            kernel[grid(INTERPRETED_BLOCKS)](*args, **constants, **INTERPRETED_BLOCKS)

        return {False: untuned, True: untuned}

    def launcher_of(configs):
        tuned = triton.autotune(
            [triton.Config({"BLOCK_P": p, "BLOCK_C": c}, num_warps=warps) for p, c, warps in configs],
            key=["multiplier", "out_h", "out_w", "stride_w", "dilation_w", "KERNEL_H", "KERNEL_W"],
            cache_results=True,
        )(kernel)
        return lambda grid, *args, **constants: tuned[grid](*args, **constants)

    return {layout: launcher_of(configs) for layout, configs in CONFIGS.items()}


_forward = _tuned(conv2d_fwd_kernel)
_gradient = _tuned(conv2d_bwd_kernel)


def _unroll(kernel_w):
    """Taps whose loads are on their way together; the loads of a wide kernel would spill registers."""
    return kernel_w if kernel_w <= 7 else 1


def _grid(batch, channels, pixels):
    return lambda blocks: (batch * triton.cdiv(pixels, blocks["BLOCK_P"]) * triton.cdiv(channels, blocks["BLOCK_C"]),)


def _depthwise(input, weight, groups):
    return input.shape[1] == groups and input.numel() > 0 and weight.numel() > 0


def _weights(weight, last):
    """The weights with the strides of channel and tap: lanes of channels_last are channels."""
    taps = weight.shape[2] * weight.shape[3]
    if last:
        return weight.reshape(-1, taps).t().contiguous(), 1, weight.shape[0]
    return weight.contiguous(), taps, 1


def conv2d(input, weight, bias, stride, padding, dilation, groups):
    if not _depthwise(input, weight, groups):
        return torch.ops.aten.convolution(input, weight, bias, stride, padding, dilation, False, [0, 0], groups)
    n, c, in_h, in_w = input.shape
    out_channels, _, kernel_h, kernel_w = weight.shape
    size = [
        (input.shape[2 + d] + 2 * padding[d] - dilation[d] * (weight.shape[2 + d] - 1) - 1) // stride[d] + 1 for d in range(2)
    ]
    layout = memory_format(input)
    values = input.contiguous(memory_format=layout)
    last = is_channels_last(values)
    output = torch.empty((n, out_channels, *size), dtype=input.dtype, device=input.device, memory_format=layout)
    weights, weight_c, weight_t = _weights(weight, last)
    _forward[last](
        _grid(n, out_channels, size[0] * size[1]),
        values, weights, weights if bias is None else bias.contiguous(), output, out_channels, out_channels // groups,
        in_h, in_w, *size, *stride, *padding, *dilation, *values.stride(), *output.stride(), weight_c, weight_t,
        KERNEL_H=kernel_h, KERNEL_W=kernel_w, UNROLL=_unroll(kernel_w), HAS_BIAS=bias is not None, CHANNELS_LAST=last,
    )  # fmt: skip
    return output


def conv2d_backward(
    grad_output, input, weight, stride, padding, dilation, groups, need_input, need_weight, need_bias
):  # fmt: skip
    """Gradients that are not asked for come back empty."""
    none = input.new_empty(0)
    out_channels, _, kernel_h, kernel_w = weight.shape
    layout = memory_format(input)
    if not _depthwise(input, weight, groups):
        grads = torch.ops.aten.convolution_backward(
            grad_output, input, weight, [out_channels], stride, padding, dilation, False, [0, 0], groups,
            [need_input, need_weight, need_bias],
        )  # fmt: skip
        return (
            grads[0].contiguous(memory_format=layout) if need_input else none,
            grads[1].contiguous() if need_weight else none.clone(),
            grads[2] if need_bias else none.clone(),
        )
    n, c, in_h, in_w = input.shape
    size = grad_output.shape[2:]
    values = input.contiguous(memory_format=layout)
    last = is_channels_last(values)
    grad = grad_output.contiguous(memory_format=layout)
    geometry = (*stride, *padding, *dilation)
    strides = (*values.stride(), *grad.stride())
    grad_input = grad_weight = grad_bias = none
    if need_input:
        grad_input = torch.empty_like(values)
        weights, weight_c, weight_t = _weights(weight, last)
        _gradient[last](
            _grid(n, c, in_h * in_w),
            grad, weights, grad_input, c, out_channels // groups, in_h, in_w, *size, *geometry, *strides, weight_c, weight_t,
            KERNEL_H=kernel_h, KERNEL_W=kernel_w, UNROLL=_unroll(kernel_w), CHANNELS_LAST=last,
        )  # fmt: skip
    if need_weight:
        grad_weight = _weight_gradient(grad, values, weight, geometry, strides, out_channels // groups, last)
    if need_bias:
        grad_bias = grad.sum((0, 2, 3), dtype=torch.promote_types(grad.dtype, torch.float32)).to(grad.dtype)
    return grad_input, grad_weight if need_weight else none.clone(), grad_bias if need_bias else none.clone()


def _weight_gradient(grad, values, weight, geometry, strides, multiplier, last):
    n, out_channels, out_h, out_w = grad.shape
    taps = weight.shape[2] * weight.shape[3]
    block_t, block_p, block_c = (16, 64, 16) if interpreted() else WEIGHT_BLOCKS[last]
    blocks = triton.cdiv(out_channels, block_c), triton.cdiv(taps, block_t)
    wanted = triton.cdiv(PROGRAMS, blocks[0] * blocks[1])
    images = triton.cdiv(n, min(n, wanted))  # of one program
    parts = triton.cdiv(n, images)
    # A program has a few tiles at least.
    places = max(triton.cdiv(out_h * out_w, triton.cdiv(wanted, parts)), 4 * block_p)
    splits = triton.cdiv(out_h * out_w, places)
    dtype = torch.promote_types(grad.dtype, torch.float32)
    partial = torch.empty((parts * splits, out_channels, taps), dtype=dtype, device=grad.device)
    conv2d_weight_kernel[(blocks[0], parts * splits, blocks[1])](
        grad, values, partial, n, images, places, splits, out_channels, taps, multiplier, *values.shape[2:], out_h, out_w,
        weight.shape[3], *geometry, *strides, BLOCK_T=block_t, BLOCK_P=block_p, BLOCK_C=block_c,
    )  # fmt: skip
    return partial.sum(0).to(weight.dtype).view(weight.shape)


def compile_cases():
    """Yields ``(kernel, types of its pointers, its constants)`` for tests/triton/test_compile.py."""
    for value, last, kernel, config in (
        ("*fp32", False, 3, 0),
        ("*bf16", True, 3, 1),
        ("*fp16", True, 31, 1),
        ("*fp64", False, 5, 1),
    ):
        names = ("input_ptr", "weight_ptr", "bias_ptr", "output_ptr", "grad_output_ptr", "grad_input_ptr")
        pointers = dict.fromkeys(names, value) | {"partial_ptr": "*fp64" if value == "*fp64" else "*fp32"}
        constants = {
            "KERNEL_H": kernel,
            "KERNEL_W": kernel,
            "UNROLL": _unroll(kernel),
            "HAS_BIAS": True,
            "CHANNELS_LAST": last,
        }
        block_p, block_c, _ = CONFIGS[last][config]
        for jitted in (conv2d_fwd_kernel, conv2d_bwd_kernel):
            yield jitted, pointers, {**constants, "BLOCK_P": block_p, "BLOCK_C": block_c}
        block_t, block_p, block_c = WEIGHT_BLOCKS[last]
        yield conv2d_weight_kernel, pointers, {"BLOCK_T": block_t, "BLOCK_P": block_p, "BLOCK_C": block_c}
