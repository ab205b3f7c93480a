"""DeepLab v1 with a large field of view (Chen et al. 2015): VGG16 with holes instead of its last two strides."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from segkernels.models._registry import register_model
from segkernels.models._semantic import FCNHead, SemanticModel, read_semantic
from segkernels.models._weights import Weights, load_state
from segkernels.models.vgg import VGG16Encoder, initialize, load_features
from segkernels.nn import MaxPool2d


class LargeFOV(nn.Sequential):
    """VGG16's classifier as convolutions: its 7x7 window as 3x3 pixels 12 apart, with a quarter of the channels."""

    def __init__(self, in_channels: int, num_classes: int, rate: int = 12) -> None:
        hidden = 2 * in_channels
        score = nn.Conv2d(hidden, num_classes, 1)
        super().__init__(
            OrderedDict(
                pool5a=nn.AvgPool2d(3, 1, 1),
                fc6=nn.Conv2d(in_channels, hidden, 3, padding=rate, dilation=rate),
                relu6=nn.ReLU(inplace=True),
                drop6=nn.Dropout(0.5),
                fc7=nn.Conv2d(hidden, hidden, 1),
                relu7=nn.ReLU(inplace=True),
                drop7=nn.Dropout(0.5),
                fc8=score,
            )
        )
        initialize(self)
        nn.init.normal_(score.weight, std=0.01)


@register_model
def deeplabv1_vgg16(
    *,
    weights: Weights | None = None,
    progress: bool = True,
    num_classes: int = 21,
    aux_loss: bool | None = None,
    weights_backbone: Weights | None = None,
    in_channels: int = 3,
    width: int = 64,
    batch_norm: bool = False,
) -> SemanticModel:
    """DeepLab v1 (LargeFOV) on VGG16: output stride 8, where VGG16's is 32.

    The last two poolings have stride 1, and the convolutions between and after them dilate instead: rate 2 in the fifth stage,
    12 in ``fc6``. So a 224x224 image has a 28x28 map, where VGG16's is 7x7. Poolings are 3x3, ``fc6`` and ``fc7`` have 1024
    channels, and a 3x3 average stands before them, as in the authors' network. The conditional random field that the paper
    puts behind the network is not part of it. 20,505,429 parameters with the defaults.

    Args:
        weights: path of a state dict of this model to load, strictly.
        progress: show a progress bar while weights are downloaded; a path downloads nothing.
        num_classes: channels of the logits.
        aux_loss: True adds a head on the fourth stage, whose logits are ``aux``. None (default): where the weights have one.
        weights_backbone: a member of :class:`VGG16_Weights`, or the path of a state dict of torchvision's ``vgg16``
            (``vgg16_bn`` with ``batch_norm``); not read where ``weights`` is given.
        in_channels: channels of the input.
        width: channels of the first stage; ``fc6`` and ``fc7`` have 16 times as many.
        batch_norm: BatchNorm after each of the encoder's convolutions.

    Returns:
        SemanticModel: ``[N, in_channels, H, W] -> OrderedDict(out=[N, num_classes, H, W])``, and ``aux`` likewise: logits of
        stride 8, interpolated bilinearly.

    Raises:
        ValueError: for weights of another model; from ``forward``, for another rank or number of channels.
    """
    state, has_aux = read_semantic("deeplabv1_vgg16", weights, progress, num_classes, aux_loss)
    backbone = VGG16Encoder(
        in_channels,
        batch_norm,
        width,
        maps=("pool4", "pool5"),
        pool=lambda stage: MaxPool2d(3, 2 if stage < 4 else 1, 1),
        dilations=(1, 1, 1, 1, 2),
    )
    aux = FCNHead(backbone.channels["pool4"], num_classes) if has_aux else None
    head = LargeFOV(backbone.channels["pool5"], num_classes)
    model = SemanticModel(backbone, head, aux, out="pool5", aux="pool4", in_channels=in_channels)
    if state is not None:
        load_state(model, state, weights)
    else:
        load_features(backbone.features, weights_backbone, progress, batch_norm)
    return model
