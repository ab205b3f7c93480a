"""Dice + binary cross entropy in Triton: a program sums a block of one plane, torch adds the blocks up in float64 and finishes
the O(N*C) rest, and another kernel reads the pixels once more for the gradient or the map of losses."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from segkernels._dice import MEAN, NONE, SMP, dice_groups
from segkernels._layout import is_channels_last, memory_format
from segkernels.triton._planes import element_offset
from segkernels.triton._resample import acc_type

BLOCK = 1024
STATISTICS = 5  # sums of p * t (or min(p, t)), p, t, bce, and the number of valid pixels


@triton.jit
def log1p_unit(e):
    """log(1 + e) for e in [0, 1], also where 1 + e rounds to 1."""
    u = 1 + e
    return tl.where(u == 1, e, tl.log(u) * (e / tl.where(u == 1, 1, u - 1)))


@triton.jit
def own_block(blocks, BLOCK: tl.constexpr):
    """Plane of this program and the pixels of its block."""
    program = tl.program_id(0).to(tl.int64)
    plane = program // blocks
    return plane, (program - plane * blocks) * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def load_targets(target_ptr, offset, inside, ignore_index, HAS_IGNORE: tl.constexpr, ACC: tl.constexpr):
    """Targets and which of them count; an integer label other than 0 and 1 is NaN."""
    label = tl.load(target_ptr + offset, mask=inside, other=0)
    t = label.to(ACC)
    valid = inside
    if HAS_IGNORE:
        if target_ptr.dtype.element_ty.is_floating():
            ignored = (tl.zeros_like(t) + ignore_index).to(target_ptr.dtype.element_ty).to(ACC)
            valid = valid & (t != ignored)
        else:
            valid = valid & (label.to(tl.int64) != ignore_index)
    if not target_ptr.dtype.element_ty.is_floating():
        t = tl.where((label == 0) | (label == 1), t, float("nan"))
    return tl.where(valid, t, 0.0), valid


@triton.jit
def load_pixels(
    input_ptr, target_ptr, plane, place, inside, channels, pixels, ignore_index,
    HAS_IGNORE: tl.constexpr, INPUT_LAST: tl.constexpr, TARGET_LAST: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Logits, targets and which of them count."""
    x = tl.load(input_ptr + element_offset(plane, place, channels, pixels, INPUT_LAST), mask=inside, other=0.0).to(ACC)
    offset = element_offset(plane, place, channels, pixels, TARGET_LAST)
    t, valid = load_targets(target_ptr, offset, inside, ignore_index, HAS_IGNORE, ACC)
    return tl.where(valid, x, 0.0), t, valid


@triton.jit
def probability(x, FROM_LOGITS: tl.constexpr):
    """p, 1 - p without cancellation, and exp(-abs(x))."""
    if FROM_LOGITS:
        e = tl.exp(-tl.abs(x))
        r = 1 / (1 + e)
        return tl.where(x < 0, e * r, r), tl.where(x < 0, r, e * r), e
    else:
        return x, 1 - x, x


@triton.jit
def cross_entropy(x, t, weighted, p, q, e, FROM_LOGITS: tl.constexpr):
    """Logarithms of probabilities are at least -100, as in torch.nn.functional.binary_cross_entropy."""
    if FROM_LOGITS:
        return log1p_unit(e) * (1 - t + weighted) + tl.where(x > 0, (1 - t) * x, -weighted * x)
    else:
        log_p, log_q = tl.log(p), tl.log(q)
        return -(1 - t) * tl.where(log_q < -100, -100.0, log_q) - weighted * tl.where(log_p < -100, -100.0, log_p)


