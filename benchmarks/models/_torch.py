"""A network of ours on torch's own kernels: its layers run the forwards of the classes that they derive from."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.models._case import Builder
from segkernels import models
from segkernels import nn as ours


class Conv2d(ours.Conv2d):
    _conv_forward = nn.Conv2d._conv_forward


class ConvTranspose2d(ours.ConvTranspose2d):
    forward = nn.ConvTranspose2d.forward


class MaxPool2d(ours.MaxPool2d):
    """Its indices are int64, whatever the network asks for."""

    forward = nn.MaxPool2d.forward


class MaxUnpool2d(ours.MaxUnpool2d):
    forward = nn.MaxUnpool2d.forward


class DepthwiseSeparableConv2d(ours.DepthwiseSeparableConv2d):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        for conv in (self.depthwise, self.pointwise):
            input = conv(input)
            if hasattr(conv, "norm"):
                input = conv.norm(input)
            if self.activation is not None:
                input = input.relu()
        return input


class ASPP(ours.ASPP):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        branches = [conv(input) for conv in self.convs]
        return torch.stack(branches).sum(0) if self.variant == "v2" else self.project(torch.cat(branches, 1))


CLASSES = {
    ours.Conv2d: Conv2d,
    ours.ConvTranspose2d: ConvTranspose2d,
    ours.BilinearConvTranspose2d: ConvTranspose2d,
    ours.MaxPool2d: MaxPool2d,
    ours.MaxUnpool2d: MaxUnpool2d,
    ours.DepthwiseSeparableConv2d: DepthwiseSeparableConv2d,
    ours.ASPP: ASPP,
}


def bilinear(input: torch.Tensor, size: Any = None, scale_factor: Any = None, align_corners: bool = False) -> torch.Tensor:
    return F.interpolate(input, size, scale_factor, "bilinear", align_corners)


#: Functions that forwards of our models call by these names.
FUNCTIONS = {"upsample_bilinear2d": bilinear, "upsample_nearest2d": F.interpolate}
_USERS = [
    (module, name)
    for info in pkgutil.walk_packages(models.__path__, f"{models.__name__}.")
    for module in [importlib.import_module(info.name)]
    for name in FUNCTIONS
    if hasattr(module, name)
]


def on_torch(build: Builder) -> nn.Module:
    """The model with the parameters of ``build()`` and none of our operators."""
    model = build()
    for module in model.modules():
        module.__class__ = CLASSES.get(type(module), type(module))
    forward = model.forward

    def run(*inputs: torch.Tensor) -> Any:
        before = [getattr(module, name) for module, name in _USERS]
        for module, name in _USERS:
            setattr(module, name, FUNCTIONS[name])
        try:
            return forward(*inputs)
        finally:
            for (module, name), function in zip(_USERS, before):
                setattr(module, name, function)

    model.forward = run  # type: ignore[method-assign]
    return model
