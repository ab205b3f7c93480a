"""SegNet (Badrinarayanan, Kendall, Cipolla 2015): VGG16 in the encoder, its mirror image in the decoder."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

from segkernels.models._registry import check_input, register_model
from segkernels.models._weights import Weights, load_weights, read_state_dict
from segkernels.nn import MaxPool2d, MaxUnpool2d

# VGG16: output channels of the 3x3 convolutions of its five stages, each closed by a pooling.
_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
_STRIDE = 2 ** len(_STAGES)


def _conv_bn_relu(in_channels: int, out_channels: int) -> list[nn.Module]:
    return [
        nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    ]


def _encoder(in_channels: int) -> nn.Sequential:
    """VGG16 with batch normalisation; its keys are those of ``features`` in torchvision's ``vgg16_bn``."""
    layers: list[nn.Module] = []
    channels = in_channels
    for stage in _STAGES:
        for out_channels in stage:
            layers += _conv_bn_relu(channels, out_channels)
            channels = out_channels
        # One byte of index per window, where the position in the plane takes eight.
        layers.append(MaxPool2d(2, return_indices=True, index_dtype=torch.uint8))
    return nn.Sequential(*layers)


def _decoder(num_classes: int) -> nn.ModuleList:
    """The encoder's stages backwards; the last convolution gives the logits."""
    inputs = (num_classes, *(stage[-1] for stage in _STAGES[:-1]))
    stages = []
    for stage, stage_input in zip(reversed(_STAGES), reversed(inputs)):
        widths = (*reversed(stage), stage_input)
        stages.append([layer for pair in zip(widths, widths[1:]) for layer in _conv_bn_relu(*pair)])
    del stages[-1][-2:]
    return nn.ModuleList(nn.Sequential(*layers) for layers in stages)


class SegNet(nn.Module):
    """See :func:`segnet`."""

    def __init__(self, in_channels: int = 3, num_classes: int = 21) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.encoder = _encoder(in_channels)
        self.unpool = MaxUnpool2d(2)
        self.decoder = _decoder(num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, input: torch.Tensor) -> OrderedDict[str, torch.Tensor]:
        check_input(input, self.in_channels, _STRIDE)
        x = input
        pooled = []
        for layer in self.encoder:
            if isinstance(layer, MaxPool2d):
                size = x.shape[2:]
                x, indices = layer(x)
                pooled.append((indices, size))
            else:
                x = layer(x)
        for stage in self.decoder:
            indices, size = pooled.pop()
            x = stage(self.unpool(x, indices, output_size=size))
        return OrderedDict(out=x)


@register_model
def segnet(
    *,
    in_channels: int = 3,
    num_classes: int = 21,
    weights: Weights | None = None,
    weights_backbone: Weights | None = None,
    progress: bool = True,
) -> SegNet:
    """SegNet: 13 convolutions of VGG16, 13 mirrored ones, and unpooling with the encoder's own indices between them.

    Every convolution but the last has batch normalisation and ReLU; weights start from He's initialisation, as in the
    paper. Between encoder and decoder travel uint8 window offsets, an eighth of the memory of int64 positions. 29,455,125
    parameters with the defaults.

    Args:
        in_channels: channels of the input.
        num_classes: channels of the logits.
        weights: path of a state dict of this model to load, strictly.
        weights_backbone: path of a state dict of torchvision's ``vgg16_bn`` (three input channels) for the encoder.
        progress: show a progress bar while weights are downloaded; a path downloads nothing.

    Returns:
        SegNet: ``[N, in_channels, H, W] -> OrderedDict(out=[N, num_classes, H, W])``. H and W are at least 32 and need not
        be multiples of it: each unpooling restores the size that its pooling had.

    Raises:
        ValueError: from ``forward``, for another rank, number of channels, or a smaller input.
    """
    model = SegNet(in_channels, num_classes)
    if weights_backbone is not None:
        prefix = "features."
        backbone = read_state_dict(weights_backbone)
        features = {key.removeprefix(prefix): value for key, value in backbone.items() if key.startswith(prefix)}
        model.encoder.load_state_dict(features)
    load_weights(model, weights, progress)
    return model
