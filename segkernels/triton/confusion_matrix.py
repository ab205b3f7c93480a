"""Confusion matrix in Triton: each program counts the pairs of a block of pixels, in a histogram of its own where classes are
few, and adds them to the matrix. Counts are integers: the order of the atomics does not matter."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from segkernels.triton._resample import acc_type, bilinear_mode, bilinear_scale, place, taps

BLOCK = 1024
LOGITS_BLOCK = 512  # four pointers a pixel: twice as many spill
MOST_BINS = 1024  # of a histogram


@triton.jit
def label_bins(label, classes, ignore_index, HAS_IGNORE: tl.constexpr):
    """The label, ``classes`` for the ignored one, ``classes + 1`` for any other outside [0, classes)."""
    label = label.to(tl.int64)
    bins = tl.where((label >= 0) & (label < classes), label, classes + 1)
    if HAS_IGNORE:
        bins = tl.where(label == ignore_index, classes, bins)
    return bins


@triton.jit
def count_pairs(rows, columns, count, matrix_ptr, invalid_ptr, classes, inside):
    """Adds ``count`` for every pair that lies in the matrix, and for labels that lie nowhere."""
    pair = inside & (rows < classes) & (columns < classes)
    tl.atomic_add(matrix_ptr + rows * classes + columns, count, mask=pair)
    tl.atomic_add(invalid_ptr, tl.sum(tl.where(inside & (columns == classes + 1), count, 0), 0))
    tl.atomic_add(invalid_ptr + 1, tl.sum(tl.where(inside & (rows == classes + 1), count, 0), 0))


@triton.jit
def count_block(rows, columns, matrix_ptr, invalid_ptr, classes, inside, BINS: tl.constexpr):
    if BINS == 0:
        count_pairs(rows, columns, inside.to(tl.int64), matrix_ptr, invalid_ptr, classes, inside)
    else:
        # An image of one class would have all pixels of the device wait for one counter.
        size = classes + 2
        counts = tl.histogram((rows * size + columns).to(tl.int32), BINS, mask=inside).to(tl.int64)
        bins = tl.arange(0, BINS).to(tl.int64)
        row = bins // size
        count_pairs(row, bins - row * size, counts, matrix_ptr, invalid_ptr, classes, counts > 0)


@triton.jit
def confusion_labels_kernel(
    prediction_ptr, target_ptr, matrix_ptr, invalid_ptr, total, classes, ignore_index,
    HAS_IGNORE: tl.constexpr, PREDICTS_IGNORED: tl.constexpr, BINS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    offset = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offset < total
    rows = label_bins(tl.load(target_ptr + offset, mask=inside, other=0), classes, ignore_index, HAS_IGNORE)
    predicted = tl.load(prediction_ptr + offset, mask=inside, other=0)
    columns = label_bins(predicted, classes, ignore_index, HAS_IGNORE and not PREDICTS_IGNORED)
    count_block(rows, columns, matrix_ptr, invalid_ptr, classes, inside, BINS)


@triton.jit
def confusion_logits_kernel(
    logits_ptr, target_ptr, matrix_ptr, invalid_ptr, places_ptr, weights_ptr, total, classes, in_h, in_w, out_h, out_w,
    ignore_index, HAS_IGNORE: tl.constexpr, UPSAMPLE: tl.constexpr, CHANNELS_LAST: tl.constexpr, ACC: tl.constexpr,
    BINS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The class of the largest logit, UPSAMPLE: by the tables of taps_kernel; the first one, and NaN is the largest."""
    offset = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offset < total
    rows = label_bins(tl.load(target_ptr + offset, mask=inside, other=0), classes, ignore_index, HAS_IGNORE)
    row = offset // out_w
    x = offset - row * out_w
    n = row // out_h
    y = row - n * out_h
    step = 1 if CHANNELS_LAST else in_h * in_w
    first = tl.zeros_like(n)
    if UPSAMPLE:
        columns_ptr = places_ptr + 2 * out_h + in_h + 2
        left = tl.load(columns_ptr + x, mask=inside, other=0)
        right = tl.load(columns_ptr + out_w + x, mask=inside, other=0)
        top = tl.load(places_ptr + y, mask=inside, other=0)
        bottom = tl.load(places_ptr + out_h + y, mask=inside, other=0)
        left_weight = tl.load(weights_ptr + 2 * out_h + x, mask=inside, other=0)
        right_weight = tl.load(weights_ptr + 2 * out_h + out_w + x, mask=inside, other=0)
        top_weight = tl.load(weights_ptr + y, mask=inside, other=0)
        bottom_weight = tl.load(weights_ptr + out_h + y, mask=inside, other=0)
        top_left = logits_ptr + place(n, first, top, left, classes, in_h, in_w, CHANNELS_LAST)
        top_right = logits_ptr + place(n, first, top, right, classes, in_h, in_w, CHANNELS_LAST)
        low_left = logits_ptr + place(n, first, bottom, left, classes, in_h, in_w, CHANNELS_LAST)
        low_right = logits_ptr + place(n, first, bottom, right, classes, in_h, in_w, CHANNELS_LAST)
    else:
        top_left = logits_ptr + place(n, first, y, x, classes, in_h, in_w, CHANNELS_LAST)
    best = tl.full((BLOCK,), float("-inf"), dtype=ACC)
    columns = tl.zeros((BLOCK,), dtype=tl.int64)
    for k in range(classes):
        at = first + k * step
        value = tl.load(top_left + at, mask=inside, other=0.0).to(ACC)
        if UPSAMPLE:
            upper = value * left_weight + tl.load(top_right + at, mask=inside, other=0.0).to(ACC) * right_weight
            lower = tl.load(low_left + at, mask=inside, other=0.0).to(ACC) * left_weight
            lower += tl.load(low_right + at, mask=inside, other=0.0).to(ACC) * right_weight
            value = upper * top_weight + lower * bottom_weight
        take = (value > best) | ((value != value) & (best == best))
        best = tl.where(take, value, best)
        columns = tl.where(take, k, columns)
    count_block(rows, columns, matrix_ptr, invalid_ptr, classes, inside, BINS)


