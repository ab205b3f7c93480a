"""Semantic models: against torchvision's where it has them, else against the same network on torch's own kernels."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import nn

import segkernels
from benchmarks.models._case import model_case
from segkernels import models


def on_torch(build: Callable[[], nn.Module]) -> nn.Module:
    """The model, its operators on torch's kernels where torch has them."""
    model = build()
    forward = model.forward

    def run(image: torch.Tensor):
        with segkernels.backend("vendor"):
            return forward(image)

    model.forward = run
    return model


def without_dropout(build: Callable[[], nn.Module]) -> nn.Module:
    """Every variant has to compute the same."""
    model = build()
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
    return model


def torchvision(name: str) -> nn.Module:
    from torchvision.models import segmentation

    return getattr(segmentation, name)(weights=None, weights_backbone=None)


def case(name: str, shape: tuple[int, ...], **options):
    ours = functools.partial(getattr(models, name), **options)
    if name in ("fcn_resnet50", "deeplabv3_resnet50", "deeplabv3_mobilenet_v3_large"):
        baselines = {"torchvision": functools.partial(torchvision, name)}
    else:
        baselines = {"torch.nn": functools.partial(on_torch, ours)}
    still = {key: functools.partial(without_dropout, build) for key, build in baselines.items()}
    return model_case(f"{name} {'x'.join(map(str, shape))}", functools.partial(without_dropout, ours), still, shape)


CASES = [
    case("fcn_resnet50", (2, 3, 129, 129)),
    case("deeplabv3_resnet50", (2, 3, 129, 129)),
    case("deeplabv3_mobilenet_v3_large", (2, 3, 257, 257)),
    case("deeplabv3plus_resnet50", (2, 3, 129, 129)),
    case("fcn8s_vgg16", (1, 3, 128, 128), width=32),
    case("deconvnet", (1, 3, 224, 224), width=16),
    case("deeplabv1_vgg16", (1, 3, 161, 161), width=32),
    case("encoder_unet", (2, 3, 128, 128)),
]
