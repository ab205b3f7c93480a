"""The Lovasz losses in Triton: the errors of every class, one stable sort of all classes by torch, and a scan of integers over
the ranks that gives the Jaccard gradient, which goes back to its pixels."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from segkernels._layout import is_channels_last, memory_format
from segkernels.triton._products import interpreted
from segkernels.triton._resample import acc_type

HINGE, SOFTMAX, PROBABILITIES = range(3)
CLASSES = 8  # that a program reads at once: a sector of memory where classes lie side by side
RANKS = 512
WRONG = -2  # the label that is no class; an ignored one is -1


@triton.jit
def lovasz_errors_kernel(
    input_ptr, target_ptr, labels_ptr, errors_ptr, total, classes, most, pixels, length, ignore_index,
    ERRORS: tl.constexpr, HAS_IGNORE: tl.constexpr, CHANNELS_LAST: tl.constexpr, ACC: tl.constexpr, CLASSES: tl.constexpr,
    PIXELS: tl.constexpr,
):  # fmt: skip
    """Labels, and errors [groups, classes, length] of some pixels; of ``most`` labels. Errors of 0 and less, and of ignored
    pixels, have no part in a loss and come last."""
    pixel = tl.program_id(0).to(tl.int64) * PIXELS + tl.arange(0, PIXELS)
    inside = pixel < total
    target = tl.load(target_ptr + pixel, mask=inside, other=0)
    label = target.to(tl.int64)
    if target_ptr.dtype.element_ty.is_floating():
        whole = label.to(tl.float64) == target.to(tl.float64)
        label = tl.where(whole, label, -9223372036854775807)
    found = tl.where((label >= 0) & (label < most), label, -2)
    if HAS_IGNORE:
        found = tl.where(label == ignore_index, -1, found)
    label = found.to(tl.int32)
    tl.store(labels_ptr + pixel, label, mask=inside)
    n = pixel // pixels
    place = pixel - n * pixels
    step = 1 if CHANNELS_LAST else pixels
    from_ptr = input_ptr + (pixel * classes if CHANNELS_LAST else n * classes * pixels + place)
    if ERRORS == 1:
        largest = tl.full((PIXELS,), -1e38, ACC)
        sums = tl.zeros((PIXELS,), ACC)
        for first in range(0, classes, CLASSES):
            c = first + tl.arange(0, CLASSES)
            mask = (c < classes)[:, None] & inside[None, :]
            x = tl.load(from_ptr[None, :] + c.to(tl.int64)[:, None] * step, mask=mask, other=float("-inf")).to(ACC)
            larger = tl.maximum(largest, tl.max(x, 0))
            sums = sums * tl.exp(largest - larger) + tl.sum(tl.exp(x - larger[None, :]), 0)
            largest = larger
        scale = 1 / sums
    group = pixel // length
    to_ptr = errors_ptr + group * (classes - 1) * length + pixel
    for first in range(0, classes, CLASSES):
        c = first + tl.arange(0, CLASSES)
        mask = (c < classes)[:, None] & inside[None, :]
        x = tl.load(from_ptr[None, :] + c.to(tl.int64)[:, None] * step, mask=mask, other=0.0).to(ACC)
        if ERRORS == 0:
            error = tl.where(label[None, :] == 1, 1 - x, 1 + x)
        else:
            if ERRORS == 1:
                x = tl.exp(x - largest[None, :]) * scale[None, :]
            error = tl.where(label[None, :] == c[:, None], 1 - x, x)
        error = tl.where((label[None, :] == -1) | (error <= 0), -1.0, error)
        tl.store(to_ptr[None, :] + c.to(tl.int64)[:, None] * length, error, mask=mask)


@triton.jit
def lovasz_count_kernel(
    labels_ptr, order_ptr, counts_ptr, classes, length, chunks, HINGE: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Positive pixels in a chunk of the ranks of a segment, which is what is sorted together."""
    program = tl.program_id(0).to(tl.int64)
    segment = program // chunks
    rank = (program - segment * chunks) * BLOCK + tl.arange(0, BLOCK)
    inside = rank < length
    group = segment // classes
    positive = 1 if HINGE else segment - group * classes
    place = tl.load(order_ptr + segment * length + rank, mask=inside, other=0)
    label = tl.load(labels_ptr + group * length + place, mask=inside, other=-1)
    tl.store(counts_ptr + program, tl.sum((label == positive).to(tl.int32), 0))


