"""Losses as modules, and as functions of the same name in lower case."""

from segkernels.losses.balanced_bce import BalancedBCELoss, balanced_bce_loss
from segkernels.losses.cross_entropy import (
    CrossEntropyLoss,
    UpsampleCrossEntropyLoss,
    cross_entropy_loss,
    upsample_cross_entropy_loss,
)
from segkernels.losses.dice_bce import DiceBCELoss, dice_bce_loss
from segkernels.losses.dice_ce import DiceCELoss, UpsampleDiceCELoss, dice_ce_loss, upsample_dice_ce_loss
from segkernels.losses.focal import FocalLoss, UpsampleFocalLoss, focal_loss, upsample_focal_loss
from segkernels.losses.lovasz import LovaszLoss, lovasz_loss
from segkernels.losses.region import (
    DiceLoss,
    JaccardLoss,
    TverskyLoss,
    UpsampleDiceLoss,
    UpsampleJaccardLoss,
    UpsampleTverskyLoss,
    dice_loss,
    jaccard_loss,
    tversky_loss,
    upsample_dice_loss,
    upsample_jaccard_loss,
    upsample_tversky_loss,
)
from segkernels.losses.upsample_dice_bce import UpsampleDiceBCELoss, upsample_dice_bce_loss

__all__ = [
    "BalancedBCELoss",
    "CrossEntropyLoss",
    "DiceBCELoss",
    "DiceCELoss",
    "DiceLoss",
    "FocalLoss",
    "JaccardLoss",
    "LovaszLoss",
    "TverskyLoss",
    "UpsampleCrossEntropyLoss",
    "UpsampleDiceBCELoss",
    "UpsampleDiceCELoss",
    "UpsampleDiceLoss",
    "UpsampleFocalLoss",
    "UpsampleJaccardLoss",
    "UpsampleTverskyLoss",
    "balanced_bce_loss",
    "cross_entropy_loss",
    "dice_bce_loss",
    "dice_ce_loss",
    "dice_loss",
    "focal_loss",
    "jaccard_loss",
    "lovasz_loss",
    "tversky_loss",
    "upsample_cross_entropy_loss",
    "upsample_dice_bce_loss",
    "upsample_dice_ce_loss",
    "upsample_dice_loss",
    "upsample_focal_loss",
    "upsample_jaccard_loss",
    "upsample_tversky_loss",
]
