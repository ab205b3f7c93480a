"""Modules with the constructor, ``state_dict`` and repr of what they replace."""

from segkernels.nn.conv import ConvTranspose2d
from segkernels.nn.pooling import MaxPool2d, MaxUnpool2d
from segkernels.nn.regions import MultiScaleRoIAlign, RoIAlign, RoIPool

__all__ = ["ConvTranspose2d", "MaxPool2d", "MaxUnpool2d", "MultiScaleRoIAlign", "RoIAlign", "RoIPool"]