def _labels(labels: torch.Tensor) -> torch.Tensor:
    return (labels.view(torch.uint8) if labels.dtype == torch.bool else labels).contiguous()


def confusion_matrix(prediction, target, num_classes, ignore_index):
    matrix = torch.zeros((num_classes, num_classes), dtype=torch.int64, device=target.device)
    invalid = torch.zeros(2, dtype=torch.int64, device=target.device)
    total = target.numel()
    if total == 0:
        return matrix, invalid
    bins = triton.next_power_of_2((num_classes + 2) ** 2)
    constants = {"HAS_IGNORE": ignore_index is not None, "BINS": bins if bins <= MOST_BINS else 0}
    ignored = 0 if ignore_index is None else ignore_index
    if not prediction.is_floating_point():
        # An ignored class still counts where it is predicted; a label outside [0, C) has no column.
        confusion_labels_kernel[(triton.cdiv(total, BLOCK),)](
            _labels(prediction), _labels(target), matrix, invalid, total, num_classes, ignored,
            PREDICTS_IGNORED=0 <= ignored < num_classes, BLOCK=BLOCK, **constants,
        )  # fmt: skip
        return matrix, invalid
    upsampled = prediction.shape[2:] != target.shape[1:]
    last = prediction.dim() == 4 and prediction.is_contiguous(memory_format=torch.channels_last) and num_classes > 1
    values = prediction if last else prediction.contiguous()
    images, pixels = target.shape[0], total // target.shape[0]
    in_size, out_size = (values.shape[2:], target.shape[1:]) if upsampled else ((1, pixels), (1, pixels))
    compute, acc = acc_type(values.dtype)
    tables = (matrix, matrix)  # not read where sizes are equal
    if upsampled:
        bits = [bilinear_scale(i, o, False, None, compute)[1] for i, o in zip(in_size, out_size)]
        tables = taps(bilinear_mode(False), in_size, out_size, bits, acc, False, values.device)
    confusion_logits_kernel[(triton.cdiv(total, LOGITS_BLOCK),)](
        values, _labels(target), matrix, invalid, *tables, images * pixels, num_classes, *in_size, *out_size, ignored,
        UPSAMPLE=upsampled, CHANNELS_LAST=last, ACC=acc, BLOCK=LOGITS_BLOCK, **constants,
    )  # fmt: skip
    return matrix, invalid


def compile_cases():
    """Yields ``(kernel, types of its arguments, its constants)`` for tests/triton/test_compile.py."""
    for value, label, flag in (("*fp32", "*i64", False), ("*fp64", "*i32", True), ("*bf16", "*u8", True)):
        types = {
            "logits_ptr": value,
            "prediction_ptr": label,
            "target_ptr": "*i64",
            "matrix_ptr": "*i64",
            "invalid_ptr": "*i64",
            "places_ptr": "*i32",
            "weights_ptr": "*fp64" if value == "*fp64" else "*fp32",
        }
        constants = {"HAS_IGNORE": flag, "BINS": 1024 if flag else 0}
        yield confusion_labels_kernel, types, constants | {"PREDICTS_IGNORED": not flag, "BLOCK": BLOCK}
        acc = tl.float64 if value == "*fp64" else tl.float32
        sampling = {"UPSAMPLE": flag, "CHANNELS_LAST": not flag, "ACC": acc, "BLOCK": LOGITS_BLOCK}
        yield confusion_logits_kernel, types, constants | sampling
