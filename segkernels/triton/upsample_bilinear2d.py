"""Bilinear resampling in Triton: a gather in both directions, so that nothing is added atomically; the adjoint one
dimension after the other, rows first. A row, of a plane or of a channels_last image, is one run of elements."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from segkernels._layout import is_channels_last, memory_format
from segkernels.triton._resample import (
    TAPS,
    acc_type,
    bilinear_mode,
    bilinear_scale,
    gather_columns_kernel,
    gather_gradient,
    gather_rows_kernel,
    launch_over,
    taps,
    taps_kernel,
)


@triton.jit
def upsample_bilinear2d_fwd_kernel(
    input_ptr, output_ptr, places_ptr, weights_ptr, lines, channels, tiles, in_h, in_w, out_h, out_w,
    CHANNELS_LAST: tl.constexpr, ACC: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Some elements of some rows, of whatever images."""
    program = tl.program_id(0)
    line = (program // tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    place = program % tiles * BLOCK + tl.arange(0, BLOCK)[None, :]
    known_row = line < lines
    known_place = place < out_w * channels
    inside = known_row & known_place
    image = line // out_h
    y_ptr = places_ptr + (line - image * out_h)
    x = place // channels if CHANNELS_LAST else place
    x_ptr = places_ptr + 2 * out_h + in_h + 2 + x
    c = place - x * channels
    left = tl.load(x_ptr, mask=known_place, other=0) * channels + c
    right = tl.load(x_ptr + out_w, mask=known_place, other=0) * channels + c
    left_weight = tl.load(weights_ptr + 2 * out_h + x, mask=known_place, other=0)
    right_weight = tl.load(weights_ptr + 2 * out_h + out_w + x, mask=known_place, other=0)
    first_row = image * in_h
    top_ptr = input_ptr + (first_row + tl.load(y_ptr, mask=known_row, other=0)) * in_w * channels
    bottom_ptr = input_ptr + (first_row + tl.load(y_ptr + out_h, mask=known_row, other=0)) * in_w * channels
    top = tl.load(top_ptr + left, mask=inside).to(ACC) * left_weight
    top += tl.load(top_ptr + right, mask=inside).to(ACC) * right_weight
    bottom = tl.load(bottom_ptr + left, mask=inside).to(ACC) * left_weight
    bottom += tl.load(bottom_ptr + right, mask=inside).to(ACC) * right_weight
    y_weight_ptr = weights_ptr + (line - image * out_h)
    value = top * tl.load(y_weight_ptr, mask=known_row, other=0)
    value += bottom * tl.load(y_weight_ptr + out_h, mask=known_row, other=0)
    to_ptr = output_ptr + line * out_w * channels + place
    tl.store(to_ptr, value.to(output_ptr.dtype.element_ty), mask=inside)


def _scales(in_size, out_size, align_corners, scale_factors, dtype):
    return [bilinear_scale(i, o, align_corners, f, dtype) for i, o, f in zip(in_size, out_size, scale_factors)]


def upsample_bilinear2d(input, output_size, align_corners, scales_h, scales_w):
    layout = memory_format(input)
    n, c, in_h, in_w = input.shape
    out_h, out_w = output_size
    output = torch.empty((n, c, out_h, out_w), dtype=input.dtype, device=input.device, memory_format=layout)
    if output.numel() == 0:
        return output
    last = is_channels_last(input)
    images, channels = (n, c) if last else (n * c, 1)
    dtype, acc = acc_type(input.dtype)
    bits = [b for _, b in _scales((in_h, in_w), output_size, align_corners, (scales_h, scales_w), dtype)]
    tables = taps(bilinear_mode(align_corners), (in_h, in_w), output_size, bits, acc, False, input.device)
    grid, tiles, blocks = launch_over(images * out_h, out_w * channels)
    upsample_bilinear2d_fwd_kernel[grid](
        input.contiguous(memory_format=layout), output, *tables, images * out_h, channels, tiles, in_h, in_w, out_h, out_w,
        CHANNELS_LAST=last, ACC=acc, **blocks,
    )  # fmt: skip
    return output


def upsample_bilinear2d_backward(grad_output, input_size, align_corners, scales_h, scales_w):
    dtype, _ = acc_type(grad_output.dtype)
    scales = _scales(input_size, grad_output.shape[2:], align_corners, (scales_h, scales_w), dtype)
    return gather_gradient(bilinear_mode(align_corners), grad_output, input_size, scales)


def compile_cases():
    """Yields ``(kernel, types of its arguments, its constants)`` for tests/triton/test_compile.py."""
    for value, last, mode in (("*fp32", False, "bilinear"), ("*fp64", True, "align_corners"), ("*bf16", True, "nearest")):
        wide = "*fp64" if value == "*fp64" else "*fp32"
        types = dict.fromkeys(("input_ptr", "output_ptr", "grad_output_ptr", "grad_input_ptr"), value)
        types |= {"places_ptr": "*i32", "weights_ptr": wide, "sums_ptr": wide, "scale_h_bits": "i64", "scale_w_bits": "i64"}
        acc = tl.float64 if value == "*fp64" else tl.float32
        constants = {"CHANNELS_LAST": last, "ACC": acc, "ROWS": 8, "BLOCK": 256}
        yield upsample_bilinear2d_fwd_kernel, types, constants
        yield gather_rows_kernel, types, constants
        yield gather_columns_kernel, types, constants
        yield taps_kernel, types, {"MODE": mode, "STARTS": last, "ACC": acc, "BLOCK": TAPS}
