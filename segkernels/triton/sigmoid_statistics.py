"""Sums over sigmoid probabilities in Triton: a program sums a block of one plane, torch adds the blocks up in float64.
Upsampled logits are blended as they are read, and the gradient of each source is gathered from the pixels that read it."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from segkernels._layout import is_channels_last, memory_format
from segkernels.triton._gather import column_taps, output_columns, output_rows, source_row
from segkernels.triton._planes import element_offset
from segkernels.triton._regions import bits, from_bits
from segkernels.triton._resample import acc_type, bilinear_mode, bilinear_scale, taps
from segkernels.triton.dice_bce_loss import load_targets, log1p_unit, own_block, probability

BLOCK = 512
LINES = 8  # source rows of a program
ANY, SQUARE = 1, 2  # exponents of the focal loss
STATISTICS = 5  # sums of p * t (or min(p, t)), p, t, the losses, and the number of valid pixels


@triton.jit
def pixel_loss(x, t, positive, negative, gamma, GAMMA: tl.constexpr):
    """p, 1 - p, the cross entropy, the error p (1 - t) + (1 - p) t, and the error to the power of gamma."""
    p, q, e = probability(x, True)
    up, down = t * positive, (1 - t) * negative
    cross_entropy = log1p_unit(e) * (up + down) + tl.where(x > 0, down * x, -up * x)
    error = p * (1 - t) + q * t
    if GAMMA == 0:
        power = tl.zeros_like(error) + 1
    elif GAMMA == 2:
        power = error * error
    else:
        power = tl.exp(gamma * tl.log(error))
    return p, q, cross_entropy, error, power


@triton.jit
def pixel_gradient(
    x, t, positive, negative, gamma, by_intersection, by_probability, by_loss,
    GAMMA: tl.constexpr, MINIMUM: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    p, q, cross_entropy, error, power = pixel_loss(x, t, positive, negative, gamma, GAMMA)
    slope = (1 - t) * p * negative - t * q * positive
    if GAMMA:
        # d error / dx over the error; both vanish together.
        tiny = 2.2250738585072014e-308 if ACC == tl.float64 else 1.1754943508222875e-38
        change = (1 - 2 * t) * p * q / tl.where(error < tiny, tiny, error)
        slope = power * (slope + gamma * change * cross_entropy)
    inside = t
    if MINIMUM:
        inside = tl.where(p < t, 1.0, tl.where(p > t, 0.0, 0.5)).to(ACC)
    return slope * by_loss + p * q * (inside * by_intersection + by_probability)


@triton.jit
def block_logits(
    input_ptr, places_ptr, weights_ptr, plane, place, inside, channels, in_h, in_w, out_h, out_w,
    UPSAMPLE: tl.constexpr, INPUT_LAST: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Logits of places of the output."""
    if UPSAMPLE:
        y = place // out_w
        x = place - y * out_w
        columns_ptr = places_ptr + 2 * out_h + in_h + 2 + x
        left = tl.load(columns_ptr, mask=inside, other=0)
        right = tl.load(columns_ptr + out_w, mask=inside, other=0)
        right_weight = tl.load(weights_ptr + 2 * out_h + out_w + x, mask=inside, other=0.0)
        top = tl.load(places_ptr + y, mask=inside, other=0)
        bottom = tl.load(places_ptr + out_h + y, mask=inside, other=0)
        unit = channels if INPUT_LAST else 1
        plane_ptr = input_ptr + element_offset(plane, 0, channels, tl.full((), in_h, tl.int64) * in_w, INPUT_LAST)
        upper = source_row(plane_ptr, top, in_w, unit, left, right, right_weight, inside, ACC)
        lower = source_row(plane_ptr, bottom, in_w, unit, left, right, right_weight, inside, ACC)
        return upper + tl.load(weights_ptr + out_h + y, mask=inside, other=0.0) * (lower - upper)
    else:
        pixels = tl.full((), in_h, tl.int64) * in_w
        return tl.load(input_ptr + element_offset(plane, place, channels, pixels, INPUT_LAST), mask=inside, other=0.0).to(ACC)


