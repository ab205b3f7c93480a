"""Which class is replaced by which, and where it is kept: one line a class, found without importing the peer."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from segkernels._accelerate import _losses as losses
from segkernels._accelerate import _modules as modules
from segkernels._accelerate._classes import Accelerated


@dataclass(frozen=True)
class Rule:
    """One class of torch or of a peer."""

    #: where the peer defines it; a peer that is not imported has no modules in the model
    module: str
    name: str
    #: None: never replaced, ``keep`` says why
    by: type[Accelerated] | None
    #: dispatcher ops that need a kernel on the device
    ops: tuple[str, ...]
    #: the reason why this one is kept, or None
    keep: Callable[[nn.Module], str | None] = lambda module: None
    #: methods that a subclass must not have changed
    methods: tuple[str, ...] = ("forward",)

    @property
    def target(self) -> type[nn.Module] | None:
        return getattr(sys.modules.get(self.module), self.name, None)


_CONV = "torch.nn.modules.conv"
_SMP = "segmentation_models_pytorch.losses"
_MONAI = "monai.losses"
_SOFTMAX = ("softmax_statistics", "softmax_statistics_backward")
_SIGMOID = ("sigmoid_statistics", "sigmoid_statistics_backward")
_REGION = (*_SOFTMAX, *_SIGMOID)
_UPSAMPLE = tuple(f"upsample_{mode}2d{suffix}" for mode in ("bilinear", "nearest") for suffix in ("", "_backward"))


def _both(op: str) -> tuple[str, str]:
    return op, f"{op}_backward"


def _loss(
    package: str, name: str, file: str, by: type[Accelerated], ops: tuple[str, ...], keep: Callable, *methods: str
) -> Rule:
    return Rule(f"{package}.{file}", name, by, ops, keep, ("forward", *methods))


_SMP_REGION = ("compute_score", "aggregate_loss")
RULES = (
    Rule(_CONV, "Conv2d", modules.Conv2d, _both("conv2d"), modules.keep_conv2d, ("forward", "_conv_forward")),
    *(
        Rule(_CONV, name, by, _both(op), modules.keep_conv_transpose, ("forward", "_output_padding"))
        for name, by, op in (
            ("ConvTranspose1d", modules.ConvTranspose1d, "conv_transpose1d"),
            ("ConvTranspose2d", modules.ConvTranspose2d, "conv_transpose2d"),
        )
    ),
    Rule("torch.nn.modules.pooling", "MaxPool2d", modules.MaxPool2d, _both("max_pool2d"), modules.keep_max_pool2d),
    Rule("torch.nn.modules.pooling", "MaxUnpool2d", modules.MaxUnpool2d, _both("max_unpool2d"), modules.keep_max_unpool2d),
    Rule("torch.nn.modules.upsampling", "Upsample", modules.Upsample, _UPSAMPLE, modules.keep_upsample),
    Rule("torchvision.ops.roi_align", "RoIAlign", modules.RoIAlign, _both("roi_align")),
    Rule("torchvision.ops.roi_pool", "RoIPool", modules.RoIPool, _both("roi_pool")),
    Rule("torchvision.ops.poolers", "MultiScaleRoIAlign", modules.MultiScaleRoIAlign, _both("multiscale_roi_align")),
    Rule(
        "segmentation_models_pytorch.decoders.deeplabv3.decoder", "SeparableConv2d", None, (), modules.keep_separable
    ),
    Rule("torch.nn.modules.loss", "CrossEntropyLoss", losses.CrossEntropyLoss, _SOFTMAX),
    _loss(_SMP, "DiceLoss", "dice", losses.SmpRegionLoss, _REGION, losses.keep_smp_region, *_SMP_REGION),
    _loss(_SMP, "TverskyLoss", "tversky", losses.SmpTverskyLoss, _REGION, losses.keep_smp_region, *_SMP_REGION),
    _loss(_SMP, "JaccardLoss", "jaccard", losses.SmpJaccardLoss, _REGION, losses.keep_smp_region),
    _loss(_SMP, "FocalLoss", "focal", losses.SmpFocalLoss, _SIGMOID, losses.keep_smp_focal),
    _loss(_SMP, "LovaszLoss", "lovasz", losses.SmpLovaszLoss, _both("lovasz_loss"), lambda module: None),
    _loss(
        _SMP, "SoftCrossEntropyLoss", "soft_ce", losses.SmpSoftCrossEntropyLoss, _SOFTMAX, losses.keep_smp_soft_cross_entropy
    ),
    _loss(_MONAI, "DiceLoss", "dice", losses.MonaiDiceLoss, _REGION, losses.keep_monai_region),
    _loss(_MONAI, "DiceCELoss", "dice", losses.MonaiDiceCELoss, _SOFTMAX, losses.keep_monai_dice_ce, "ce", "bce"),
    _loss(_MONAI, "TverskyLoss", "tversky", losses.MonaiTverskyLoss, _REGION, losses.keep_monai_region),
    _loss(_MONAI, "FocalLoss", "focal_loss", losses.MonaiFocalLoss, _SOFTMAX, losses.keep_monai_focal),
)  # fmt: skip


def targets() -> dict[type[nn.Module], Rule]:
    """The rules whose classes exist in this process."""
    found = ((rule.target, rule) for rule in RULES)
    return {target: rule for target, rule in found if target is not None}


def ops_of(by: type[Accelerated]) -> tuple[str, ...]:
    return next(rule.ops for rule in RULES if rule.by is by)
