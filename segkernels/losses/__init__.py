"""Losses as modules, and as functions of the same name in lower case."""

from segkernels.losses.dice_bce import DiceBCELoss, dice_bce_loss
from segkernels.losses.lovasz import LovaszLoss, lovasz_loss

__all__ = ["DiceBCELoss", "LovaszLoss", "dice_bce_loss", "lovasz_loss"]
