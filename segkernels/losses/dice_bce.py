"""Dice + binary cross entropy."""

from __future__ import annotations

import torch
from torch import nn

from segkernels.ops import dice_bce_loss
from segkernels.ops._loss_arguments import REDUCTIONS, STYLES, Weights, choice

__all__ = ["DiceBCELoss", "dice_bce_loss"]


class DiceBCELoss(nn.Module):
    """:func:`dice_bce_loss` as a module; arguments, shapes and errors are that function's.

    ``pos_weight`` and ``class_weights`` are buffers, as in :class:`torch.nn.BCEWithLogitsLoss`: they move with the module.
    """

    pos_weight: torch.Tensor | None
    class_weights: torch.Tensor | None

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
        from_logits: bool = True,
        class_weights: Weights | None = None,
        batch_dice: bool | None = None,
        include_background: bool = True,
        log_loss: bool = False,
        style: str = "lecture",
    ) -> None:
        super().__init__()
        if mode not in ("binary", "multilabel"):
            raise ValueError(f"mode: expected 'binary' or 'multilabel' (multiclass is DiceCELoss), got {mode!r}")
        choice(reduction, "reduction", REDUCTIONS)
        choice(style, "style", STYLES)
        self.dice_weight = dice_weight
        self.bce_weight = bce_weight
        self.smooth = smooth
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.mode = mode
        self.from_logits = from_logits
        self.batch_dice = batch_dice
        self.include_background = include_background
        self.log_loss = log_loss
        self.style = style
        self.register_buffer("pos_weight", _as_buffer(pos_weight))
        self.register_buffer("class_weights", _as_buffer(class_weights))

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return dice_bce_loss(
            input,
            target,
            self.dice_weight,
            self.bce_weight,
            self.smooth,
            self.pos_weight,
            self.ignore_index,
            self.reduction,
            mode=self.mode,
            from_logits=self.from_logits,
            class_weights=self.class_weights,
            batch_dice=self.batch_dice,
            include_background=self.include_background,
            log_loss=self.log_loss,
            style=self.style,
        )

    def extra_repr(self) -> str:
        return (
            f"dice_weight={self.dice_weight}, bce_weight={self.bce_weight}, smooth={self.smooth}, "
            f"ignore_index={self.ignore_index}, reduction={self.reduction!r}, mode={self.mode!r}, style={self.style!r}"
        )


def _as_buffer(weights: Weights | None) -> torch.Tensor | None:
    return None if weights is None else torch.as_tensor(weights, dtype=torch.float32)
