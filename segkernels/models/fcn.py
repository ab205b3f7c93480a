"""Fully convolutional networks on dilated ResNets (Long et al. 2015, as torchvision builds them)."""

from __future__ import annotations

from segkernels.models._registry import register_model
from segkernels.models._semantic import FCNHead, SemanticModel, read_semantic
from segkernels.models._weights import Weights, load_backbone, load_state
from segkernels.models.resnet import ResNetEncoder


def _fcn_resnet(
    encoder: str,
    in_channels: int,
    num_classes: int,
    aux_loss: bool | None,
    weights: Weights | None,
    progress: bool,
    weights_backbone: Weights | None,
    output_stride: int,
) -> SemanticModel:
    state, has_aux = read_semantic(f"fcn_{encoder}", weights, progress, num_classes, aux_loss)
    backbone = ResNetEncoder(encoder, in_channels, output_stride)
    aux = FCNHead(backbone.channels["layer3"], num_classes) if has_aux else None
    model = SemanticModel(backbone, FCNHead(backbone.channels["layer4"], num_classes), aux, in_channels=in_channels)
    if state is not None:
        load_state(model, state, weights)
    else:
        load_backbone(backbone, weights_backbone, progress, name=encoder)
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
        weights: a member of :class:`FCN_ResNet50_Weights`, or the path of a state dict of this model or of torchvision's.
        progress: show a progress bar while weights are downloaded; a path downloads nothing.
        num_classes: channels of the logits.
        aux_loss: True adds a head on the third stage, whose logits are ``aux``. None (default): where the weights have one.
        weights_backbone: a member of :class:`ResNet50_Weights`, or the path of a state dict of torchvision's ``resnet50``;
            not read where ``weights`` is given.
        in_channels: channels of the input.
        output_stride: 8 (default), 16 or 32.

    Returns:
        SemanticModel: ``[N, in_channels, H, W] -> OrderedDict(out=[N, num_classes, H, W])``, and ``aux`` likewise.

    Raises:
        ValueError: for weights of another model or with other classes, truncated or changed files, and ``aux_loss=False``
            with weights that have an auxiliary head; from ``forward``, for another rank or number of channels.
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
