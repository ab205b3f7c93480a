"""Operators as functions; every one is also a dispatcher op ``torch.ops.segkernels.<name>``."""

from segkernels.ops.batched_nms import batched_nms
from segkernels.ops.bed_of_nails import bed_of_nails
from segkernels.ops.box_iou import box_iou
from segkernels.ops.confusion_matrix import confusion_matrix
from segkernels.ops.conv2d import conv2d
from segkernels.ops.conv_transpose1d import conv_transpose1d
from segkernels.ops.conv_transpose2d import conv_transpose2d
from segkernels.ops.depthwise_separable_conv2d import depthwise_separable_conv2d
from segkernels.ops.dice_bce_loss import dice_bce_loss
from segkernels.ops.lovasz_loss import lovasz_loss
from segkernels.ops.max_pool2d import max_pool2d
from segkernels.ops.max_unpool2d import max_unpool2d
from segkernels.ops.multi_dilation_conv2d import multi_dilation_conv2d
from segkernels.ops.multiscale_roi_align import multiscale_roi_align
from segkernels.ops.nms import nms
from segkernels.ops.paste_masks import paste_masks
from segkernels.ops.paste_masks_rle import paste_masks_rle
from segkernels.ops.roi_align import roi_align
from segkernels.ops.roi_pool import roi_pool
from segkernels.ops.sigmoid_statistics import sigmoid_statistics
from segkernels.ops.softmax_statistics import softmax_statistics
from segkernels.ops.upsample_argmax import upsample_argmax
from segkernels.ops.upsample_bilinear2d import upsample_bilinear2d
from segkernels.ops.upsample_nearest2d import upsample_nearest2d

__all__ = [
    "batched_nms",
    "bed_of_nails",
    "box_iou",
    "confusion_matrix",
    "conv2d",
    "conv_transpose1d",
    "conv_transpose2d",
    "depthwise_separable_conv2d",
    "dice_bce_loss",
    "lovasz_loss",
    "max_pool2d",
    "max_unpool2d",
    "multi_dilation_conv2d",
    "multiscale_roi_align",
    "nms",
    "paste_masks",
    "paste_masks_rle",
    "roi_align",
    "roi_pool",
    "sigmoid_statistics",
    "softmax_statistics",
    "upsample_argmax",
    "upsample_bilinear2d",
    "upsample_nearest2d",
]
