"""Sums over softmax probabilities in Triton. A program goes through the classes of a tile of pixels once for maximum and sum
and once for what follows from them; torch adds up the tiles' sums in float64.

Upsampled logits are blended as they are read and never reach memory. Their gradient is gathered, source by source, from the
pixels that read it; of each pixel a few numbers are kept for that, of as many samples at a time as keep them small.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from segkernels._layout import is_channels_last, memory_format
from segkernels.triton._gather import column_taps, output_columns, output_rows, source_row
from segkernels.triton._products import interpreted
from segkernels.triton._regions import bits, from_bits
from segkernels.triton._resample import acc_type, bilinear_mode, bilinear_scale, taps
from segkernels.triton._softmax_tiles import focal_power, scan_classes, tile_logits, tile_pixels, tile_taps

ANY, SQUARE = 1, 2  # exponents of the focal loss
SUMS = 3
CLASSES = 8  # that a program reads at once: a sector of memory where classes lie side by side
SCRATCH = 32  # the maps take one part in so many of the upsampled logits, or belong to a single sample


@triton.jit
def softmax_statistics_fwd_kernel(
    input_ptr, target_ptr, class_weights_ptr, region_ptr, pixel_ptr, losses_ptr, places_ptr, weights_ptr, classes, in_h, in_w,
    out_h, out_w, tiles, tiles_w, ignore_index, hard_bits, soft_bits, gamma_bits,
    HAS_IGNORE: tl.constexpr, GAMMA: tl.constexpr, SMOOTH: tl.constexpr, REGIONS: tl.constexpr, LOSSES: tl.constexpr,
    UPSAMPLE: tl.constexpr, CHANNELS_LAST: tl.constexpr, ACC: tl.constexpr, CLASSES: tl.constexpr, GROUPS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Sums of a tile of pixels, and their losses."""
    n, y, x, place, inside, valid, label = tile_pixels(
        target_ptr, classes, tiles, tiles_w, out_h, out_w, ignore_index, HAS_IGNORE, GROUPS * ROWS, COLUMNS
    )
    step = 1 if CHANNELS_LAST else in_h * in_w
    unit = classes if CHANNELS_LAST else 1
    image_ptr = input_ptr + n * classes * in_h * in_w
    left, right, right_weight, top, middle, bottom, below_first, lower_weight = x, x, x, y, y, y, x, x
    columns = inside
    if UPSAMPLE:
        columns = x < out_w
        left, right, right_weight, top, middle, bottom, below_first, lower_weight = tile_taps(
            places_ptr, weights_ptr, y, x, in_h, out_h, out_w, GROUPS, ROWS
        )
    most, total, _, smoothed, weights, shift = scan_classes(
        image_ptr, class_weights_ptr, class_weights_ptr, label, classes, step, unit, in_w, x, columns, valid, left, right,
        right_weight, top, middle, bottom, below_first, lower_weight, False, SMOOTH, UPSAMPLE, ACC, CLASSES, GROUPS,
        ROWS, COLUMNS,
    )  # fmt: skip
    known = (label >= 0) & (label < classes)
    weight = tl.load(class_weights_ptr + label, mask=known, other=0.0)
    weight = tl.where(known, weight, tl.where(valid, float("nan"), 0.0))
    log_total = tl.log(total)
    loss = weight * from_bits(hard_bits, ACC) * (log_total - shift)
    if GAMMA:
        loss *= focal_power(1 - tl.exp(shift) / total, from_bits(gamma_bits, ACC), GAMMA)
    if SMOOTH:
        loss += from_bits(soft_bits, ACC) * (weights * log_total - smoothed)
    loss = tl.where(valid, loss, 0.0)
    to_ptr = pixel_ptr + tl.program_id(0).to(tl.int64) * 3
    tl.store(to_ptr, tl.sum(loss, 0))
    tl.store(to_ptr + 1, tl.sum(weight, 0))
    tl.store(to_ptr + 2, tl.sum(valid.to(ACC), 0))
    if LOSSES:
        tl.store(losses_ptr + place, loss, mask=inside)
    if REGIONS:
        inverse = tl.where(known, 1 / total, tl.where(valid, float("nan"), 0.0))
        for first in range(0, classes, CLASSES):
            c = first + tl.arange(0, CLASSES)
            value = tile_logits(
                image_ptr, c, classes, step, unit, in_w, x, columns, valid, left, right, right_weight, top, middle, bottom,
                below_first, lower_weight, UPSAMPLE, ACC, CLASSES, GROUPS, ROWS, COLUMNS,
            )  # fmt: skip
            p = tl.exp(value - most[None, :]) * inverse[None, :]
            own = c[:, None] == label[None, :]
            sums_ptr = region_ptr + (tl.program_id(0).to(tl.int64) * classes + c) * 3
            tl.store(sums_ptr, tl.sum(tl.where(own, p, 0.0), 1), mask=c < classes)
            tl.store(sums_ptr + 1, tl.sum(p, 1), mask=c < classes)
            tl.store(sums_ptr + 2, tl.sum(own.to(ACC), 1), mask=c < classes)


