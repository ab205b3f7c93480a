"""DeepLab v3: atrous spatial pyramid pooling on a dilated ResNet or MobileNet (Chen et al. 2017)."""

from __future__ import annotations

from torch import nn

from segkernels.models._registry import register_model
from segkernels.models._semantic import FCNHead, SemanticModel, read_semantic
from segkernels.models._smp import from_smp, is_smp
from segkernels.models._weights import Weights, load_backbone, load_state
from segkernels.models.mobilenet import MobileNetEncoder
from segkernels.models.resnet import ResNetEncoder
from segkernels.nn import ASPP

#: Rates of the pyramid for each output stride.
RATES = {8: (12, 24, 36), 16: (6, 12, 18), 32: (3, 6, 9)}


def check_style(style: str | None) -> None:
    if style not in (None, "torchvision", "smp"):
        raise ValueError(f"style: expected 'torchvision', 'smp' or None, got {style!r}")


class DeepLabHead(nn.Sequential):
    """Pyramid, 3x3 convolution, 1x1 convolution; torchvision's keys."""

    def __init__(self, in_channels: int, num_classes: int, atrous_rates: tuple[int, ...] = RATES[8]) -> None:
        super().__init__(
            ASPP(in_channels, atrous_rates),
            nn.Conv2d(256, 256, 3, padding=1, bias=False),
            nn.BatchNorm2d(256),
            nn.ReLU(),
            nn.Conv2d(256, num_classes, 1),
        )


def _deeplabv3_resnet(
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
) -> SemanticModel:
    check_style(style)
    state, has_aux = read_semantic(f"deeplabv3_{encoder}", weights, progress, num_classes, aux_loss)
    if state is not None and is_smp(state):
        state, style = from_smp(state), style or "smp"
    smp = style == "smp"
    backbone = ResNetEncoder(encoder, in_channels, output_stride, dilate_first=smp)
    aux = FCNHead(backbone.channels["layer3"], num_classes) if has_aux else None
    rates = atrous_rates or (RATES[8] if smp else RATES[output_stride])
    head = DeepLabHead(backbone.channels["layer4"], num_classes, rates)
    model = SemanticModel(backbone, head, aux, in_channels=in_channels, align_corners=smp)
    if state is not None:
        load_state(model, state, weights)
    else:
        load_backbone(backbone, weights_backbone, progress, name=encoder)
    return model


@register_model
def deeplabv3_resnet50(
    *,
    weights: Weights | None = None,
    progress: bool = True,
    num_classes: int = 21,
    aux_loss: bool | None = None,
    weights_backbone: Weights | None = None,
    in_channels: int = 3,
    output_stride: int = 8,
    atrous_rates: tuple[int, ...] | None = None,
    style: str | None = None,
) -> SemanticModel:
    """DeepLab v3 on a dilated ResNet-50, torchvision's ``deeplabv3_resnet50``.

    Args:
        weights: a member of :class:`DeepLabV3_ResNet50_Weights`, or the path of a state dict of this model, of
            torchvision's or of SMP's ``DeepLabV3("resnet50")``, whose keys are converted.
        progress: show a progress bar while weights are downloaded; a path downloads nothing.
        num_classes: channels of the logits.
        aux_loss: True adds a head on the third stage, whose logits are ``aux``. None (default): where the weights have one.
        weights_backbone: a member of :class:`ResNet50_Weights`, or the path of a state dict of torchvision's ``resnet50``;
            not read where ``weights`` is given.
        in_channels: channels of the input.
        output_stride: 8 (default), 16 or 32.
        atrous_rates: of the pyramid. None (default): 12, 24, 36 at output stride 8, 6, 12, 18 at 16, 3, 6, 9 at 32.
        style: None (default) is ``"smp"`` with weights of SMP, else ``"torchvision"``. The former has SMP's default rates (12,
            24, 36), dilates the first block of a dilated stage too, and upsamples with ``align_corners=True``.

    Returns:
        SemanticModel: ``[N, in_channels, H, W] -> OrderedDict(out=[N, num_classes, H, W])``, and ``aux`` likewise. In training
        the pooled branch normalises one value per channel and image, so a batch of one raises, as in torchvision.

    Raises:
        ValueError: for weights of another model or with other classes, truncated or changed files, and ``aux_loss=False``
            with weights that have an auxiliary head; from ``forward``, for another rank or number of channels.
    """
    return _deeplabv3_resnet(
        "resnet50", in_channels, num_classes, aux_loss, weights, progress, weights_backbone, output_stride, atrous_rates, style
    )


@register_model
def deeplabv3_resnet101(
    *,
    weights: Weights | None = None,
    progress: bool = True,
    num_classes: int = 21,
    aux_loss: bool | None = None,
    weights_backbone: Weights | None = None,
    in_channels: int = 3,
    output_stride: int = 8,
    atrous_rates: tuple[int, ...] | None = None,
    style: str | None = None,
) -> SemanticModel:
    """:func:`deeplabv3_resnet50` on ResNet-101, torchvision's ``deeplabv3_resnet101``."""
    return _deeplabv3_resnet(
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
def deeplabv3_mobilenet_v3_large(
    *,
    weights: Weights | None = None,
    progress: bool = True,
    num_classes: int = 21,
    aux_loss: bool | None = None,
    weights_backbone: Weights | None = None,
    in_channels: int = 3,
    output_stride: int = 16,
) -> SemanticModel:
    """DeepLab v3 on a dilated MobileNet v3 (large), torchvision's ``deeplabv3_mobilenet_v3_large``.

    Args:
        weights: a member of :class:`DeepLabV3_MobileNet_V3_Large_Weights`, or the path of a state dict of this model or of
            torchvision's.
        weights_backbone: a member of :class:`MobileNet_V3_Large_Weights`, or the path of a state dict of torchvision's
            ``mobilenet_v3_large``; not read where ``weights`` is given.
        aux_loss: True adds a head on the first map of an eighth of the size. None (default): where the weights have one.
        output_stride: 16 (default), 8 or 32; the rates are 12, 24, 36 at each, as in torchvision.
        progress, num_classes, in_channels: see :func:`deeplabv3_resnet50`, and there for what it returns and raises.
    """
    name = "mobilenet_v3_large"
    state, has_aux = read_semantic(f"deeplabv3_{name}", weights, progress, num_classes, aux_loss)
    # torchvision taps the block that takes the map to an eighth, not the last one of this size.
    backbone = MobileNetEncoder(name, in_channels, output_stride, extra={"aux": 4})
    aux = FCNHead(backbone.channels["aux"], num_classes) if has_aux else None
    head = DeepLabHead(backbone.channels["layer4"], num_classes)
    model = SemanticModel(backbone, head, aux, aux="aux", in_channels=in_channels)
    if state is not None:
        load_state(model, state, weights)
    else:
        load_backbone(backbone, weights_backbone, progress, ("classifier.",), "features.", name)
    return model
