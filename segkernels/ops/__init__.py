"""Operators as functions; every one is also a dispatcher op ``torch.ops.segkernels.<name>``."""

from segkernels.ops.confusion_matrix import confusion_matrix
from segkernels.ops.conv_transpose2d import conv_transpose2d
from segkernels.ops.dice_bce_loss import dice_bce_loss
from segkernels.ops.max_pool2d import max_pool2d
from segkernels.ops.max_unpool2d import max_unpool2d
from segkernels.ops.multiscale_roi_align import multiscale_roi_align
from segkernels.ops.roi_align import roi_align
from segkernels.ops.roi_pool import roi_pool

__all__ = [
    "confusion_matrix",
    "conv_transpose2d",
    "dice_bce_loss",
    "max_pool2d",
    "max_unpool2d",
    "multiscale_roi_align",
    "roi_align",
    "roi_pool",
]