@triton.jit
def lovasz_slopes_kernel(
    labels_ptr, order_ptr, errors_ptr, before_ptr, totals_ptr, scales_ptr, losses_ptr, slopes_ptr, classes, pixels, length,
    chunks, HINGE: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The Jaccard gradient at every rank goes to its pixel, with the sign of the error's slope."""
    program = tl.program_id(0).to(tl.int64)
    segment = program // chunks
    rank = (program - segment * chunks) * BLOCK + tl.arange(0, BLOCK)
    inside = rank < length
    group = segment // classes
    own = 1 if HINGE else segment - group * classes
    place = tl.load(order_ptr + segment * length + rank, mask=inside, other=0)
    positive = tl.load(labels_ptr + group * length + place, mask=inside, other=-1) == own
    error = tl.load(errors_ptr + segment * length + rank, mask=inside, other=-1.0)
    count = positive.to(tl.int32)
    earlier = tl.load(before_ptr + program) + tl.cumsum(count, 0) - count
    positives = tl.load(totals_ptr + segment)
    scale = tl.load(scales_ptr + segment)
    # How much 1 - intersection / union grows with this pixel; the first one decides where the class is absent.
    whole = (positives + rank - earlier).to(tl.float64)
    above = tl.where(positive, whole + 1, (positives - earlier).to(tl.float64))
    step = tl.where(whole == 0, 1.0, above / tl.where(whole == 0, 1.0, whole * (whole + 1))) * scale
    step = tl.where(error <= 0, 0.0, tl.where(scale == 0, 0.0, step))
    tl.store(losses_ptr + program, tl.sum(tl.where(step == 0, 0.0, error.to(tl.float64) * step), 0))
    image = place // pixels
    plane = (group * (length // pixels) + image) * classes + segment - group * classes
    slope = tl.where(positive, -step, step).to(ACC)
    tl.store(slopes_ptr + plane * pixels + (place - image * pixels), slope, mask=inside)


@triton.jit
def lovasz_loss_bwd_kernel(
    grad_output_ptr, input_ptr, slopes_ptr, grad_input_ptr, total, classes, pixels, grad_step,
    ERRORS: tl.constexpr, CHANNELS_LAST: tl.constexpr, ACC: tl.constexpr, CLASSES: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """Slopes times the loss's gradient, through the softmax."""
    pixel = tl.program_id(0).to(tl.int64) * PIXELS + tl.arange(0, PIXELS)
    inside = pixel < total
    n = pixel // pixels
    start = n * classes * pixels + pixel - n * pixels  # in [N, C, H, W]
    offset = pixel * classes if CHANNELS_LAST else start
    step = 1 if CHANNELS_LAST else pixels
    upstream = tl.load(grad_output_ptr + n * grad_step, mask=inside, other=0.0).to(ACC)
    if ERRORS == 1:
        largest = tl.full((PIXELS,), -1e38, ACC)
        sums = tl.zeros((PIXELS,), ACC)
        dot = tl.zeros((PIXELS,), ACC)
        used = tl.zeros((PIXELS,), tl.int32)
        for first in range(0, classes, CLASSES):
            c = (first + tl.arange(0, CLASSES)).to(tl.int64)[:, None]
            mask = (c < classes) & inside[None, :]
            x = tl.load(input_ptr + offset[None, :] + c * step, mask=mask, other=float("-inf")).to(ACC)
            slope = tl.load(slopes_ptr + start[None, :] + c * pixels, mask=mask, other=0.0)
            larger = tl.maximum(largest, tl.max(x, 0))
            exponential = tl.exp(x - larger[None, :])
            shrink = tl.exp(largest - larger)
            sums = sums * shrink + tl.sum(exponential, 0)
            dot = dot * shrink + tl.sum(exponential * slope, 0)
            used += tl.sum((slope != 0).to(tl.int32), 0)
            largest = larger
        scale = 1 / sums
        dot *= scale
    for first in range(0, classes, CLASSES):
        c = (first + tl.arange(0, CLASSES)).to(tl.int64)[:, None]
        mask = (c < classes) & inside[None, :]
        grad = tl.load(slopes_ptr + start[None, :] + c * pixels, mask=mask, other=0.0)
        if ERRORS == 1:
            x = tl.load(input_ptr + offset[None, :] + c * step, mask=mask, other=0.0).to(ACC)
            p = tl.exp(x - largest[None, :]) * scale[None, :]
            # Without a slope there is no gradient, whatever an ignored pixel holds.
            grad = tl.where(used[None, :] > 0, p * (upstream[None, :] * (grad - dot[None, :])), 0.0)
        else:
            grad *= upstream[None, :]
        tl.store(grad_input_ptr + offset[None, :] + c * step, grad.to(grad_input_ptr.dtype.element_ty), mask=mask)


def _blocks(classes: int, dtype: torch.dtype) -> dict[str, int]:
    classes = min(CLASSES, triton.next_power_of_2(classes))
    products = 1024 if dtype == torch.float64 else 2048
    return {"CLASSES": classes, "PIXELS": 4096 if interpreted() else min(512, products // classes)}


def lovasz_loss(input, target, errors, ignore_index, per_image, all_classes):
    n, c, h, w = input.shape
    compute, acc = acc_type(input.dtype)
    device = input.device
    groups = n if per_image else 1
    slopes = torch.empty(input.shape, dtype=compute, device=device)
    if input.numel() == 0:
        return torch.zeros(groups, dtype=compute, device=device), slopes
    hinge = errors == HINGE
    # The hinge sorts all pixels of a loss together, as those of one class.
    classes, pixels = (1, n * c * h * w // groups) if hinge else (c, h * w)
    length = pixels if hinge else n // groups * pixels
    total, segments = groups * length, groups * classes
    last = not hinge and is_channels_last(input)
    values = input.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    flags = target.view(torch.uint8) if target.dtype == torch.bool else target
    labels = torch.empty((groups, length), dtype=torch.int32, device=device)
    unsorted = torch.empty((segments, length), dtype=compute, device=device)
    blocks = _blocks(classes, compute)
    lovasz_errors_kernel[(triton.cdiv(total, blocks["PIXELS"]),)](
        values, flags.contiguous(), labels, unsorted, total, classes, 2 if hinge else c, pixels, length,
        0 if ignore_index is None else ignore_index, ERRORS=errors, HAS_IGNORE=ignore_index is not None, CHANNELS_LAST=last,
        ACC=acc, **blocks,
    )  # fmt: skip
    sorted_errors, order = torch.sort(unsorted, dim=1, descending=True, stable=True)
    block = 1 << 15 if interpreted() else RANKS
    chunks = triton.cdiv(length, block)
    grid = (segments * chunks,)
    counts = torch.empty((segments, chunks), dtype=torch.int64, device=device)
    lovasz_count_kernel[grid](labels, order, counts, classes, length, chunks, HINGE=hinge, BLOCK=block)
    totals = counts.sum(1)
    wrong = (labels == WRONG).any(1, keepdim=True)
    if hinge:
        scales = torch.ones((groups, 1), dtype=torch.float64, device=device)
    else:
        present = totals.view(groups, classes) > 0
        used = present | (present.any(1, keepdim=True) & all_classes)
        scales = used / used.sum(1, keepdim=True).clamp_min(1).to(torch.float64)
    scales = torch.where(wrong, float("nan"), scales)
    losses = torch.empty((segments, chunks), dtype=torch.float64, device=device)
    lovasz_slopes_kernel[grid](
        labels, order, sorted_errors, counts.cumsum(1) - counts, totals, scales, losses, slopes, classes, pixels, length,
        chunks, HINGE=hinge, ACC=acc, BLOCK=block,
    )  # fmt: skip
    loss = losses.view(groups, -1).sum(1)
    return torch.where(wrong.squeeze(1), float("nan"), loss).to(compute), slopes


def lovasz_loss_backward(grad_output, input, slopes, errors, per_image):
    n, c, h, w = input.shape
    grad_input = torch.empty(input.shape, dtype=input.dtype, device=input.device, memory_format=memory_format(input))
    if grad_input.numel() == 0:
        return grad_input
    compute, acc = acc_type(input.dtype)
    blocks = _blocks(c, compute)
    lovasz_loss_bwd_kernel[(triton.cdiv(n * h * w, blocks["PIXELS"]),)](
        grad_output.contiguous(), input.contiguous(memory_format=memory_format(input)), slopes.contiguous(), grad_input,
        n * h * w, c, h * w, int(per_image), ERRORS=errors, CHANNELS_LAST=is_channels_last(input), ACC=acc, **blocks,
    )  # fmt: skip
    return grad_input


def compile_cases():
    """Yields ``(kernel, types of its arguments, its constants)`` for tests/triton/test_compile.py."""
    for value, label, flag, errors in (
        ("*fp32", "*i64", False, SOFTMAX), ("*fp64", "*i32", True, SOFTMAX), ("*bf16", "*bf16", True, HINGE),
        ("*fp16", "*u8", True, PROBABILITIES),
    ):  # fmt: skip
        wide, acc = ("*fp64", tl.float64) if value == "*fp64" else ("*fp32", tl.float32)
        types = dict.fromkeys(("input_ptr", "grad_input_ptr"), value) | {"target_ptr": label, "labels_ptr": "*i32"}
        types |= dict.fromkeys(("errors_ptr", "slopes_ptr", "grad_output_ptr"), wide)
        types |= dict.fromkeys(("order_ptr", "counts_ptr", "before_ptr", "totals_ptr"), "*i64")
        types |= dict.fromkeys(("scales_ptr", "losses_ptr"), "*fp64")
        constants: dict[str, Any] = {"ERRORS": errors, "HINGE": errors == HINGE, "HAS_IGNORE": flag, "ACC": acc}
        constants |= {"CHANNELS_LAST": flag and errors != HINGE, "BLOCK": RANKS, "CLASSES": CLASSES}
        constants["PIXELS"] = 128 if value == "*fp64" else 256
        yield lovasz_errors_kernel, types, constants
        yield lovasz_slopes_kernel, types, constants
        yield lovasz_loss_bwd_kernel, types, constants
        if value != "*fp64":
            yield lovasz_count_kernel, types, constants
