"""Depthwise-separable convolution in Triton: depthwise results are computed in registers, as an operand of the product.

The map between the two convolutions never exists in memory. As on the CPU, backward computes it again with torch's kernels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from segkernels._geometry import output_size
from segkernels._layout import memory_format
from segkernels.triton._products import arithmetic, compile_types, launch


@triton.jit
def depthwise_separable_conv2d_fwd_kernel(
    input_ptr, depthwise_ptr, pointwise_ptr, depthwise_bias_ptr, pointwise_bias_ptr, output_ptr,
    pixels, hidden, out_channels, multiplier, in_h, in_w, out_h, out_w,
    kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w,
    in_n, in_c, in_y, in_x, out_n, out_c, out_y, out_x,
    DEPTHWISE_BIAS: tl.constexpr, POINTWISE_BIAS: tl.constexpr, RELU: tl.constexpr,
    ACC: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Output pixels times out channels; the weights are [tap, hidden] and [hidden, out channel]."""
    pixel = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    channel = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    n = pixel // (out_h * out_w)
    rest = pixel - n * (out_h * out_w)
    y = rest // out_w
    x = rest - y * out_w
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=ACC)
    for k0 in range(0, hidden, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)
        values = tl.zeros((BLOCK_M, BLOCK_K), dtype=ACC)
        if DEPTHWISE_BIAS:
            values += tl.load(depthwise_bias_ptr + k, mask=k < hidden, other=0.0).to(ACC)[None, :]
        for ky in range(kernel_h):
            from_y = y * stride_h - pad_h + ky * dilation_h
            for kx in range(kernel_w):
                from_x = x * stride_w - pad_w + kx * dilation_w
                inside = (pixel < pixels) & (from_y >= 0) & (from_y < in_h) & (from_x >= 0) & (from_x < in_w)
                place = n.to(tl.int64) * in_n + from_y * in_y + from_x * in_x
                source = input_ptr + place[:, None] + ((k // multiplier).to(tl.int64) * in_c)[None, :]
                found = tl.load(source, mask=inside[:, None] & (k < hidden)[None, :], other=0.0).to(ACC)
                weight = tl.load(depthwise_ptr + (ky * kernel_w + kx) * hidden + k, mask=k < hidden, other=0.0)
                values += found * weight.to(ACC)[None, :]
        if RELU:
            # NaN stays, as in torch.
            values = tl.where(values < 0, 0.0, values)
        entry = (k.to(tl.int64) * out_channels)[:, None] + channel[None, :]
        b_mask = (k < hidden)[:, None] & (channel < out_channels)[None, :]
        b = tl.load(pointwise_ptr + entry, mask=b_mask, other=0.0)
        acc = tl.dot(values.to(OPERAND), b.to(OPERAND), acc, input_precision=PRECISION, out_dtype=ACC)
    if POINTWISE_BIAS:
        acc += tl.load(pointwise_bias_ptr + channel, mask=channel < out_channels, other=0.0).to(ACC)[None, :]
    if RELU:
        acc = tl.where(acc < 0, 0.0, acc)
    target = output_ptr + (n.to(tl.int64) * out_n + y * out_y + x * out_x)[:, None]
    mask = (pixel < pixels)[:, None] & (channel < out_channels)[None, :]
    tl.store(target + (channel.to(tl.int64) * out_c)[None, :], acc.to(output_ptr.dtype.element_ty), mask=mask)


def depthwise_separable_conv2d(
    input, depthwise_weight, pointwise_weight, depthwise_bias, pointwise_bias, stride, padding, dilation, relu
):  # fmt: skip
    n, channels, *in_size = input.shape
    hidden, out_channels = depthwise_weight.shape[0], pointwise_weight.shape[0]
    kernel = depthwise_weight.shape[2:]
    size = output_size(in_size, list(kernel), stride, padding, dilation, False)
    shape = (n, out_channels, *size)
    output = torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=memory_format(input))
    if output.numel() == 0:
        return output
    depthwise = depthwise_weight.flatten(1).t().contiguous()
    pointwise = pointwise_weight.flatten(1).t().contiguous()
    biases = [depthwise if bias is None else bias.contiguous() for bias in (depthwise_bias, pointwise_bias)]
    pixels = n * size[0] * size[1]
    launch(
        depthwise_separable_conv2d_fwd_kernel,
        ("hidden", "out_channels", "out_h", "out_w", "kernel_h", "RELU"),
        lambda b: (triton.cdiv(pixels, b["BLOCK_M"]), triton.cdiv(out_channels, b["BLOCK_N"])),
        input, depthwise, pointwise, *biases, output, pixels, hidden, out_channels, hidden // channels, *in_size, *size,
        *kernel, *stride, *padding, *dilation, *input.stride(), *output.stride(),
        DEPTHWISE_BIAS=depthwise_bias is not None, POINTWISE_BIAS=pointwise_bias is not None, RELU=relu,
        **arithmetic(input.dtype),
    )  # fmt: skip
    return output


def depthwise_separable_conv2d_backward(
    grad_output, output, input, depthwise_weight, pointwise_weight, depthwise_bias, stride, padding, dilation,
    need_input, need_depthwise_weight, need_pointwise_weight, need_depthwise_bias, need_pointwise_bias,
):  # fmt: skip
    backward = torch.ops.aten.convolution_backward
    channels = input.shape[1]
    hidden = F.conv2d(input, depthwise_weight, depthwise_bias, stride, padding, dilation, channels)
    if output is not None:
        grad_output = grad_output * (output > 0)
        hidden = hidden.relu_()
    need_hidden = need_input or need_depthwise_weight or need_depthwise_bias
    grad_hidden, grad_pointwise, grad_pointwise_bias = backward(
        grad_output, hidden, pointwise_weight, [pointwise_weight.shape[0]], [1, 1], [0, 0], [1, 1], False, [0, 0], 1,
        [need_hidden, need_pointwise_weight, need_pointwise_bias],
    )  # fmt: skip
    grad_input = grad_depthwise = grad_depthwise_bias = None
    if need_hidden:
        if output is not None:
            grad_hidden = grad_hidden * (hidden > 0)
        grad_input, grad_depthwise, grad_depthwise_bias = backward(
            grad_hidden, input, depthwise_weight, [hidden.shape[1]], stride, padding, dilation, False, [0, 0], channels,
            [need_input, need_depthwise_weight, need_depthwise_bias],
        )  # fmt: skip
    if grad_input is not None:
        grad_input = grad_input.contiguous(memory_format=memory_format(input))
    weights = [None if grad is None else grad.contiguous() for grad in (grad_depthwise, grad_pointwise)]
    grads = (grad_input, *weights, grad_depthwise_bias, grad_pointwise_bias)
    return tuple(input.new_empty(0) if grad is None else grad for grad in grads)


def compile_cases():
    """Yields ``(kernel, types of its pointers, its constants)`` for tests/triton/test_compile.py."""
    names = ("input", "depthwise", "pointwise", "depthwise_bias", "pointwise_bias", "output")
    for value, _, constants in compile_types():
        flags = dict.fromkeys(("DEPTHWISE_BIAS", "POINTWISE_BIAS", "RELU"), True)
        yield depthwise_separable_conv2d_fwd_kernel, {f"{name}_ptr": value for name in names}, {**flags, **constants}
