"""Dice + binary cross entropy from logits smaller than the labels."""

from __future__ import annotations

import torch

from segkernels.losses._module import FunctionLoss
from segkernels.losses._region import Region
from segkernels.losses._sigmoid import sigmoid_dice_bce_loss
from segkernels.losses._statistics import check_names
from segkernels.ops._loss_arguments import Weights

__all__ = ["UpsampleDiceBCELoss", "upsample_dice_bce_loss"]


def upsample_dice_bce_loss(
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
    align_corners: bool = False,
    class_weights: Weights | None = None,
    batch_dice: bool | None = None,
    include_background: bool = True,
    log_loss: bool = False,
    style: str = "lecture",
) -> torch.Tensor:
    """:func:`dice_bce_loss` of ``interpolate(input, target.shape[-2:], mode="bilinear")``, which never exists.

    ``input`` is [N, 1, h, w] (or [N, h, w]; [N, C, h, w] for multilabel) with h <= H and w <= W; the gradient reaches it
    directly. ``align_corners`` is that of :func:`torch.nn.functional.interpolate`; ``reduction="none"`` gives a map of the
    size of ``target``; the rest is as there, from logits.
    """
    check_names(reduction, style)
    region = Region.dice(smooth, style, reduction, batch_dice, include_background, log_loss)
    return sigmoid_dice_bce_loss(
        input, target, dice_weight, bce_weight, region, pos_weight, class_weights=class_weights, ignore_index=ignore_index,
        mode=mode, upsample=True, align_corners=align_corners,
    )  # fmt: skip


class UpsampleDiceBCELoss(FunctionLoss):
    """:func:`upsample_dice_bce_loss` as a module; arguments, shapes and errors are that function's."""

    function = staticmethod(upsample_dice_bce_loss)