@triton.jit
def dice_bce_fwd_kernel(
    input_ptr, target_ptr, positive_ptr, partial_ptr, channels, pixels, blocks, ignore_index,
    HAS_IGNORE: tl.constexpr, SOFT: tl.constexpr, FROM_LOGITS: tl.constexpr, INPUT_LAST: tl.constexpr,
    TARGET_LAST: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sums of one block of a plane."""
    plane, place = own_block(blocks, BLOCK)
    x, t, valid = load_pixels(
        input_ptr, target_ptr, plane, place, place < pixels, channels, pixels, ignore_index,
        HAS_IGNORE, INPUT_LAST, TARGET_LAST, ACC,
    )  # fmt: skip
    p, q, e = probability(x, FROM_LOGITS)
    bce = cross_entropy(x, t, t * tl.load(positive_ptr + plane % channels), p, q, e, FROM_LOGITS)
    product = tl.where(p < t, p, t) if SOFT else p * t
    to = partial_ptr + tl.program_id(0).to(tl.int64) * 5
    tl.store(to, tl.sum(tl.where(valid, product, 0.0), 0))
    tl.store(to + 1, tl.sum(tl.where(valid, p, 0.0), 0))
    tl.store(to + 2, tl.sum(tl.where(valid, t, 0.0), 0))
    tl.store(to + 3, tl.sum(tl.where(valid, bce, 0.0), 0))
    tl.store(to + 4, tl.sum(valid.to(ACC), 0))


@triton.jit
def dice_bce_map_kernel(
    input_ptr, target_ptr, positive_ptr, coefficients_ptr, output_ptr, channels, pixels, blocks, ignore_index,
    HAS_IGNORE: tl.constexpr, FROM_LOGITS: tl.constexpr, INPUT_LAST: tl.constexpr, TARGET_LAST: tl.constexpr,
    ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The loss of every pixel: its cross entropy and the Dice term of its plane's group."""
    plane, place = own_block(blocks, BLOCK)
    inside = place < pixels
    x, t, valid = load_pixels(
        input_ptr, target_ptr, plane, place, inside, channels, pixels, ignore_index,
        HAS_IGNORE, INPUT_LAST, TARGET_LAST, ACC,
    )  # fmt: skip
    p, q, e = probability(x, FROM_LOGITS)
    bce = cross_entropy(x, t, t * tl.load(positive_ptr + plane % channels), p, q, e, FROM_LOGITS)
    value = bce * tl.load(coefficients_ptr + plane * 2) + tl.load(coefficients_ptr + plane * 2 + 1)
    to = output_ptr + element_offset(plane, place, channels, pixels, INPUT_LAST)
    tl.store(to, tl.where(valid, value, 0.0), mask=inside)


@triton.jit
def dice_bce_bwd_kernel(
    input_ptr, target_ptr, positive_ptr, coefficients_ptr, grad_map_ptr, output_ptr, channels, pixels, blocks, ignore_index,
    HAS_IGNORE: tl.constexpr, SOFT: tl.constexpr, FROM_LOGITS: tl.constexpr, MAP: tl.constexpr, INPUT_LAST: tl.constexpr,
    TARGET_LAST: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradient of every pixel, by the coefficients of its plane: of bce, of the intersection and of sum(p) + sum(t)."""
    plane, place = own_block(blocks, BLOCK)
    inside = place < pixels
    x, t, valid = load_pixels(
        input_ptr, target_ptr, plane, place, inside, channels, pixels, ignore_index,
        HAS_IGNORE, INPUT_LAST, TARGET_LAST, ACC,
    )  # fmt: skip
    p, q, e = probability(x, FROM_LOGITS)
    slope = (1 - t) * p - t * tl.load(positive_ptr + plane % channels) * q
    dp = p * q
    if not FROM_LOGITS:
        slope = slope / tl.where(dp < 1e-12, 1e-12, dp)
        dp = tl.zeros_like(p) + 1
    own = element_offset(plane, place, channels, pixels, INPUT_LAST)
    scale = tl.load(coefficients_ptr + plane * 3) + tl.zeros_like(p)
    if MAP:
        scale *= tl.load(grad_map_ptr + own, mask=inside, other=0.0).to(ACC)
    within = t
    if SOFT:
        within = tl.where(p < t, 1.0, tl.where(p > t, 0.0, 0.5)).to(ACC)
    by_dice = within * tl.load(coefficients_ptr + plane * 3 + 1) + tl.load(coefficients_ptr + plane * 3 + 2)
    grad = tl.where(valid, slope * scale + dp * by_dice, 0.0)
    tl.store(output_ptr + own, grad.to(output_ptr.dtype.element_ty), mask=inside)


def _planes(value: torch.Tensor) -> torch.Tensor:
    """Sums as dice_groups takes them, [N, C, 1, 1]."""
    return value[:, :, None, None]


def _channels(weights: torch.Tensor | None, input: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if weights is None:
        return torch.ones(input.shape[1], dtype=dtype, device=input.device)
    return weights.to(dtype).reshape(-1).expand(input.shape[1]).contiguous()


class _Call:
    """The arguments that every kernel shares."""

    def __init__(self, input, target, pos_weight, ignore_index, style, from_logits):
        self.compute, acc = acc_type(input.dtype)
        self.soft = style == SMP and target.is_floating_point()
        self.input = input.contiguous(memory_format=memory_format(input))
        labels = target.view(torch.uint8) if target.dtype == torch.bool else target
        self.target = labels.contiguous(memory_format=memory_format(labels))
        n, c, h, w = input.shape
        self.blocks = triton.cdiv(h * w, BLOCK)
        self.grid = (n * c * self.blocks,)
        self.first = (self.input, self.target, _channels(pos_weight, input, self.compute))
        self.last = (c, h * w, self.blocks, 0 if ignore_index is None else ignore_index)
        self.constants: dict[str, Any] = {
            "HAS_IGNORE": ignore_index is not None,
            "FROM_LOGITS": from_logits,
            "INPUT_LAST": is_channels_last(self.input),
            "TARGET_LAST": is_channels_last(self.target),
            "ACC": acc,
            "BLOCK": BLOCK,
        }


def dice_bce_loss(
    input, target, pos_weight, class_weights, dice_weight, bce_weight, smooth, ignore_index, reduction, style, batch_dice,
    include_background, log_loss, from_logits,
):  # fmt: skip
    call = _Call(input, target, pos_weight, ignore_index, style, from_logits)
    partial = torch.empty((*input.shape[:2], call.blocks, STATISTICS), dtype=call.compute, device=input.device)
    if input.numel():
        dice_bce_fwd_kernel[call.grid](*call.first, partial, *call.last, SOFT=call.soft, **call.constants)
    statistics = partial.sum(2, dtype=torch.float64)
    intersection, probability_, positive, bce, valid = map(_planes, statistics.unbind(2))
    groups = dice_groups(
        intersection, probability_, positive, valid, class_weights, smooth, reduction, style, batch_dice,
        include_background, log_loss,
    )  # fmt: skip
    weights = _channels(class_weights, input, torch.float64)
    dice = dice_weight * groups.weight * groups.loss
    if reduction == NONE:
        output = torch.empty(input.shape, dtype=call.compute, device=input.device, memory_format=memory_format(input))
        terms = [(bce_weight * weights).expand(input.shape[:2]), dice.expand(*input.shape[:2], 1, 1).flatten(1)]
        coefficients = torch.stack([t if w != 0 else torch.zeros_like(t) for w, t in zip((bce_weight, dice_weight), terms)], 2)
        if input.numel():
            dice_bce_map_kernel[call.grid](
                *call.first, coefficients.to(call.compute).contiguous(), output, *call.last, **call.constants
            )
        return output, statistics
    loss = statistics.new_zeros(())
    if bce_weight != 0:
        loss = loss + bce_weight * (weights * statistics[..., 3]).sum()
    if reduction == MEAN:
        loss = loss / valid.sum().clamp_min(1)
    if dice_weight != 0:
        loss = loss + dice.sum()
    return loss.to(call.compute), statistics


def dice_bce_loss_backward(
    grad_output, input, target, statistics, pos_weight, class_weights, dice_weight, bce_weight, smooth, ignore_index,
    reduction, style, batch_dice, include_background, log_loss, from_logits,
):  # fmt: skip
    call = _Call(input, target, pos_weight, ignore_index, style, from_logits)
    grad_input = torch.empty(input.shape, dtype=input.dtype, device=input.device, memory_format=memory_format(input))
    if input.numel() == 0:
        return grad_input
    intersection, probability_, positive, _, valid = map(_planes, statistics.unbind(2))
    groups = dice_groups(
        intersection, probability_, positive, valid, class_weights, smooth, reduction, style, batch_dice,
        include_background, log_loss,
    )  # fmt: skip
    upstream = grad_output.to(torch.float64)
    by_pixel = upstream.new_ones(()) if reduction == NONE else upstream
    grad_map = grad_output
    if reduction == NONE:
        grad_map = grad_output.contiguous(memory_format=memory_format(input))
        if ignore_index is not None:
            upstream = torch.where(target != ignore_index, upstream, 0.0)
        upstream = upstream.sum((2, 3), keepdim=True)
        if batch_dice:
            upstream = upstream.sum(0, keepdim=True)
    scale = valid.sum().clamp_min(1) if reduction == MEAN else 1.0
    by_dice = dice_weight * upstream * groups.weight
    terms = [_planes((by_pixel * bce_weight / scale * _channels(class_weights, input, torch.float64))[None])]
    terms += [by_dice * groups.d_intersection, by_dice * groups.d_cardinality]
    used = (bce_weight != 0, dice_weight != 0, dice_weight != 0)
    planes = [(t if on else torch.zeros_like(t)).expand(*input.shape[:2], 1, 1).flatten(1) for on, t in zip(used, terms)]
    dice_bce_bwd_kernel[call.grid](
        *call.first, torch.stack(planes, 2).to(call.compute).contiguous(), grad_map, grad_input, *call.last,
        SOFT=call.soft, MAP=reduction == NONE, **call.constants,
    )  # fmt: skip
    return grad_input


def compile_cases():
    """Yields ``(kernel, types of its pointers, its constants)`` for tests/triton/test_compile.py."""
    for value, label, flag in (("*fp32", "*i64", False), ("*fp64", "*fp64", True), ("*bf16", "*u8", True)):
        wide = "*fp64" if value == "*fp64" else "*fp32"
        types = {"input_ptr": value, "target_ptr": label, "output_ptr": value}
        types |= dict.fromkeys(("positive_ptr", "partial_ptr", "coefficients_ptr", "grad_map_ptr"), wide)
        constants: dict[str, Any] = {"HAS_IGNORE": flag, "FROM_LOGITS": value != "*fp64", "INPUT_LAST": flag, "BLOCK": BLOCK}
        constants |= {"TARGET_LAST": not flag, "ACC": tl.float64 if value == "*fp64" else tl.float32}
        yield dice_bce_fwd_kernel, types, constants | {"SOFT": flag}
        yield dice_bce_map_kernel, types | {"output_ptr": wide}, constants
        yield dice_bce_bwd_kernel, types, constants | {"SOFT": flag, "MAP": flag}
