"""Losses as modules, and as functions of the same name in lower case."""

from segkernels.losses.dice_bce import DiceBCELoss, dice_bce_loss

__all__ = ["DiceBCELoss", "dice_bce_loss"]
