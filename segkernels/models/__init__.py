"""Segmentation models: keyword-only builders, by function or by name.

A semantic model returns an ``OrderedDict`` of logits at the input's size, as torchvision's do: ``out``, and ``aux`` where
the model has an auxiliary head that is switched on (:func:`unet` and :func:`segnet` have none). Inputs are normalised
outside the model. :class:`MaskRCNN` takes lists of images, normalises them itself, and follows torchvision's contract too.
"""

from segkernels.models import weights
from segkernels.models._registry import get_model, list_models
from segkernels.models.deeplabv3 import deeplabv3_resnet50, deeplabv3_resnet101
from segkernels.models.detection import MaskRCNN, maskrcnn_resnet50_fpn, maskrcnn_resnet50_fpn_v2
from segkernels.models.fcn import fcn_resnet50, fcn_resnet101
from segkernels.models.resnet import ResNetEncoder
from segkernels.models.segnet import SegNet, segnet
from segkernels.models.unet import UNet, unet

__all__ = [
    "MaskRCNN",
    "ResNetEncoder",
    "SegNet",
    "UNet",
    "deeplabv3_resnet50",
    "deeplabv3_resnet101",
    "fcn_resnet50",
    "fcn_resnet101",
    "get_model",
    "list_models",
    "maskrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn_v2",
    "segnet",
    "unet",
    "weights",
]
