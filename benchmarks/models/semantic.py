"""Semantic models: against torchvision's or SMP's where they have them, else against the same network on torch's kernels."""

from __future__ import annotations

import functools
from typing import Any

from torch import nn

from benchmarks.cases import Case
from benchmarks.models._case import Builder, model_case
from benchmarks.models._torch import on_torch
from segkernels import models


def without_dropout(build: Builder) -> nn.Module:
    """Every variant has to compute the same."""
    model = build()
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
    return model


def torchvision(name: str) -> nn.Module:
    from torchvision.models import segmentation

    return getattr(segmentation, name)(weights=None, weights_backbone=None)


def smp(name: str, **options: Any) -> nn.Module:
    import segmentation_models_pytorch

    return getattr(segmentation_models_pytorch, name)(encoder_weights=None, **options)


def case(name: str, shape: tuple[int, ...], baseline: str, theirs: Builder | None = None, **options: Any) -> Case:
    """``theirs`` has parameters of the same shapes in the same order; None: our network on torch's kernels."""
    ours = functools.partial(getattr(models, name), **options)
    others = {baseline: functools.partial(without_dropout, theirs or functools.partial(on_torch, ours))}
    return model_case(f"{name} {'x'.join(map(str, shape))}", functools.partial(without_dropout, ours), others, shape)


def of_torchvision(name: str, shape: tuple[int, ...]) -> Case:
    return case(name, shape, "torchvision", functools.partial(torchvision, name))


def of_smp(name: str, theirs: str, encoder: str, shape: tuple[int, ...], **options: Any) -> Case:
    classes = options.setdefault("num_classes", 21)
    return case(name, shape, "smp", functools.partial(smp, theirs, encoder_name=encoder, classes=classes), **options)


CASES = [
    of_torchvision("fcn_resnet50", (2, 3, 81, 81)),
    of_torchvision("fcn_resnet101", (1, 3, 97, 97)),
    of_torchvision("deeplabv3_resnet50", (2, 3, 81, 81)),
    of_torchvision("deeplabv3_resnet101", (2, 3, 65, 65)),
    of_torchvision("deeplabv3_mobilenet_v3_large", (2, 3, 257, 257)),
    of_smp("deeplabv3plus_resnet50", "DeepLabV3Plus", "resnet50", (2, 3, 128, 128), style="smp"),
    of_smp("deeplabv3plus_resnet101", "DeepLabV3Plus", "resnet101", (2, 3, 96, 96), style="smp"),
    of_smp("encoder_unet", "Unet", "resnet34", (2, 3, 128, 128), encoder_name="resnet34"),
    case("deeplabv3plus_xception", (2, 3, 97, 97), "torch.nn"),
    *(case(f"fcn{stride}s_vgg16", (1, 3, 128, 128), "torch.nn", width=32) for stride in (32, 16, 8)),
    case("deconvnet", (2, 3, 224, 224), "torch.nn", width=16),
    case("deeplabv1_vgg16", (1, 3, 161, 161), "torch.nn", width=32),
    case("deeplabv2_resnet101", (1, 3, 97, 97), "torch.nn"),
]
