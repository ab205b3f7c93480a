"""Instance segmentation: Mask R-CNN and the parts that a user replaces."""

from segkernels.models.detection._anchors import AnchorGenerator
from segkernels.models.detection._heads import (
    FastRCNNConvFCHead,
    FastRCNNPredictor,
    MaskRCNNHeads,
    MaskRCNNPredictor,
    TwoMLPHead,
)
from segkernels.models.detection._rpn import RPNHead
from segkernels.models.detection.mask_rcnn import MaskRCNN, maskrcnn_resnet50_fpn, maskrcnn_resnet50_fpn_v2

__all__ = [
    "AnchorGenerator",
    "FastRCNNConvFCHead",
    "FastRCNNPredictor",
    "MaskRCNN",
    "MaskRCNNHeads",
    "MaskRCNNPredictor",
    "RPNHead",
    "TwoMLPHead",
    "maskrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn_v2",
]
