"""Segmentation models: keyword-only builders, by function or by name.

A semantic model returns an ``OrderedDict`` of logits at the input's size, as torchvision's do: ``out``, and ``aux`` where
the model has an auxiliary head that is switched on (the U-Nets, SegNet, DeconvNet and the FCNs on VGG16 have none). Inputs
are normalised outside the model.
"""

from segkernels.models import weights
from segkernels.models._registry import get_model, list_models
from segkernels.models.deconvnet import DeconvNet, deconvnet
from segkernels.models.deeplabv1 import deeplabv1_vgg16
from segkernels.models.deeplabv2 import DeepLabV2, deeplabv2_resnet101
from segkernels.models.deeplabv3 import deeplabv3_mobilenet_v3_large, deeplabv3_resnet50, deeplabv3_resnet101
from segkernels.models.deeplabv3plus import deeplabv3plus_resnet50, deeplabv3plus_resnet101, deeplabv3plus_xception
from segkernels.models.detection import MaskRCNN, maskrcnn_resnet50_fpn, maskrcnn_resnet50_fpn_v2
from segkernels.models.encoder_unet import EncoderUNet, encoder_unet
from segkernels.models.fcn import fcn_resnet50, fcn_resnet101
from segkernels.models.fcn_vgg import FCNVGG16, fcn8s_vgg16, fcn16s_vgg16, fcn32s_vgg16
from segkernels.models.mobilenet import MobileNetEncoder
from segkernels.models.resnet import ResNetEncoder
from segkernels.models.segnet import SegNet, segnet
from segkernels.models.timm import TimmEncoder
from segkernels.models.unet import UNet, unet
from segkernels.models.vgg import VGG16Encoder, convolutionalize
from segkernels.models.xception import XceptionEncoder

__all__ = [
    "DeconvNet",
    "DeepLabV2",
    "EncoderUNet",
    "FCNVGG16",
    "MaskRCNN",
    "MobileNetEncoder",
    "ResNetEncoder",
    "SegNet",
    "TimmEncoder",
    "UNet",
    "VGG16Encoder",
    "XceptionEncoder",
    "convolutionalize",
    "deconvnet",
    "deeplabv1_vgg16",
    "deeplabv2_resnet101",
    "deeplabv3_mobilenet_v3_large",
    "deeplabv3_resnet101",
    "deeplabv3_resnet50",
    "deeplabv3plus_resnet101",
    "deeplabv3plus_resnet50",
    "deeplabv3plus_xception",
    "encoder_unet",
    "fcn16s_vgg16",
    "fcn32s_vgg16",
    "fcn8s_vgg16",
    "fcn_resnet101",
    "fcn_resnet50",
    "get_model",
    "list_models",
    "maskrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn_v2",
    "segnet",
    "unet",
    "weights",
]
