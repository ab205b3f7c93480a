"""Fully convolutional networks on dilated ResNets (Long et al. 2015, as torchvision builds them)."""

from __future__ import annotations

from segkernels.models._registry import register_model
from segkernels.models._semantic import FCNHead, SemanticModel
from segkernels.models._weights import Weights, load_backbone, load_weights
from segkernels.models.resnet import ResNetEncoder


def _fcn_resnet(
    name: str,
    in_channels: int,
    num_classes: int,
    aux_loss: bool | None,
    weights: Weights | None,
    progress: bool,
    weights_backbone: Weights | None,
    output_stride: int,
) -> SemanticModel:
    backbone = ResNetEncoder(name, in_channels, output_stride)
    load_backbone(backbone, weights_backbone, progress)
    aux = FCNHead(backbone.channels["layer3"], num_classes) if aux_loss else None
    head = FCNHead(backbone.channels["layer4"], num_classes)
    model = SemanticModel(backbone, head, aux, in_channels=in_channels)
    load_weights(model, weights, progress)
    return model


@register_model
def fcn_resnet50(
    *,
    weights: Weights | None = None,
    progress: bool = True,
    num_classes: int = 21,
    aux_loss: bool | None = None,
    weights_backbone: Weights | None = None,
    in_channels: int = 3,
    output_stride: int = 8,
) -> SemanticModel:
    """FCN head on a dilated ResNet-50, torchvision's ``fcn_resnet50``.

    Args:
        weights: path of a state dict of this model, or of torchvision's, to load strictly (with ``aux_loss=True`` where it
            has an auxiliary head).
        progress: show a progress bar while weights are downloaded; a path downloads nothing.
        num_classes: channels of the logits.
        aux_loss: True adds a head on the third stage, whose logits are ``aux``.
        weights_backbone: path of a state dict of torchvision's ``resnet50``.
        in_channels: channels of the input.
        output_stride: 8 (default), 16 or 32.

    Returns:
        SemanticModel: ``[N, in_channels, H, W] -> OrderedDict(out=[N, num_classes, H, W])``, and ``aux`` likewise.
    """
    return _fcn_resnet("resnet50", in_channels, num_classes, aux_loss, weights, progress, weights_backbone, output_stride)


@register_model
def fcn_resnet101(
    *,
    weights: Weights | None = None,
    progress: bool = True,
    num_classes: int = 21,
    aux_loss: bool | None = None,
    weights_backbone: Weights | None = None,
    in_channels: int = 3,
    output_stride: int = 8,
) -> SemanticModel:
    """:func:`fcn_resnet50` on ResNet-101, torchvision's ``fcn_resnet101``."""
    return _fcn_resnet("resnet101", in_channels, num_classes, aux_loss, weights, progress, weights_backbone, output_stride)