@triton.jit
def softmax_statistics_bwd_kernel(
    grad_region_ptr, grad_pixel_ptr, grad_losses_ptr, input_ptr, target_ptr, class_weights_ptr, output_ptr, places_ptr,
    weights_ptr, maps, classes, in_h, in_w, out_h, out_w, tiles, tiles_w, ignore_index, hard_bits, soft_bits, gamma_bits,
    HAS_IGNORE: tl.constexpr, GAMMA: tl.constexpr, SMOOTH: tl.constexpr, REGIONS: tl.constexpr, LOSSES: tl.constexpr,
    UPSAMPLE: tl.constexpr, CHANNELS_LAST: tl.constexpr, ACC: tl.constexpr, CLASSES: tl.constexpr, GROUPS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Gradients of a tile of pixels; of upsampled logits the maps that they follow from: the largest logit (-inf where
    ignored), what exp(x - max) is multiplied by, what is added at the label, with REGIONS 1 / sum, with SMOOTH the share of
    label smoothing."""
    n, y, x, place, inside, valid, label = tile_pixels(
        target_ptr, classes, tiles, tiles_w, out_h, out_w, ignore_index, HAS_IGNORE, GROUPS * ROWS, COLUMNS
    )
    step = 1 if CHANNELS_LAST else in_h * in_w
    unit = classes if CHANNELS_LAST else 1
    image_ptr = input_ptr + n * classes * in_h * in_w
    left, right, right_weight, top, middle, bottom, below_first, lower_weight = x, x, x, y, y, y, x, x
    columns = inside
    if UPSAMPLE:
        columns = x < out_w
        left, right, right_weight, top, middle, bottom, below_first, lower_weight = tile_taps(
            places_ptr, weights_ptr, y, x, in_h, out_h, out_w, GROUPS, ROWS
        )
    slopes_ptr = grad_region_ptr + n * classes * 3
    most, total, dot, _, weights, shift = scan_classes(
        image_ptr, class_weights_ptr, slopes_ptr, label, classes, step, unit, in_w, x, columns, valid, left, right,
        right_weight, top, middle, bottom, below_first, lower_weight, REGIONS, SMOOTH, UPSAMPLE, ACC, CLASSES,
        GROUPS, ROWS, COLUMNS,
    )  # fmt: skip
    known = (label >= 0) & (label < classes)
    inverse = tl.where(known, 1 / total, float("nan"))
    p = tl.exp(shift) * inverse
    upstream = tl.load(grad_pixel_ptr + n * 3).to(ACC) + tl.zeros_like(total)
    if LOSSES:
        upstream += tl.load(grad_losses_ptr + place, mask=valid, other=0.0).to(ACC)
    slope = tl.load(class_weights_ptr + label, mask=known, other=1.0) * from_bits(hard_bits, ACC) * upstream
    if GAMMA:
        gamma = from_bits(gamma_bits, ACC)
        q = 1 - p
        factor = focal_power(q, gamma, GAMMA)
        full = factor + gamma * (tl.log(total) - shift) * p * (factor / tl.where(q > 0, q, 1.0))
        slope *= tl.where(q <= 0, 0.0, full)
    by_sum, extra = slope, -slope
    if SMOOTH:
        smoothing = tl.where(valid, from_bits(soft_bits, ACC) * upstream, 0.0)
        by_sum += smoothing * weights
    if REGIONS:
        within = p * tl.load(slopes_ptr + label * 3, mask=known, other=0.0).to(ACC)
        by_sum -= dot * inverse + within
        extra += within
    inverse = tl.where(valid, inverse, 0.0)
    by_exponential = tl.where(valid, by_sum * inverse, 0.0)
    extra = tl.where(valid, extra, 0.0)
    if UPSAMPLE:
        to_ptr = output_ptr + place
        tl.store(to_ptr, tl.where(valid, most, float("-inf")), mask=inside)
        to_ptr += maps
        tl.store(to_ptr, by_exponential, mask=inside)
        to_ptr += maps
        tl.store(to_ptr, extra, mask=inside)
        if REGIONS:
            to_ptr += maps
            tl.store(to_ptr, inverse, mask=inside)
        if SMOOTH:
            to_ptr += maps
            tl.store(to_ptr, smoothing, mask=inside)
    else:
        for first in range(0, classes, CLASSES):
            c = first + tl.arange(0, CLASSES)
            value = tile_logits(
                image_ptr, c, classes, step, unit, in_w, x, columns, valid, left, right, right_weight, top, middle, bottom,
                below_first, lower_weight, UPSAMPLE, ACC, CLASSES, GROUPS, ROWS, COLUMNS,
            )  # fmt: skip
            by_class = by_exponential[None, :] + tl.zeros_like(value)
            if REGIONS:
                slope_c = tl.load(slopes_ptr + c * 3 + 1, mask=c < classes, other=0.0).to(ACC)
                by_class += slope_c[:, None] * inverse[None, :]
            grad = tl.exp(value - most[None, :]) * by_class
            if SMOOTH:
                grad -= tl.load(class_weights_ptr + c, mask=c < classes, other=0.0)[:, None] * smoothing[None, :]
            grad += tl.where(c[:, None] == label[None, :], extra[None, :], 0.0)
            logits_ptr = output_ptr + n * classes * in_h * in_w + c.to(tl.int64)[:, None] * step + x[None, :] * unit
            tl.store(logits_ptr, grad.to(output_ptr.dtype.element_ty), mask=(c < classes)[:, None] & inside[None, :])


@triton.jit
def softmax_statistics_gather_kernel(
    maps_ptr, grad_region_ptr, input_ptr, target_ptr, class_weights_ptr, grad_input_ptr, places_ptr, weights_ptr, lines, maps,
    classes, class_blocks, in_h, in_w, out_h, out_w, reach_h, reach_w,
    SMOOTH: tl.constexpr, REGIONS: tl.constexpr, CHANNELS_LAST: tl.constexpr, ACC: tl.constexpr, CLASSES: tl.constexpr,
    LINES: tl.constexpr, SOURCES: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """Gradients of SOURCES logits in each of LINES source rows, of CLASSES classes. Each adds up the outputs between it and
    its neighbours, SPAN columns at once and row after row; ``reach`` is 0 along an axis that keeps its size."""
    program = tl.program_id(0).to(tl.int64)
    tiles = program // class_blocks
    c = (program - tiles * class_blocks) * CLASSES + tl.arange(0, CLASSES)
    tiles_w = tl.cdiv(in_w, SOURCES)
    line_block = tiles // tiles_w
    line = line_block * LINES + tl.arange(0, LINES)
    column = ((tiles - line_block * tiles_w) * SOURCES + tl.arange(0, SOURCES * SPAN) // SPAN).to(tl.int32)
    known_line = line < lines
    n, row, above, below, before, begin, end = output_rows(places_ptr, line, lines, in_h, out_h, reach_h)
    first_x, own_x, end_x = output_columns(places_ptr, column, in_h, in_w, out_h, out_w, reach_w)
    step = 1 if CHANNELS_LAST else in_h * in_w
    unit = classes if CHANNELS_LAST else 1
    known = c < classes
    offset = n[None, :] * classes * in_h * in_w + c.to(tl.int64)[:, None] * step  # [CLASSES, LINES]
    image_ptr = (input_ptr + offset)[:, :, None]
    if SMOOTH:
        class_weight = tl.load(class_weights_ptr + c, mask=known, other=0.0)[:, None, None]
    if REGIONS:
        slope_ptr = grad_region_ptr + (n[None, :] * classes + c[:, None]) * 3 + 1
        slope = tl.load(slope_ptr, mask=known[:, None] & known_line[None, :], other=0.0).to(ACC)[:, :, None]
    sums = tl.zeros((CLASSES, LINES, SOURCES * SPAN), ACC)
    for window in range(0, tl.max(end_x - first_x, 0), SPAN):
        x = first_x + window + tl.arange(0, SOURCES * SPAN) % SPAN
        reads_x = x < end_x
        left, right, weight, share_x = column_taps(places_ptr, weights_ptr, x, reads_x, own_x, in_h, out_h, out_w)
        left, right, weight = left[None, None, :], right[None, None, :], weight[None, None, :]
        mask = (known[:, None] & known_line[None, :])[:, :, None] & reads_x[None, None, :]
        top = source_row(image_ptr, above[None, :, None], in_w, unit, left, right, weight, mask, ACC)
        middle = source_row(image_ptr, row[None, :, None], in_w, unit, left, right, weight, mask, ACC)
        bottom = source_row(image_ptr, below[None, :, None], in_w, unit, left, right, weight, mask, ACC)
        for i in range(tl.max(end - before, 0)):
            y = before + i
            lower_weight = tl.load(weights_ptr + out_h + y, mask=y < end, other=0.0)
            share = tl.where(y < begin, lower_weight, 1 - lower_weight)[:, None] * share_x[None, :]
            reads = (y < end)[:, None] & reads_x[None, :]
            place = (n * out_h + y)[:, None] * out_w + x[None, :]
            label = tl.load(target_ptr + place, mask=reads, other=0)
            from_ptr = maps_ptr + place
            most = tl.load(from_ptr, mask=reads, other=float("-inf"))
            valid = most != float("-inf")
            from_ptr += maps
            factor = tl.load(from_ptr, mask=reads, other=0.0)[None, :, :]
            from_ptr += maps
            extra = tl.load(from_ptr, mask=reads, other=0.0)
            first = (y < begin)[None, :, None]
            upper, lower = tl.where(first, top, middle), tl.where(first, middle, bottom)
            value = upper + lower_weight[None, :, None] * (lower - upper)
            if REGIONS:
                from_ptr += maps
                factor += slope * tl.load(from_ptr, mask=reads, other=0.0)[None, :, :]
            grad = tl.exp(value - most[None, :, :]) * factor
            if SMOOTH:
                from_ptr += maps
                grad -= class_weight * tl.load(from_ptr, mask=reads, other=0.0)[None, :, :]
            grad += tl.where(c[:, None, None] == label[None, :, :], extra[None, :, :], 0.0)
            sums += tl.where(valid[None, :, :], grad * share[None, :, :], 0.0)
    total = tl.sum(tl.reshape(sums, (CLASSES, LINES, SOURCES, SPAN)), 3)
    source = (tiles - line_block * tiles_w) * SOURCES + tl.arange(0, SOURCES)
    to_ptr = (grad_input_ptr + offset + row[None, :].to(tl.int64) * in_w * unit)[:, :, None] + source[None, None, :] * unit
    inside = (known[:, None] & known_line[None, :])[:, :, None] & (source < in_w)[None, None, :]
    tl.store(to_ptr, total.to(grad_input_ptr.dtype.element_ty), mask=inside)


class _Call:
    """The arguments that the kernels share."""

    def __init__(self, input, target, class_weights, ignore_index, label_smoothing, gamma, regions, losses, align_corners):
        self.n, self.classes, in_h, in_w = input.shape
        out_h, out_w = target.shape[1:]
        self.compute, acc = acc_type(input.dtype)
        self.input = input.contiguous(memory_format=memory_format(input))
        self.target = target.contiguous()
        if class_weights is None:
            self.weights = torch.ones(self.classes, dtype=self.compute, device=input.device)
        else:
            self.weights = class_weights.to(self.compute).reshape(-1).expand(self.classes).contiguous()
        self.upsample = (in_h, in_w) != (out_h, out_w)
        self.scales = [1.0, 1.0]
        self.tables = (self.weights, self.weights)  # not read where sizes are equal
        classes = min(CLASSES, wide := triton.next_power_of_2(self.classes))
        pixels = min(512, _products(self.compute) // classes)
        if is_channels_last(self.input) and not self.upsample and self.compute == torch.float32:
            classes, pixels = min(2 * CLASSES, wide), 64 if wide > 4 else 128
        if interpreted():
            classes, pixels = min(CLASSES, wide), 1024
        groups, rows, columns = 1, 1, pixels
        if self.upsample:
            sizes = list(zip((in_h, in_w), (out_h, out_w)))
            scales = [bilinear_scale(i, o, align_corners, None, self.compute) for i, o in sizes]
            self.scales = [1.0 if i == o else scale for (scale, _), (i, o) in zip(scales, sizes)]
            table, mode = [scale_bits for _, scale_bits in scales], bilinear_mode(align_corners)
            self.tables = taps(mode, (in_h, in_w), (out_h, out_w), table, acc, True, input.device)
            # The outputs of a tile's rows lie between three source rows.
            rows = triton.next_power_of_2(min(8, 1 + int(0.99 / max(self.scales[0], 0.1))) + 1) // 2
            columns = min(pixels // rows, max(16, triton.next_power_of_2(out_w)))
            groups = min(pixels // (rows * columns), triton.next_power_of_2(triton.cdiv(out_h, rows)))
        else:
            in_h = out_h = 1
            in_w = out_w = target.shape[1] * target.shape[2]
        self.sizes = in_h, in_w, out_h, out_w
        self.tiles_w = triton.cdiv(out_w, columns)
        self.tiles = triton.cdiv(out_h, groups * rows) * self.tiles_w
        self.shape = (self.classes, *self.sizes, self.tiles, self.tiles_w)
        numbers = (1 - label_smoothing, label_smoothing / self.classes, gamma)
        self.options = (0 if ignore_index is None else ignore_index, *(bits(value) for value in numbers))
        self.shared: dict[str, Any] = {
            "SMOOTH": label_smoothing != 0,
            "REGIONS": regions,
            "CHANNELS_LAST": is_channels_last(self.input),
            "ACC": acc,
        }
        self.constants: dict[str, Any] = self.shared | {
            "HAS_IGNORE": ignore_index is not None,
            "GAMMA": SQUARE if gamma == 2 else ANY if gamma != 0 else 0,
            "LOSSES": losses,
            "UPSAMPLE": self.upsample,
            "CLASSES": classes,
            "GROUPS": groups,
            "ROWS": rows,
            "COLUMNS": columns,
        }


def softmax_statistics(input, target, class_weights, ignore_index, label_smoothing, gamma, regions, losses, align_corners):
    call = _Call(input, target, class_weights, ignore_index, label_smoothing, gamma, regions, losses, align_corners)
    empty = {"dtype": call.compute, "device": input.device}
    region = torch.empty((call.n, call.tiles, call.classes if regions else 0, SUMS), **empty)
    pixel = torch.empty((call.n, call.tiles, SUMS), **empty)
    map = torch.empty((call.n, *(target.shape[1:] if losses else (0, 0))), **empty)
    if target.numel():
        softmax_statistics_fwd_kernel[(call.n * call.tiles,)](
            call.input, call.target, call.weights, region, pixel, map, *call.tables, *call.shape, *call.options,
            **call.constants,
        )  # fmt: skip
    return region.sum(1, dtype=torch.float64), pixel.sum(1, dtype=torch.float64), map


def softmax_statistics_backward(
    grad_region, grad_pixel, grad_losses, input, target, class_weights, ignore_index, label_smoothing, gamma, regions, losses,
    align_corners,
):  # fmt: skip
    call = _Call(input, target, class_weights, ignore_index, label_smoothing, gamma, regions, losses, align_corners)
    grad_input = torch.empty(input.shape, dtype=input.dtype, device=input.device, memory_format=memory_format(input))
    if grad_input.numel() == 0:
        return grad_input
    by_region, by_pixel, by_loss = grad_region.contiguous(), grad_pixel.contiguous(), grad_losses.contiguous()
    if not call.upsample:
        softmax_statistics_bwd_kernel[(call.n * call.tiles,)](
            by_region, by_pixel, by_loss, call.input, call.target, call.weights, grad_input, *call.tables, 0, *call.shape,
            *call.options, **call.constants,
        )  # fmt: skip
        return grad_input
    in_h, in_w, out_h, out_w = call.sizes
    count = 3 + regions + (label_smoothing != 0)
    samples = min(call.n, max(1, call.n * call.classes // (SCRATCH * count)))
    maps = torch.empty((count, samples, out_h, out_w), dtype=call.compute, device=input.device)
    blocks = _gather_blocks(call)
    class_blocks = triton.cdiv(call.classes, blocks["CLASSES"])
    for first in range(0, call.n, samples):
        part = slice(first, first + samples)
        values, labels, region, result = call.input[part], call.target[part], by_region[part], grad_input[part]
        softmax_statistics_bwd_kernel[(len(values) * call.tiles,)](
            region, by_pixel[part], by_loss[part], values, labels, call.weights, maps, *call.tables, maps[0].numel(),
            *call.shape, *call.options, **call.constants,
        )  # fmt: skip
        lines = len(values) * in_h
        grid = triton.cdiv(lines, blocks["LINES"]) * triton.cdiv(in_w, blocks["SOURCES"]) * class_blocks
        softmax_statistics_gather_kernel[(grid,)](
            maps, region, values, labels, call.weights, result, *call.tables, lines, maps[0].numel(), call.classes,
            class_blocks, *call.sizes, int(in_h != out_h), int(in_w != out_w), **call.shared, **blocks,
        )  # fmt: skip
    return grad_input


def _products(dtype: torch.dtype) -> int:
    """Of classes and pixels in a tile: so many that registers do not spill."""
    return 1024 if dtype == torch.float64 else 2048


def _gather_blocks(call: _Call) -> dict[str, int]:
    classes = min(CLASSES, triton.next_power_of_2(call.classes))
    products = _products(call.compute) // (1 if interpreted() else 2)
    columns = 32 if call.compute == torch.float64 else 64
    span = min(columns, triton.next_power_of_2(max(1, round(2 / max(call.scales[1], 0.01)))))
    return {"CLASSES": classes, "LINES": products // (columns * classes), "SOURCES": columns // span, "SPAN": span}


def compile_cases():
    """Yields ``(kernel, types of its arguments, its constants)`` for tests/triton/test_compile.py."""
    numbers = dict.fromkeys(("hard_bits", "soft_bits", "gamma_bits"), "i64")
    for value, label, flag, gamma in (
        ("*fp32", "*i64", False, 0),
        ("*fp64", "*i32", True, SQUARE),
        ("*bf16", "*u8", True, ANY),
    ):
        wide, acc = ("*fp64", tl.float64) if value == "*fp64" else ("*fp32", tl.float32)
        types = numbers | dict.fromkeys(("grad_region_ptr", "grad_pixel_ptr"), "*fp64")
        types |= dict.fromkeys(("class_weights_ptr", "weights_ptr", "region_ptr", "pixel_ptr", "losses_ptr", "maps_ptr"), wide)
        types |= {"input_ptr": value, "grad_input_ptr": value, "target_ptr": label, "places_ptr": "*i32"}
        types["grad_losses_ptr"] = wide
        shared: dict[str, Any] = {
            "HAS_IGNORE": flag,
            "GAMMA": gamma,
            "SMOOTH": flag,
            "REGIONS": True,
            "LOSSES": flag,
            "ACC": acc,
        }
        for upsample in (False, True):
            rows, pixels = 4 if upsample else 1, 128 if value == "*fp64" else 256
            constants = shared | {"UPSAMPLE": upsample, "CHANNELS_LAST": flag != upsample, "CLASSES": CLASSES, "GROUPS": 1}
            constants |= {"ROWS": rows, "COLUMNS": pixels // rows}
            if value == "*bf16" and not upsample:
                constants |= {"CLASSES": 2 * CLASSES, "COLUMNS": 64}
            yield softmax_statistics_fwd_kernel, types, constants
            yield softmax_statistics_bwd_kernel, types | {"output_ptr": wide if upsample else value}, constants
        blocks = {"CLASSES": CLASSES, "LINES": 2, "SOURCES": 4 if value == "*fp64" else 8, "SPAN": 8}
        yield softmax_statistics_gather_kernel, types, shared | {"CHANNELS_LAST": flag} | blocks
