"""Dice + binary cross entropy from logits, in one pass over the pixels forward and one backward."""

from __future__ import annotations

from typing import Any

import torch

from segkernels._layout import memory_format
from segkernels._register import double_backward_through, register
from segkernels.ops._arguments import check_floating
from segkernels.ops._loss_arguments import REDUCTIONS, STYLES, Weights, channel_weights, choice, planes
from segkernels.reference import dice_bce_loss as reference

_OPTIONS = (
    "Tensor? pos_weight, Tensor? class_weights, float dice_weight, float bce_weight, float smooth, int? ignore_index, "
    "int reduction, int style, bool batch_dice, bool include_background, bool log_loss, bool from_logits"
)
_STATISTICS = 5  # sums of p * t, p, t, bce, and the number of valid pixels


def _fake(input, target, pos_weight, class_weights, dice_weight, bce_weight, smooth, ignore_index, reduction, *others):
    dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    if reduction == REDUCTIONS["none"]:
        loss = torch.empty(input.shape, dtype=dtype, device=input.device, memory_format=memory_format(input))
    else:
        loss = torch.empty((), dtype=dtype, device=input.device)
    statistics = torch.empty((*input.shape[:2], _STATISTICS), dtype=torch.float64, device=input.device)
    return loss, statistics


def _backward_fake(grad_output, input, *others):
    return torch.empty(input.shape, dtype=input.dtype, device=input.device, memory_format=memory_format(input))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    input, target, pos_weight, class_weights, *ctx.options = inputs
    statistics = output[1]
    ctx.mark_non_differentiable(statistics)
    ctx.save_for_backward(input, target, statistics, pos_weight, class_weights)


def _backward(ctx: Any, grad: torch.Tensor, grad_statistics: torch.Tensor | None) -> tuple[Any, ...]:
    if any(ctx.needs_input_grad[1:4]):
        raise RuntimeError("dice_bce_loss: target, pos_weight and class_weights have no gradient; detach() them")
    return _op_backward(grad, *ctx.saved_tensors, *ctx.options), *(None,) * 13


_op = register(
    "dice_bce_loss",
    f"(Tensor input, Tensor target, {_OPTIONS}) -> (Tensor loss, Tensor statistics)",
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
)
_double_backward, _setup_context_backward = double_backward_through(reference.dice_bce_loss_backward)
_op_backward = register(
    "dice_bce_loss_backward",
    f"(Tensor grad_output, Tensor input, Tensor target, Tensor statistics, {_OPTIONS}) -> Tensor",
    fake=_backward_fake,
    backward=_double_backward,
    setup_context=_setup_context_backward,
)


def dice_bce_loss(
    input: torch.Tensor,
    target: torch.Tensor,
    dice_weight: float = 1.0,
    bce_weight: float = 1.0,
    smooth: float = 1.0,
    pos_weight: Weights | None = None,
    ignore_index: int | None = None,
    reduction: str = "mean",
    *,
    mode: str = "binary",
    from_logits: bool = True,
    class_weights: Weights | None = None,
    batch_dice: bool | None = None,
    include_background: bool = True,
    log_loss: bool = False,
    style: str = "lecture",
) -> torch.Tensor:
    r"""``dice_weight * Dice + bce_weight * BCEWithLogits``, reading the pixels once forward and once backward.

    With p = sigmoid(input) and t = target, for ``reduction="mean"`` and one channel

    .. math:: w_d \Big(1 - \frac{2 \sum p t + s}{\sum p + \sum t + s}\Big) + w_b \operatorname{mean} \operatorname{BCE}(p, t)

    Replaces the sum of a Dice loss (Milletari et al. 2016) and
    :func:`torch.nn.functional.binary_cross_entropy_with_logits`. Nothing of full size is saved but the inputs: backward
    computes the probabilities again.

    Args:
        input (Tensor[N, 1, H, W] or Tensor[N, H, W]; Tensor[N, C, H, W] for multilabel): logits, or probabilities with
            ``from_logits=False``; float32, float64, float16 or bfloat16.
        target (Tensor[N, H, W] or Tensor[N, 1, H, W]; Tensor[N, C, H, W] for multilabel): 0 and 1 as uint8, bool, int32
            or int64, or soft targets in a floating type.
        dice_weight, bce_weight: of the two terms.
        smooth: the s above.
        pos_weight: factor of the positive term of the cross entropy: a number, or one for each channel.
        ignore_index: label of pixels that take no part.
        reduction: ``"mean"``: the cross entropy is averaged over the valid pixels, Dice over its groups. ``"sum"``: both
            are summed. ``"none"``: a map of the shape of ``input`` with, at every valid pixel, its cross entropy plus the Dice
            loss of its group, and 0 at ignored ones.
        mode: ``"binary"`` or ``"multilabel"``; for multiclass use ``dice_ce_loss``.
        class_weights: one for each channel. The cross entropy is multiplied by them; Dice is their weighted mean in the styles
            lecture and smp, and is multiplied by them before the mean in monai.
        batch_dice: True takes one Dice group per channel, pooled over the batch, False one per sample and channel; None:
            True in the styles lecture and smp, False in monai.
        include_background: False leaves channel 0 out of Dice (not out of the cross entropy) where there are more.
        log_loss: Dice is -log(score) instead of 1 - score.
        style: ``"lecture"``: the formula above. ``"smp"``: as segmentation-models-pytorch 0.6, s is added after halving, the
            intersection of soft targets is the sum of min(p, t), and a channel without positive targets contributes 0.
            ``"monai"``: the formula above per sample, then the mean.

    Returns:
        Tensor: scalar, or the map; float64 for float64 input and float32 otherwise: a sum of half-precision losses
        overflows. The gradient has the dtype and the memory format of ``input``.

    Without a valid pixel (all ignored, or empty) the loss is 0 and so is the gradient. Sums are float32 over 512 pixels and
    float64 above (float64 throughout for float64). Bit-equal between runs and numbers of threads; twice differentiable in
    ``input``.

    Raises:
        ValueError, TypeError: for a wrong mode, name, rank, dtype, device or shape.
        RuntimeError: on CPU, for an integer label other than 0, 1 and ``ignore_index``, or a probability outside [0, 1].
            The GPU kernels wait for nothing: there the loss is NaN.
    """
    check_floating(input, "input")
    if mode == "multiclass":
        raise ValueError("mode: expected 'binary' or 'multilabel', got 'multiclass': that is dice_ce_loss (DiceCELoss)")
    values, labels = planes(input, target, mode)
    style_number = choice(style, "style", STYLES)
    loss, _ = _op(
        values,
        labels,
        None if pos_weight is None else channel_weights(pos_weight, "pos_weight", values),
        None if class_weights is None else channel_weights(class_weights, "class_weights", values),
        dice_weight,
        bce_weight,
        smooth,
        ignore_index,
        choice(reduction, "reduction", REDUCTIONS),
        style_number,
        style != "monai" if batch_dice is None else batch_dice,
        include_background,
        log_loss,
        from_logits,
    )
    return loss.squeeze(1) if loss.dim() > input.dim() else loss
