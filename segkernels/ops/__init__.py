"""Operators as functions; every one is also a dispatcher op ``torch.ops.segkernels.<name>``."""

from segkernels.ops.bed_of_nails import bed_of_nails
from segkernels.ops.confusion_matrix import confusion_matrix
from segkernels.ops.conv_transpose2d import conv_transpose2d
from segkernels.ops.dice_bce_loss import dice_bce_loss
from segkernels.ops.max_pool2d import max_pool2d
from segkernels.ops.max_unpool2d import max_unpool2d
from segkernels.ops.upsample_argmax import upsample_argmax
from segkernels.ops.upsample_bilinear2d import upsample_bilinear2d
from segkernels.ops.upsample_nearest2d import upsample_nearest2d

__all__ = [
    "bed_of_nails",
    "confusion_matrix",
    "conv_transpose2d",
    "dice_bce_loss",
    "max_pool2d",
    "max_unpool2d",
    "upsample_argmax",
    "upsample_bilinear2d",
    "upsample_nearest2d",
]
