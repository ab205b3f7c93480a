"""Classes of bilinearly upsampled logits in Triton; the upsampled logits never exist."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from segkernels._layout import is_channels_last, memory_format
from segkernels.triton._resample import acc_type, bilinear_mode, bilinear_scale, taps

BLOCK = 256


@triton.jit
def upsample_argmax_kernel(
    logits_ptr, labels_ptr, places_ptr, weights_ptr, total, channels, in_h, in_w, out_h, out_w,
    CHANNELS_LAST: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One pixel per lane, class by class."""
    offset = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offset < total
    row = offset // out_w
    x = offset - row * out_w
    n = row // out_h
    y = row - n * out_h
    columns_ptr = places_ptr + 2 * out_h + in_h + 2
    left = tl.load(columns_ptr + x, mask=mask, other=0).to(tl.int64)
    right = tl.load(columns_ptr + out_w + x, mask=mask, other=0).to(tl.int64)
    left_weight = tl.load(weights_ptr + 2 * out_h + x, mask=mask, other=0)
    right_weight = tl.load(weights_ptr + 2 * out_h + out_w + x, mask=mask, other=0)
    top = tl.load(places_ptr + y, mask=mask, other=0).to(tl.int64) * in_w
    bottom = tl.load(places_ptr + out_h + y, mask=mask, other=0).to(tl.int64) * in_w
    top_weight = tl.load(weights_ptr + y, mask=mask, other=0)
    bottom_weight = tl.load(weights_ptr + out_h + y, mask=mask, other=0)
    pixel = channels if CHANNELS_LAST else 1
    step = 1 if CHANNELS_LAST else in_h * in_w
    image_ptr = logits_ptr + n * channels * in_h * in_w
    top_left = image_ptr + (top + left) * pixel
    top_right = image_ptr + (top + right) * pixel
    low_left = image_ptr + (bottom + left) * pixel
    low_right = image_ptr + (bottom + right) * pixel
    best = tl.full((BLOCK,), float("-inf"), dtype=ACC)
    label = tl.full((BLOCK,), 0, tl.int32)
    for k in range(channels):
        upper = tl.load(top_left, mask=mask).to(ACC) * left_weight + tl.load(top_right, mask=mask).to(ACC) * right_weight
        lower = tl.load(low_left, mask=mask).to(ACC) * left_weight + tl.load(low_right, mask=mask).to(ACC) * right_weight
        value = upper * top_weight + lower * bottom_weight
        # NaN is the largest, and the first one stays.
        take = (value > best) | ((value != value) & (best == best))
        best = tl.where(take, value, best)
        label = tl.where(take, k, label)
        top_left += step
        top_right += step
        low_left += step
        low_right += step
    tl.store(labels_ptr + offset, label.to(labels_ptr.dtype.element_ty), mask=mask)


def upsample_argmax(logits, output_size, align_corners, label_bits):
    dtype = {8: torch.uint8, 32: torch.int32, 64: torch.int64}[label_bits]
    labels = torch.empty((logits.shape[0], *output_size), dtype=dtype, device=logits.device)
    if labels.numel() == 0:
        return labels
    compute, acc = acc_type(logits.dtype)
    size = logits.shape[2:]
    bits = [bilinear_scale(i, o, align_corners, None, compute)[1] for i, o in zip(size, output_size)]
    tables = taps(bilinear_mode(align_corners), size, output_size, bits, acc, False, logits.device)
    upsample_argmax_kernel[(triton.cdiv(labels.numel(), BLOCK),)](
        logits.contiguous(memory_format=memory_format(logits)), labels, *tables, labels.numel(), *logits.shape[1:],
        *output_size, CHANNELS_LAST=is_channels_last(logits), ACC=acc, BLOCK=BLOCK,
    )  # fmt: skip
    return labels


def compile_cases():
    """Yields ``(kernel, types of its arguments, its constants)`` for tests/triton/test_compile.py."""
    for value, label, last in (("*fp32", "*i64", False), ("*fp64", "*i32", True), ("*bf16", "*u8", False)):
        wide, acc = ("*fp64", tl.float64) if value == "*fp64" else ("*fp32", tl.float32)
        types = {"logits_ptr": value, "labels_ptr": label, "places_ptr": "*i32", "weights_ptr": wide}
        yield upsample_argmax_kernel, types, {"CHANNELS_LAST": last, "ACC": acc, "BLOCK": BLOCK}
