"""Modules with the constructor, ``state_dict`` and repr of what they replace."""

from segkernels.nn.aspp import ASPP
from segkernels.nn.conv import Conv2d, ConvTranspose1d, ConvTranspose2d
from segkernels.nn.pooling import MaxPool2d, MaxUnpool2d
from segkernels.nn.regions import MultiScaleRoIAlign, RoIAlign, RoIPool
from segkernels.nn.separable import BilinearConvTranspose2d, DepthwiseSeparableConv2d
from segkernels.nn.upsample import Upsample

__all__ = [
    "ASPP",
    "BilinearConvTranspose2d",
    "Conv2d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "DepthwiseSeparableConv2d",
    "MaxPool2d",
    "MaxUnpool2d",
    "MultiScaleRoIAlign",
    "RoIAlign",
    "RoIPool",
    "Upsample",
]
