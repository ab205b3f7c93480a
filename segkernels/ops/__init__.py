"""Operators as functions; every one is also a dispatcher op ``torch.ops.segkernels.<name>``."""

from segkernels.ops.confusion_matrix import confusion_matrix
from segkernels.ops.conv_transpose2d import conv_transpose2d
from segkernels.ops.dice_bce_loss import dice_bce_loss
from segkernels.ops.lovasz_loss import lovasz_loss
from segkernels.ops.max_pool2d import max_pool2d
from segkernels.ops.max_unpool2d import max_unpool2d
from segkernels.ops.sigmoid_statistics import sigmoid_statistics

__all__ = [
    "confusion_matrix",
    "conv_transpose2d",
    "dice_bce_loss",
    "lovasz_loss",
    "max_pool2d",
    "max_unpool2d",
    "sigmoid_statistics",
]
