"""DeepLab v3+: a separable pyramid and a decoder that sees the map of a quarter of the size (Chen et al. 2018)."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import nn

from segkernels.models._registry import register_model
from segkernels.models._semantic import FCNHead, SemanticModel, read_semantic
from segkernels.models._smp import from_smp, is_smp
from segkernels.models._weights import Weights, load_backbone, load_state, load_weights
from segkernels.models.deeplabv3 import RATES, check_style
from segkernels.models.resnet import ResNetEncoder
from segkernels.models.xception import XceptionEncoder, from_timm
from segkernels.nn import ASPP, DepthwiseSeparableConv2d
from segkernels.ops import upsample_bilinear2d


def _norm_relu(channels: int) -> list[nn.Module]:
    return [nn.BatchNorm2d(channels), nn.ReLU()]


def _separable(in_channels: int, out_channels: int) -> nn.Sequential:
    conv = DepthwiseSeparableConv2d(in_channels, out_channels, 3, padding=1, bias=False)
    return nn.Sequential(conv, *_norm_relu(out_channels))


class DeepLabV3PlusHead(nn.Module):
    """Separable pyramid and convolution; its map, upsampled, beside 48 channels of the larger map; separable convolution.

    Args:
        low_channels: of the map at a quarter of the input's size.
        high_channels: of the last map.
        num_classes: channels of the logits, at the size of the former.
        atrous_rates: three, of the pyramid.
        dropout: after the pyramid's projection.
        align_corners: of the upsampling in between.
    """

    def __init__(
        self,
        low_channels: int,
        high_channels: int,
        num_classes: int,
        atrous_rates: tuple[int, ...],
        dropout: float = 0.5,
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        self.align_corners = align_corners
        self.aspp = ASPP(high_channels, atrous_rates, separable=True, dropout=dropout)
        self.refine = _separable(256, 256)
        self.project = nn.Sequential(nn.Conv2d(low_channels, 48, 1, bias=False), *_norm_relu(48))
        self.fuse = _separable(256 + 48, 256)
        self.logits = nn.Conv2d(256, num_classes, 1)

    def forward(self, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        x = self.refine(self.aspp(high))
        x = upsample_bilinear2d(x, low.shape[2:], align_corners=self.align_corners)
        return self.logits(self.fuse(torch.cat([x, self.project(low)], dim=1)))


class DeepLabV3Plus(SemanticModel):
    """A :class:`SemanticModel` whose classifier takes two maps: ``low``, by name, and ``out``."""

    def __init__(
        self,
        backbone: nn.Module,
        classifier: nn.Module,
        aux_classifier: nn.Module | None = None,
        low: str = "layer1",
        **config: Any,
    ) -> None:
        super().__init__(backbone, classifier, aux_classifier, **config)
        self.low = low

    def classify(self, maps: OrderedDict[str, torch.Tensor]) -> torch.Tensor:
        return self.classifier(maps[self.low], maps[self.out])


def _deeplabv3plus_resnet(
    encoder: str,
    in_channels: int,
    num_classes: int,
    aux_loss: bool | None,
    weights: Weights | None,
    progress: bool,
    weights_backbone: Weights | None,
    output_stride: int,
    atrous_rates: tuple[int, ...] | None,
    style: str | None,
) -> DeepLabV3Plus:
    check_style(style)
    state, has_aux = read_semantic(f"deeplabv3plus_{encoder}", weights, progress, num_classes, aux_loss)
    if state is not None and is_smp(state):
        state, style = from_smp(state), style or "smp"
    smp = style == "smp"
    backbone = ResNetEncoder(encoder, in_channels, output_stride, dilate_first=smp)
    channels = backbone.channels
    rates = atrous_rates or (RATES[8] if smp else RATES[output_stride])
    head = DeepLabV3PlusHead(channels["layer1"], channels["layer4"], num_classes, rates, align_corners=smp)
    aux = FCNHead(channels["layer3"], num_classes) if has_aux else None
    model = DeepLabV3Plus(backbone, head, aux, in_channels=in_channels, align_corners=smp)
    if state is not None:
        load_state(model, state, weights)
    else:
        load_backbone(backbone, weights_backbone, progress, name=encoder)
    return model


@register_model
def deeplabv3plus_resnet50(
    *,
    weights: Weights | None = None,
    progress: bool = True,
    num_classes: int = 21,
    aux_loss: bool | None = None,
    weights_backbone: Weights | None = None,
    in_channels: int = 3,
    output_stride: int = 16,
    atrous_rates: tuple[int, ...] | None = None,
    style: str | None = None,
) -> DeepLabV3Plus:
    """DeepLab v3+ on a dilated ResNet-50, as SMP's ``DeepLabV3Plus`` builds it: one separable convolution after the pyramid
    and one in the decoder.

    Args:
        weights: path of a state dict of this model, or of SMP's ``DeepLabV3Plus("resnet50")``, whose keys are converted.
        progress: show a progress bar while weights are downloaded; a path downloads nothing.
        num_classes: channels of the logits.
        aux_loss: True adds a head on the third stage, whose logits are ``aux``. None (default): where the weights have one.
        weights_backbone: a member of :class:`ResNet50_Weights`, or the path of a state dict of torchvision's ``resnet50``;
            not read where ``weights`` is given.
        in_channels: channels of the input.
        output_stride: 16 (default), 8 or 32.
        atrous_rates: of the pyramid. None (default): 6, 12, 18 at output stride 16, 12, 24, 36 at 8, 3, 6, 9 at 32.
        style: None (default) is ``"smp"`` with weights of SMP, else ``"torchvision"``. The former has SMP's default rates (12,
            24, 36), dilates the first block of a dilated stage too, and upsamples with ``align_corners=True``.

    Returns:
        DeepLabV3Plus: ``[N, in_channels, H, W] -> OrderedDict(out=[N, num_classes, H, W])``, and ``aux`` likewise. In training
        the pooled branch normalises one value per channel and image, so a batch of one raises.

    Raises:
        ValueError: for weights of another model or with other classes, truncated or changed files, and ``aux_loss=False``
            with weights that have an auxiliary head; from ``forward``, for another rank or number of channels.
    """
    return _deeplabv3plus_resnet(
        "resnet50", in_channels, num_classes, aux_loss, weights, progress, weights_backbone, output_stride, atrous_rates, style
    )


@register_model
def deeplabv3plus_resnet101(
    *,
    weights: Weights | None = None,
    progress: bool = True,
    num_classes: int = 21,
    aux_loss: bool | None = None,
    weights_backbone: Weights | None = None,
    in_channels: int = 3,
    output_stride: int = 16,
    atrous_rates: tuple[int, ...] | None = None,
    style: str | None = None,
) -> DeepLabV3Plus:
    """:func:`deeplabv3plus_resnet50` on ResNet-101."""
    return _deeplabv3plus_resnet(
        "resnet101",
        in_channels,
        num_classes,
        aux_loss,
        weights,
        progress,
        weights_backbone,
        output_stride,
        atrous_rates,
        style,
    )


@register_model
def deeplabv3plus_xception(
    *,
    weights: Weights | None = None,
    progress: bool = True,
    num_classes: int = 21,
    aux_loss: bool | None = None,
    weights_backbone: Weights | None = None,
    in_channels: int = 3,
    output_stride: int = 16,
    atrous_rates: tuple[int, ...] | None = None,
) -> DeepLabV3Plus:
    """DeepLab v3+ on the modified aligned Xception-65, with the decoder of :func:`deeplabv3plus_resnet50`.

    Args:
        weights: path of a state dict of this model.
        weights_backbone: path of a state dict of :class:`XceptionEncoder` or of timm's ``xception65``; not read where
            ``weights`` is given.
        aux_loss: True adds a head on the map before the exit flow's stride. None (default): where the weights have one.
        progress, num_classes, in_channels, output_stride, atrous_rates: see :func:`deeplabv3plus_resnet50`, and there for what
            it returns and raises.
    """
    state, has_aux = read_semantic("deeplabv3plus_xception", weights, progress, num_classes, aux_loss)
    backbone = XceptionEncoder(in_channels, output_stride)
    channels = backbone.channels
    head = DeepLabV3PlusHead(channels["layer1"], channels["layer4"], num_classes, atrous_rates or RATES[output_stride])
    aux = FCNHead(channels["layer3"], num_classes) if has_aux else None
    model = DeepLabV3Plus(backbone, head, aux, in_channels=in_channels)
    if state is not None:
        load_state(model, state, weights)
    else:
        load_weights(backbone, weights_backbone, progress, from_timm)
    return model
