"""Dice + binary cross entropy from logits smaller than the labels."""

from __future__ import annotations

import torch
from torch import nn

from segkernels.losses._region import Region
from segkernels.losses._sigmoid import sigmoid_dice_bce_loss
from segkernels.ops._loss_arguments import STYLES, Weights, choice

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
    style: str = "lecture",
    align_corners: bool = False,
) -> torch.Tensor:
    """:func:`dice_bce_loss` of ``interpolate(input, target.shape[-2:], mode="bilinear")``, which never exists.

    ``input`` is [N, 1, h, w] (or [N, h, w]; [N, C, h, w] for multilabel) with h <= H and w <= W; the gradient reaches it
    directly. ``reduction`` is ``"mean"`` or ``"sum"``, ``align_corners`` that of
    :func:`torch.nn.functional.interpolate`; the rest is as there.
    """
    choice(reduction, "reduction", {"mean": 1, "sum": 2})
    choice(style, "style", STYLES)
    return sigmoid_dice_bce_loss(
        input, target, dice_weight, bce_weight, Region.dice(smooth, style, reduction=reduction), pos_weight, mode=mode,
        ignore_index=ignore_index, upsample=True, align_corners=align_corners,
    )  # fmt: skip


class UpsampleDiceBCELoss(nn.Module):
    """:func:`upsample_dice_bce_loss` as a module; arguments, shapes and errors are that function's."""

    pos_weight: torch.Tensor | None

    def __init__(
        self,
        dice_weight: float = 1.0,
        bce_weight: float = 1.0,
        smooth: float = 1.0,
        pos_weight: Weights | None = None,
        ignore_index: int | None = None,
        reduction: str = "mean",
        *,
        mode: str = "binary",
        style: str = "lecture",
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        choice(reduction, "reduction", {"mean": 1, "sum": 2})
        choice(style, "style", STYLES)
        self.dice_weight = dice_weight
        self.bce_weight = bce_weight
        self.smooth = smooth
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.mode = mode
        self.style = style
        self.align_corners = align_corners
        self.register_buffer("pos_weight", None if pos_weight is None else torch.as_tensor(pos_weight, dtype=torch.float32))

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return upsample_dice_bce_loss(
            input, target, self.dice_weight, self.bce_weight, self.smooth, self.pos_weight, self.ignore_index,
            self.reduction, mode=self.mode, style=self.style, align_corners=self.align_corners,
        )  # fmt: skip
