"""Nearest-neighbour resampling in Triton; backward sums, for each source pixel, the outputs that took its value."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from segkernels._layout import is_channels_last, memory_format
from segkernels.triton._resample import gather_gradient, launch_over, nearest_scale, taps


@triton.jit
def upsample_nearest2d_fwd_kernel(
    input_ptr, output_ptr, places_ptr, lines, channels, tiles, in_h, in_w, out_h, out_w,
    CHANNELS_LAST: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Some elements of some rows, of whatever images."""
    program = tl.program_id(0)
    line = (program // tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    place = program % tiles * BLOCK + tl.arange(0, BLOCK)[None, :]
    known_row = line < lines
    known_place = place < out_w * channels
    inside = known_row & known_place
    image = line // out_h
    row = tl.load(places_ptr + (line - image * out_h), mask=known_row, other=0)
    x = place // channels if CHANNELS_LAST else place
    column = tl.load(places_ptr + 2 * out_h + in_h + 2 + x, mask=known_place, other=0)
    from_ptr = input_ptr + (image * in_h + row) * in_w * channels + (column * channels + (place - x * channels))
    value = tl.load(from_ptr, mask=inside)
    tl.store(output_ptr + line * out_w * channels + place, value, mask=inside)


def _scales(in_size, out_size, scale_factors):
    return [nearest_scale(i, o, f) for i, o, f in zip(in_size, out_size, scale_factors)]


def upsample_nearest2d(input, output_size, scales_h, scales_w):
    layout = memory_format(input)
    n, c, in_h, in_w = input.shape
    out_h, out_w = output_size
    output = torch.empty((n, c, out_h, out_w), dtype=input.dtype, device=input.device, memory_format=layout)
    if output.numel() == 0:
        return output
    last = is_channels_last(input)
    images, channels = (n, c) if last else (n * c, 1)
    bits = [b for _, b in _scales((in_h, in_w), output_size, (scales_h, scales_w))]
    places, _ = taps("nearest", (in_h, in_w), output_size, bits, tl.float32, False, input.device)
    grid, tiles, blocks = launch_over(images * out_h, out_w * channels)
    upsample_nearest2d_fwd_kernel[grid](
        input.contiguous(memory_format=layout), output, places, images * out_h, channels, tiles, in_h, in_w, out_h, out_w,
        CHANNELS_LAST=last, **blocks,
    )  # fmt: skip
    return output


def upsample_nearest2d_backward(grad_output, input_size, scales_h, scales_w):
    scales = _scales(input_size, grad_output.shape[2:], (scales_h, scales_w))
    return gather_gradient("nearest", grad_output, input_size, scales)


def compile_cases():
    """Yields ``(kernel, types of its arguments, its constants)`` for tests/triton/test_compile.py."""
    for value, last in (("*fp32", False), ("*fp64", True), ("*bf16", True)):
        types = {"input_ptr": value, "output_ptr": value, "places_ptr": "*i32"}
        yield upsample_nearest2d_fwd_kernel, types, {"CHANNELS_LAST": last, "ROWS": 8, "BLOCK": 256}
