"""Losses as modules, and as functions of the same name in lower case."""

from segkernels.losses.balanced_bce import BalancedBCELoss, balanced_bce_loss
from segkernels.losses.dice_bce import DiceBCELoss, dice_bce_loss
from segkernels.losses.lovasz import LovaszLoss, lovasz_loss
from segkernels.losses.upsample_dice_bce import UpsampleDiceBCELoss, upsample_dice_bce_loss

__all__ = [
    "BalancedBCELoss",
    "DiceBCELoss",
    "LovaszLoss",
    "UpsampleDiceBCELoss",
    "balanced_bce_loss",
    "dice_bce_loss",
    "lovasz_loss",
    "upsample_dice_bce_loss",
]
