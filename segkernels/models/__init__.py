"""Segmentation models: keyword-only builders, by function or by name.

A semantic model returns an ``OrderedDict`` of logits at the input's size, as torchvision's do: ``out``, and ``aux`` where
the model has an auxiliary head that is switched on (:func:`unet` and :func:`segnet` have none). Inputs are normalised
outside the model.
"""

from segkernels.models import weights
from segkernels.models._registry import get_model, list_models
from segkernels.models.deeplabv3 import deeplabv3_mobilenet_v3_large, deeplabv3_resnet50, deeplabv3_resnet101
from segkernels.models.deeplabv3plus import deeplabv3plus_resnet50, deeplabv3plus_resnet101, deeplabv3plus_xception
from segkernels.models.fcn import fcn_resnet50, fcn_resnet101
from segkernels.models.mobilenet import MobileNetEncoder
from segkernels.models.resnet import ResNetEncoder
from segkernels.models.segnet import SegNet, segnet
from segkernels.models.timm import TimmEncoder
from segkernels.models.unet import UNet, unet
from segkernels.models.xception import XceptionEncoder

__all__ = [
    "MobileNetEncoder",
    "ResNetEncoder",
    "SegNet",
    "TimmEncoder",
    "UNet",
    "XceptionEncoder",
    "deeplabv3_mobilenet_v3_large",
    "deeplabv3_resnet50",
    "deeplabv3_resnet101",
    "deeplabv3plus_resnet50",
    "deeplabv3plus_resnet101",
    "deeplabv3plus_xception",
    "fcn_resnet50",
    "fcn_resnet101",
    "get_model",
    "list_models",
    "segnet",
    "unet",
    "weights",
]
