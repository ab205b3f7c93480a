"""Modules with the constructor, ``state_dict`` and repr of what they replace."""

from segkernels.nn.conv import Conv2d, ConvTranspose1d, ConvTranspose2d
from segkernels.nn.pooling import MaxPool2d, MaxUnpool2d
from segkernels.nn.regions import MultiScaleRoIAlign, RoIAlign
from segkernels.nn.upsample import Upsample

__all__ = [
    "Conv2d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "MaxPool2d",
    "MaxUnpool2d",
    "MultiScaleRoIAlign",
    "RoIAlign",
    "Upsample",
]