@triton.jit
def sigmoid_statistics_fwd_kernel(
    input_ptr, target_ptr, positive_ptr, partial_ptr, losses_ptr, places_ptr, weights_ptr, channels, in_h, in_w, out_h, out_w,
    blocks, ignore_index, negative_bits, gamma_bits,
    HAS_IGNORE: tl.constexpr, GAMMA: tl.constexpr, MINIMUM: tl.constexpr, LOSSES: tl.constexpr, UPSAMPLE: tl.constexpr,
    INPUT_LAST: tl.constexpr, TARGET_LAST: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sums of a block of a plane, and the losses of its pixels."""
    plane, place = own_block(blocks, BLOCK)
    pixels = tl.full((), out_h, tl.int64) * out_w
    inside = place < pixels
    offset = element_offset(plane, place, channels, pixels, TARGET_LAST)
    t, valid = load_targets(target_ptr, offset, inside, ignore_index, HAS_IGNORE, ACC)
    x = block_logits(input_ptr, places_ptr, weights_ptr, plane, place, inside, channels, in_h, in_w, out_h, out_w, UPSAMPLE,
                     INPUT_LAST, ACC)  # fmt: skip
    positive = tl.load(positive_ptr + plane % channels)
    p, _, cross_entropy, _, power = pixel_loss(
        tl.where(valid, x, 0.0), t, positive, from_bits(negative_bits, ACC), from_bits(gamma_bits, ACC), GAMMA
    )
    loss = tl.where(valid, cross_entropy * power, 0.0)
    intersection = tl.where(p < t, p, t) if MINIMUM else p * t
    to_ptr = partial_ptr + tl.program_id(0).to(tl.int64) * 5
    tl.store(to_ptr, tl.sum(tl.where(valid, intersection, 0.0), 0))
    tl.store(to_ptr + 1, tl.sum(tl.where(valid, p, 0.0), 0))
    tl.store(to_ptr + 2, tl.sum(t, 0))
    tl.store(to_ptr + 3, tl.sum(loss, 0))
    tl.store(to_ptr + 4, tl.sum(valid.to(ACC), 0))
    if LOSSES:
        tl.store(losses_ptr + plane * pixels + place, loss, mask=inside)


@triton.jit
def sigmoid_statistics_bwd_kernel(
    grad_region_ptr, grad_pixel_ptr, grad_losses_ptr, input_ptr, target_ptr, positive_ptr, grad_input_ptr, channels, pixels,
    blocks, ignore_index, negative_bits, gamma_bits,
    HAS_IGNORE: tl.constexpr, GAMMA: tl.constexpr, MINIMUM: tl.constexpr, LOSSES: tl.constexpr, INPUT_LAST: tl.constexpr,
    TARGET_LAST: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients of a block of a plane."""
    plane, place = own_block(blocks, BLOCK)
    inside = place < pixels
    offset = element_offset(plane, place, channels, pixels, TARGET_LAST)
    t, valid = load_targets(target_ptr, offset, inside, ignore_index, HAS_IGNORE, ACC)
    own = element_offset(plane, place, channels, pixels, INPUT_LAST)
    x = tl.load(input_ptr + own, mask=inside, other=0.0).to(ACC)
    by_loss = tl.load(grad_pixel_ptr + plane * 2).to(ACC) + tl.zeros_like(x)
    if LOSSES:
        by_loss += tl.load(grad_losses_ptr + plane * pixels + place, mask=inside, other=0.0).to(ACC)
    grad = pixel_gradient(
        x, t, tl.load(positive_ptr + plane % channels), from_bits(negative_bits, ACC), from_bits(gamma_bits, ACC),
        tl.load(grad_region_ptr + plane * 3).to(ACC), tl.load(grad_region_ptr + plane * 3 + 1).to(ACC), by_loss,
        GAMMA, MINIMUM, ACC,
    )  # fmt: skip
    tl.store(grad_input_ptr + own, tl.where(valid, grad, 0.0).to(grad_input_ptr.dtype.element_ty), mask=inside)


@triton.jit
def sigmoid_statistics_gather_kernel(
    grad_region_ptr, grad_pixel_ptr, grad_losses_ptr, input_ptr, target_ptr, positive_ptr, grad_input_ptr, places_ptr,
    weights_ptr, lines, channels, in_h, in_w, out_h, out_w, reach_h, reach_w, ignore_index, negative_bits, gamma_bits,
    HAS_IGNORE: tl.constexpr, GAMMA: tl.constexpr, MINIMUM: tl.constexpr, LOSSES: tl.constexpr, INPUT_LAST: tl.constexpr,
    TARGET_LAST: tl.constexpr, ACC: tl.constexpr, LINES: tl.constexpr, SOURCES: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """Gradients of SOURCES logits in each of LINES rows of planes. Each adds up the outputs between it and its neighbours,
    SPAN columns at once and row after row; ``reach`` is 0 along an axis that keeps its size."""
    program = tl.program_id(0).to(tl.int64)
    tiles_w = tl.cdiv(in_w, SOURCES)
    line_block = program // tiles_w
    line = line_block * LINES + tl.arange(0, LINES)
    tile = ((program - line_block * tiles_w) * SOURCES).to(tl.int32)
    column = tile + tl.arange(0, SOURCES * SPAN) // SPAN
    known = line < lines
    plane, row, above, below, before, begin, end = output_rows(places_ptr, line, lines, in_h, out_h, reach_h)
    first_x, own_x, end_x = output_columns(places_ptr, column, in_h, in_w, out_h, out_w, reach_w)
    unit = channels if INPUT_LAST else 1
    start = element_offset(plane, 0, channels, tl.full((), in_h, tl.int64) * in_w, INPUT_LAST)
    plane_ptr = (input_ptr + start)[:, None]
    pixels = tl.full((), out_h, tl.int64) * out_w
    positive = tl.load(positive_ptr + plane % channels, mask=known, other=0.0)[:, None]
    by_intersection = tl.load(grad_region_ptr + plane * 3, mask=known, other=0.0).to(ACC)[:, None]
    by_probability = tl.load(grad_region_ptr + plane * 3 + 1, mask=known, other=0.0).to(ACC)[:, None]
    by_plane = tl.load(grad_pixel_ptr + plane * 2, mask=known, other=0.0).to(ACC)[:, None]
    negative, gamma = from_bits(negative_bits, ACC), from_bits(gamma_bits, ACC)
    sums = tl.zeros((LINES, SOURCES * SPAN), ACC)
    for window in range(0, tl.max(end_x - first_x, 0), SPAN):
        x = first_x + window + tl.arange(0, SOURCES * SPAN) % SPAN
        reads_x = x < end_x
        left, right, weight, share_x = column_taps(places_ptr, weights_ptr, x, reads_x, own_x, in_h, out_h, out_w)
        left, right, weight = left[None, :], right[None, :], weight[None, :]
        mask = known[:, None] & reads_x[None, :]
        top = source_row(plane_ptr, above[:, None], in_w, unit, left, right, weight, mask, ACC)
        middle = source_row(plane_ptr, row[:, None], in_w, unit, left, right, weight, mask, ACC)
        bottom = source_row(plane_ptr, below[:, None], in_w, unit, left, right, weight, mask, ACC)
        for i in range(tl.max(end - before, 0)):
            y = before + i
            lower_weight = tl.load(weights_ptr + out_h + y, mask=y < end, other=0.0)
            share = tl.where(y < begin, lower_weight, 1 - lower_weight)[:, None] * share_x[None, :]
            first = (y < begin)[:, None]
            upper, lower = tl.where(first, top, middle), tl.where(first, middle, bottom)
            value = upper + lower_weight[:, None] * (lower - upper)
            place = y.to(tl.int64)[:, None] * out_w + x[None, :]
            offset = element_offset(plane[:, None], place, channels, pixels, TARGET_LAST)
            reads = (y < end)[:, None] & reads_x[None, :]
            t, valid = load_targets(target_ptr, offset, reads, ignore_index, HAS_IGNORE, ACC)
            by_loss = by_plane + tl.zeros_like(value)
            if LOSSES:
                by_loss += tl.load(grad_losses_ptr + plane[:, None] * pixels + place, mask=reads, other=0.0).to(ACC)
            grad = pixel_gradient(
                value, t, positive, negative, gamma, by_intersection, by_probability, by_loss, GAMMA, MINIMUM, ACC
            )
            sums += tl.where(valid, grad * share, 0.0)
    total = tl.sum(tl.reshape(sums, (LINES, SOURCES, SPAN)), 2)
    source = tile + tl.arange(0, SOURCES)
    to_ptr = grad_input_ptr + (start + row.to(tl.int64) * in_w * unit)[:, None] + source[None, :] * unit
    tl.store(to_ptr, total.to(grad_input_ptr.dtype.element_ty), mask=known[:, None] & (source < in_w)[None, :])


class _Call:
    """The arguments that the kernels share."""

    def __init__(self, input, target, positive, negative, gamma, ignore_index, min_intersection, losses, align_corners):
        n, c = target.shape[:2]
        self.compute, acc = acc_type(input.dtype)
        self.input = input.contiguous(memory_format=memory_format(input))
        labels = target.view(torch.uint8) if target.dtype == torch.bool else target
        self.target = labels.contiguous(memory_format=memory_format(labels))
        weights = torch.ones(1, dtype=self.compute, device=input.device) if positive is None else positive.to(self.compute)
        self.positive = weights.reshape(-1).expand(c).contiguous()
        self.planes = n * c
        self.sizes = (*input.shape[2:], *target.shape[2:])
        in_h, in_w, out_h, out_w = self.sizes
        self.upsample = target.numel() > 0 and (in_h, in_w) != (out_h, out_w)
        self.tables = (self.positive, self.positive)  # not read where sizes are equal
        if self.upsample:
            scales = [bilinear_scale(i, o, align_corners, None, self.compute) for i, o in ((in_h, out_h), (in_w, out_w))]
            self.step = scales[1][0] if in_w != out_w else 1.0
            table = [scale_bits for _, scale_bits in scales]
            self.tables = taps(
                bilinear_mode(align_corners), (in_h, in_w), (out_h, out_w), table, acc, True, input.device
            )  # fmt: skip
        self.blocks = triton.cdiv(out_h * out_w, BLOCK)
        self.options = (0 if ignore_index is None else ignore_index, bits(negative), bits(gamma))
        self.constants: dict[str, Any] = {
            "HAS_IGNORE": ignore_index is not None,
            "GAMMA": SQUARE if gamma == 2 else ANY if gamma != 0 else 0,
            "MINIMUM": min_intersection,
            "LOSSES": losses,
            "INPUT_LAST": is_channels_last(self.input),
            "TARGET_LAST": is_channels_last(self.target),
            "ACC": acc,
        }


def sigmoid_statistics(
    input, target, positive, negative, gamma, ignore_index, min_intersection, losses, align_corners
):  # fmt: skip
    call = _Call(input, target, positive, negative, gamma, ignore_index, min_intersection, losses, align_corners)
    channels, (out_h, out_w) = target.shape[1], target.shape[2:]
    empty = {"dtype": call.compute, "device": input.device}
    partial = torch.empty((*target.shape[:2], call.blocks, STATISTICS), **empty)
    map = torch.empty((*target.shape[:2], *((out_h, out_w) if losses else (0, 0))), **empty)
    if target.numel():
        sigmoid_statistics_fwd_kernel[(call.planes * call.blocks,)](
            call.input, call.target, call.positive, partial, map, *call.tables, channels, *call.sizes, call.blocks,
            *call.options, UPSAMPLE=call.upsample, BLOCK=BLOCK, **call.constants,
        )  # fmt: skip
    sums = partial.sum(2, dtype=torch.float64)
    return sums[..., :3].contiguous(), sums[..., 3:].contiguous(), map


def sigmoid_statistics_backward(
    grad_region, grad_pixel, grad_losses, input, target, positive, negative, gamma, ignore_index, min_intersection, losses,
    align_corners,
):  # fmt: skip
    call = _Call(input, target, positive, negative, gamma, ignore_index, min_intersection, losses, align_corners)
    grad_input = torch.empty(input.shape, dtype=input.dtype, device=input.device, memory_format=memory_format(input))
    if grad_input.numel() == 0:
        return grad_input
    if target.numel() == 0:
        return grad_input.zero_()
    in_h, in_w, out_h, out_w = call.sizes
    channels = target.shape[1]
    tensors = [grad_region.contiguous(), grad_pixel.contiguous(), grad_losses.contiguous()]
    tensors += [call.input, call.target, call.positive, grad_input]
    if not call.upsample:
        sigmoid_statistics_bwd_kernel[(call.planes * call.blocks,)](
            *tensors, channels, out_h * out_w, call.blocks, *call.options, BLOCK=BLOCK, **call.constants
        )
        return grad_input
    columns = 32 if call.compute == torch.float64 else 64
    span = min(columns, triton.next_power_of_2(max(1, round(2 / max(call.step, 0.01)))))
    grid = triton.cdiv(call.planes * in_h, LINES) * triton.cdiv(in_w, columns // span)
    sigmoid_statistics_gather_kernel[(grid,)](
        *tensors, *call.tables, call.planes * in_h, channels, *call.sizes, int(in_h != out_h), int(in_w != out_w),
        *call.options, LINES=LINES, SOURCES=columns // span, SPAN=span, **call.constants,
    )  # fmt: skip
    return grad_input


def compile_cases():
    """Yields ``(kernel, types of its arguments, its constants)`` for tests/triton/test_compile.py."""
    for value, label, flag, gamma in (
        ("*fp32", "*i64", False, 0),
        ("*fp64", "*fp64", True, ANY),
        ("*bf16", "*u8", True, SQUARE),
    ):
        wide, acc = ("*fp64", tl.float64) if value == "*fp64" else ("*fp32", tl.float32)
        types = {"input_ptr": value, "grad_input_ptr": value, "target_ptr": label, "places_ptr": "*i32"}
        types |= dict.fromkeys(("positive_ptr", "partial_ptr", "losses_ptr", "grad_losses_ptr", "weights_ptr"), wide)
        types |= dict.fromkeys(("grad_region_ptr", "grad_pixel_ptr"), "*fp64")
        types |= dict.fromkeys(("negative_bits", "gamma_bits"), "i64")
        constants: dict[str, Any] = {"HAS_IGNORE": flag, "GAMMA": gamma, "MINIMUM": flag, "LOSSES": flag, "ACC": acc}
        constants |= {"INPUT_LAST": flag, "TARGET_LAST": not flag, "BLOCK": BLOCK}
        yield sigmoid_statistics_fwd_kernel, types, constants | {"UPSAMPLE": False}
        yield sigmoid_statistics_fwd_kernel, types, constants | {"UPSAMPLE": True}
        yield sigmoid_statistics_bwd_kernel, types, constants
        yield (
            sigmoid_statistics_gather_kernel,
            types,
            constants | {"LINES": LINES, "SOURCES": 4 if value == "*fp64" else 8, "SPAN": 8},
        )
