"""Classes of bilinearly upsampled logits in Triton; the upsampled logits never exist."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from segkernels._layout import is_channels_last, memory_format
from segkernels.triton._resample import acc_type, bilinear_scale, bilinear_tap, place, split

BLOCK = 256


@triton.jit
def upsample_argmax_kernel(
    logits_ptr, labels_ptr, total, channels, in_h, in_w, out_h, out_w, scale_h_bits, scale_w_bits,
    ALIGN_CORNERS: tl.constexpr, CHANNELS_LAST: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One pixel per lane, class by class."""
    offset = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offset < total
    n, c, y, x = split(offset, 1, out_h, out_w, False)
    top, bottom, wy = bilinear_tap(y, in_h, out_h, scale_h_bits, ALIGN_CORNERS, ACC)
    left, right, wx = bilinear_tap(x, in_w, out_w, scale_w_bits, ALIGN_CORNERS, ACC)
    step = 1 if CHANNELS_LAST else in_h * in_w
    first = tl.zeros_like(n)
    top_left = logits_ptr + place(n, first, top, left, channels, in_h, in_w, CHANNELS_LAST)
    top_right = logits_ptr + place(n, first, top, right, channels, in_h, in_w, CHANNELS_LAST)
    low_left = logits_ptr + place(n, first, bottom, left, channels, in_h, in_w, CHANNELS_LAST)
    low_right = logits_ptr + place(n, first, bottom, right, channels, in_h, in_w, CHANNELS_LAST)
    best = tl.full((BLOCK,), float("-inf"), dtype=ACC)
    label = tl.zeros((BLOCK,), dtype=tl.int32)
    for k in range(channels):
        at = first + k * step
        upper = tl.load(top_left + at, mask=mask).to(ACC) * (1 - wx) + tl.load(top_right + at, mask=mask).to(ACC) * wx
        lower = tl.load(low_left + at, mask=mask).to(ACC) * (1 - wx) + tl.load(low_right + at, mask=mask).to(ACC) * wx
        value = upper * (1 - wy) + lower * wy
        # NaN is the largest, and the first one stays.
        take = (value > best) | ((value != value) & (best == best))
        best = tl.where(take, value, best)
        label = tl.where(take, k, label)
    tl.store(labels_ptr + offset, label.to(labels_ptr.dtype.element_ty), mask=mask)


def upsample_argmax(logits, output_size, align_corners, label_bits):
    dtype = {8: torch.uint8, 32: torch.int32, 64: torch.int64}[label_bits]
    labels = torch.empty((logits.shape[0], *output_size), dtype=dtype, device=logits.device)
    if labels.numel() == 0:
        return labels
    compute, acc = acc_type(logits.dtype)
    _, bits_h = bilinear_scale(logits.shape[2], output_size[0], align_corners, None, compute)
    _, bits_w = bilinear_scale(logits.shape[3], output_size[1], align_corners, None, compute)
    upsample_argmax_kernel[(triton.cdiv(labels.numel(), BLOCK),)](
        logits.contiguous(memory_format=memory_format(logits)), labels, labels.numel(), *logits.shape[1:], *output_size,
        bits_h, bits_w, ALIGN_CORNERS=align_corners, CHANNELS_LAST=is_channels_last(logits), ACC=acc, BLOCK=BLOCK,
    )  # fmt: skip
    return labels


def compile_cases():
    """Yields ``(kernel, types of its arguments, its constants)`` for tests/triton/test_compile.py."""
    for value, label, last in (("*fp32", "*i64", False), ("*fp64", "*i32", True), ("*bf16", "*u8", False)):
        types = {"logits_ptr": value, "labels_ptr": label, "scale_h_bits": "i64", "scale_w_bits": "i64"}
        acc = tl.float64 if value == "*fp64" else tl.float32
        constants = {"ALIGN_CORNERS": last, "CHANNELS_LAST": last, "ACC": acc, "BLOCK": BLOCK}
        yield upsample_argmax_kernel, types, constants
