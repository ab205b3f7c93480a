"""Dice + cross entropy over classes."""

from __future__ import annotations

from typing import Any

import torch

from segkernels.losses._module import FunctionLoss
from segkernels.losses._region import Region
from segkernels.losses._statistics import check_names, multiclass, pixel_mean, region_term, result
from segkernels.ops._loss_arguments import Weights

__all__ = ["DiceCELoss", "UpsampleDiceCELoss", "dice_ce_loss", "upsample_dice_ce_loss"]


def dice_ce_loss(
    input: torch.Tensor,
    target: torch.Tensor,
    dice_weight: float = 1.0,
    ce_weight: float = 1.0,
    smooth: float = 1.0,
    class_weights: Weights | None = None,
    ignore_index: int | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    batch_dice: bool | None = None,
    include_background: bool = True,
    log_loss: bool = False,
    style: str = "lecture",
) -> torch.Tensor:
    """``dice_weight * dice_loss + ce_weight * cross_entropy_loss``, reading the logits once forward and once backward.

    Replaces the sum of a multiclass Dice loss and :func:`torch.nn.functional.cross_entropy`, without a one-hot; nothing of
    full size is saved but the inputs. Arguments, results and errors are those of :func:`dice_loss` and
    :func:`cross_entropy_loss`; ``class_weights`` weigh both terms. ``reduction="none"`` gives a map [N, H, W] with, at every
    valid pixel, its cross entropy plus the Dice term of its batch or, not pooled, of its sample.
    """
    options = {"batch_dice": batch_dice, "include_background": include_background, "log_loss": log_loss}
    return _loss(
        input,
        target,
        dice_weight,
        ce_weight,
        smooth,
        class_weights,
        ignore_index,
        reduction,
        label_smoothing,
        style,
        options,
        False,
        False,
    )


def upsample_dice_ce_loss(
    input: torch.Tensor,
    target: torch.Tensor,
    dice_weight: float = 1.0,
    ce_weight: float = 1.0,
    smooth: float = 1.0,
    class_weights: Weights | None = None,
    ignore_index: int | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    align_corners: bool = False,
    batch_dice: bool | None = None,
    include_background: bool = True,
    log_loss: bool = False,
    style: str = "lecture",
) -> torch.Tensor:
    """:func:`dice_ce_loss` of ``interpolate(input, target.shape[1:], mode="bilinear")``, which never exists.

    ``input`` is [N, C, h, w] with h <= H and w <= W; the gradient reaches it directly. ``align_corners`` is that of
    :func:`torch.nn.functional.interpolate`; the rest is as there.
    """
    options = {"batch_dice": batch_dice, "include_background": include_background, "log_loss": log_loss}
    return _loss(
        input,
        target,
        dice_weight,
        ce_weight,
        smooth,
        class_weights,
        ignore_index,
        reduction,
        label_smoothing,
        style,
        options,
        True,
        align_corners,
    )


def _loss(
    input: torch.Tensor,
    target: torch.Tensor,
    dice_weight: float,
    ce_weight: float,
    smooth: float,
    class_weights: Weights | None,
    ignore_index: int | None,
    reduction: str,
    label_smoothing: float,
    style: str,
    options: dict[str, Any],
    upsample: bool,
    align_corners: bool,
) -> torch.Tensor:
    check_names(reduction, style)
    losses = reduction == "none"
    statistics = multiclass(
        input,
        target,
        class_weights=class_weights,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        regions=True,
        losses=losses,
        upsample=upsample,
        align_corners=align_corners,
    )
    region = Region.dice(smooth, style, reduction="mean" if losses else reduction, **options)
    if not losses:
        ce = statistics.pixel[:, 0].sum() if reduction == "sum" else pixel_mean(statistics, weighted=class_weights is not None)
        return result(dice_weight * region_term(input, statistics, region, class_weights) + ce_weight * ce, input)
    pooled = style != "monai" if options["batch_dice"] is None else options["batch_dice"]
    if pooled:
        dice = region_term(input, statistics, region, class_weights).reshape(1, 1, 1)
    else:
        samples = [statistics._replace(region=r[None], pixel=s[None]) for r, s in zip(statistics.region, statistics.pixel)]
        dice = torch.stack([region_term(input, s, region, class_weights) for s in samples]).reshape(-1, 1, 1)
    loss = dice_weight * result(dice, input) + ce_weight * statistics.losses
    return loss if ignore_index is None else torch.where(target == ignore_index, 0.0, loss)


class DiceCELoss(FunctionLoss):
    """:func:`dice_ce_loss` as a module; arguments, shapes and errors are that function's."""

    function = staticmethod(dice_ce_loss)


class UpsampleDiceCELoss(FunctionLoss):
    """:func:`upsample_dice_ce_loss` as a module; arguments, shapes and errors are that function's."""

    function = staticmethod(upsample_dice_ce_loss)
