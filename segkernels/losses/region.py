"""Losses on the overlap of regions: Dice, Jaccard and Tversky."""

from __future__ import annotations

import torch

from segkernels.losses._module import FunctionLoss
from segkernels.losses._region import Region
from segkernels.losses._sigmoid import sigmoid_region_loss
from segkernels.losses._statistics import check_names, logits_only, multiclass, region_term, result
from segkernels.ops._loss_arguments import Weights

__all__ = [
    "DiceLoss",
    "JaccardLoss",
    "TverskyLoss",
    "UpsampleDiceLoss",
    "UpsampleJaccardLoss",
    "UpsampleTverskyLoss",
    "dice_loss",
    "jaccard_loss",
    "tversky_loss",
    "upsample_dice_loss",
    "upsample_jaccard_loss",
    "upsample_tversky_loss",
]


def _loss(
    input: torch.Tensor,
    target: torch.Tensor,
    region: Region,
    class_weights: Weights | None,
    ignore_index: int | None,
    mode: str,
    from_logits: bool,
    upsample: bool = False,
    align_corners: bool = False,
) -> torch.Tensor:
    check_names(region.reduction, region.style)
    if mode != "multiclass":
        return sigmoid_region_loss(
            input,
            target,
            region,
            mode=mode,
            from_logits=from_logits,
            ignore_index=ignore_index,
            class_weights=class_weights,
            upsample=upsample,
            align_corners=align_corners,
        )
    logits_only(from_logits)
    statistics = multiclass(
        input, target, ignore_index=ignore_index, regions=True, upsample=upsample, align_corners=align_corners
    )
    return result(region_term(input, statistics, region, class_weights), input)


def dice_loss(
    input: torch.Tensor,
    target: torch.Tensor,
    smooth: float = 1.0,
    class_weights: Weights | None = None,
    ignore_index: int | None = None,
    reduction: str = "mean",
    *,
    mode: str = "multiclass",
    from_logits: bool = True,
    batch_dice: bool | None = None,
    include_background: bool = True,
    log_loss: bool = False,
    style: str = "lecture",
) -> torch.Tensor:
    r"""Dice loss (Milletari et al. 2016) ``1 - (2 I + s) / (P + T + s)`` of every class, without a one-hot.

    I, P and T are the sums of p * t, p and t over the valid pixels of a class, p = softmax(input), or sigmoid(input) for the
    modes binary and multilabel. Replaces the ``DiceLoss`` of segmentation-models-pytorch and of MONAI.

    Args:
        input (Tensor[N, C, H, W]; Tensor[N, 1, H, W] or Tensor[N, H, W] for binary): logits; float32, float64, float16 or
            bfloat16.
        target (Tensor[N, H, W]): labels, uint8, int32 or int64. Binary and multilabel: the shape of ``input``, 0 and 1 or
            soft targets in a floating type; in the style smp the intersection of soft targets is the sum of min(p, t).
        smooth: the s above.
        class_weights: one for each class: a weighted mean in the styles lecture and smp, a factor before the mean in monai.
        ignore_index: label of pixels that take no part.
        reduction: ``"mean"`` or ``"sum"`` over the classes (and samples), ``"none"``: the weighted losses, [C] when pooled
            over the batch and else [N, C], without class 0 for ``include_background=False``.
        mode: ``"multiclass"``, ``"binary"`` or ``"multilabel"``.
        from_logits: False takes probabilities (modes binary and multilabel; kept 1e-7 from 0 and 1).
        batch_dice: True pools the sums over the batch, False takes each sample alone; None: True in the styles lecture and
            smp, False in monai.
        include_background: False leaves class 0 out.
        log_loss: -log(score) instead of 1 - score.
        style: ``"lecture"``: the formula above. ``"smp"``: as segmentation-models-pytorch 0.6, s is added after halving, and
            an absent class contributes 0. ``"monai"``: the formula above for each sample, then the mean.

    Returns:
        Tensor: scalar, or the losses; float64 for float64 input and float32 otherwise. 0 without a valid pixel, and so is the
        gradient. Bit-equal between runs and numbers of threads; twice differentiable in ``input``.

    Raises:
        ValueError, TypeError: for a wrong mode, name, rank, dtype, device or shape.
        RuntimeError: on CPU, for a label outside [0, C) (binary and multilabel: other than 0 and 1) and not ``ignore_index``.
    """
    region = Region.dice(smooth, style, reduction, batch_dice, include_background, log_loss)
    return _loss(input, target, region, class_weights, ignore_index, mode, from_logits)


def jaccard_loss(
    input: torch.Tensor,
    target: torch.Tensor,
    smooth: float = 1.0,
    class_weights: Weights | None = None,
    ignore_index: int | None = None,
    reduction: str = "mean",
    *,
    mode: str = "multiclass",
    from_logits: bool = True,
    batch_dice: bool | None = None,
    include_background: bool = True,
    log_loss: bool = False,
    style: str = "lecture",
) -> torch.Tensor:
    """Soft Jaccard loss ``1 - (I + s) / (P + T - I + s)`` of every class; in the style monai s is added to 2 I and twice the
    union, as its ``DiceLoss(jaccard=True)`` does. Arguments, results and errors are those of :func:`dice_loss`.
    """
    region = Region.jaccard(smooth, style, reduction, batch_dice, include_background, log_loss)
    return _loss(input, target, region, class_weights, ignore_index, mode, from_logits)


def tversky_loss(
    input: torch.Tensor,
    target: torch.Tensor,
    alpha: float = 0.5,
    beta: float = 0.5,
    gamma: float = 1.0,
    smooth: float = 1.0,
    class_weights: Weights | None = None,
    ignore_index: int | None = None,
    reduction: str = "mean",
    *,
    mode: str = "multiclass",
    from_logits: bool = True,
    batch_dice: bool | None = None,
    include_background: bool = True,
    log_loss: bool = False,
    style: str = "lecture",
) -> torch.Tensor:
    """Tversky loss (Salehi et al. 2017) ``1 - (I + s) / (I + alpha * FP + beta * FN + s)`` of every class, FP = P - I and
    FN = T - I.

    ``gamma`` is the exponent of each class's loss (the focal Tversky loss of Abraham and Khan 2018), in the style smp that of
    the aggregated loss. The other arguments, results and errors are those of :func:`dice_loss`.
    """
    region = Region(alpha, beta, gamma, smooth, style, reduction, batch_dice, include_background, log_loss)
    return _loss(input, target, region, class_weights, ignore_index, mode, from_logits)


def _upsampled(
    input: torch.Tensor,
    target: torch.Tensor,
    region: Region,
    class_weights: Weights | None,
    ignore_index: int | None,
    mode: str,
    align_corners: bool,
) -> torch.Tensor:
    return _loss(input, target, region, class_weights, ignore_index, mode, True, True, align_corners)


def upsample_dice_loss(
    input: torch.Tensor,
    target: torch.Tensor,
    smooth: float = 1.0,
    class_weights: Weights | None = None,
    ignore_index: int | None = None,
    reduction: str = "mean",
    *,
    mode: str = "multiclass",
    align_corners: bool = False,
    batch_dice: bool | None = None,
    include_background: bool = True,
    log_loss: bool = False,
    style: str = "lecture",
) -> torch.Tensor:
    """:func:`dice_loss` of ``interpolate(input, target.shape[1:], mode="bilinear")``, which never exists.

    ``input`` is [N, C, h, w] with h <= H and w <= W; the gradient reaches it directly. ``align_corners`` is that of
    :func:`torch.nn.functional.interpolate`; the rest is as there.
    """
    region = Region.dice(smooth, style, reduction, batch_dice, include_background, log_loss)
    return _upsampled(input, target, region, class_weights, ignore_index, mode, align_corners)


def upsample_jaccard_loss(
    input: torch.Tensor,
    target: torch.Tensor,
    smooth: float = 1.0,
    class_weights: Weights | None = None,
    ignore_index: int | None = None,
    reduction: str = "mean",
    *,
    mode: str = "multiclass",
    align_corners: bool = False,
    batch_dice: bool | None = None,
    include_background: bool = True,
    log_loss: bool = False,
    style: str = "lecture",
) -> torch.Tensor:
    """:func:`jaccard_loss` as :func:`upsample_dice_loss` is :func:`dice_loss`."""
    region = Region.jaccard(smooth, style, reduction, batch_dice, include_background, log_loss)
    return _upsampled(input, target, region, class_weights, ignore_index, mode, align_corners)


def upsample_tversky_loss(
    input: torch.Tensor,
    target: torch.Tensor,
    alpha: float = 0.5,
    beta: float = 0.5,
    gamma: float = 1.0,
    smooth: float = 1.0,
    class_weights: Weights | None = None,
    ignore_index: int | None = None,
    reduction: str = "mean",
    *,
    mode: str = "multiclass",
    align_corners: bool = False,
    batch_dice: bool | None = None,
    include_background: bool = True,
    log_loss: bool = False,
    style: str = "lecture",
) -> torch.Tensor:
    """:func:`tversky_loss` as :func:`upsample_dice_loss` is :func:`dice_loss`."""
    region = Region(alpha, beta, gamma, smooth, style, reduction, batch_dice, include_background, log_loss)
    return _upsampled(input, target, region, class_weights, ignore_index, mode, align_corners)


class DiceLoss(FunctionLoss):
    """:func:`dice_loss` as a module; arguments, shapes and errors are that function's."""

    function = staticmethod(dice_loss)


class JaccardLoss(FunctionLoss):
    """:func:`jaccard_loss` as a module; arguments, shapes and errors are that function's."""

    function = staticmethod(jaccard_loss)


class TverskyLoss(FunctionLoss):
    """:func:`tversky_loss` as a module; arguments, shapes and errors are that function's."""

    function = staticmethod(tversky_loss)


class UpsampleDiceLoss(FunctionLoss):
    """:func:`upsample_dice_loss` as a module; arguments, shapes and errors are that function's."""

    function = staticmethod(upsample_dice_loss)


class UpsampleJaccardLoss(FunctionLoss):
    """:func:`upsample_jaccard_loss` as a module; arguments, shapes and errors are that function's."""

    function = staticmethod(upsample_jaccard_loss)


class UpsampleTverskyLoss(FunctionLoss):
    """:func:`upsample_tversky_loss` as a module; arguments, shapes and errors are that function's."""

    function = staticmethod(upsample_tversky_loss)
