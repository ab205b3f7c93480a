"""U-Net with batch normalisation and same-size convolutions (Ronneberger, Fischer, Brox 2015)."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import segkernels.nn
from segkernels.models._registry import check_input, register_model
from segkernels.models._semantic import FCNHead, add_aux, read_semantic
from segkernels.models._weights import Weights, load_state

# Four poolings halve the map four times.
_STRIDE = 16


class ConvBlock(nn.Module):
    """Twice: 3x3 convolution, batch normalisation, ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.bn1(self.conv1(input)))
        return self.relu(self.bn2(self.conv2(x)))


class EncoderBlock(nn.Module):
    """A block and its pooled result: half the size, twice the channels."""

    def __init__(self, in_channels: int, out_channels: int, layers: Any) -> None:
        super().__init__()
        self.conv = ConvBlock(in_channels, out_channels)
        self.pool = layers.MaxPool2d(2)

    def forward(self, input: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        skip = self.conv(input)
        return skip, self.pool(skip)


class DecoderBlock(nn.Module):
    """Transposed convolution to twice the size, the encoder's map beside it, a block."""

    def __init__(self, in_channels: int, out_channels: int, layers: Any) -> None:
        super().__init__()
        self.up = layers.ConvTranspose2d(in_channels, out_channels, kernel_size=2, stride=2)
        self.conv = ConvBlock(2 * out_channels, out_channels)

    def forward(self, input: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        x = self.up(input)
        # Pooling an odd size drops its last row or column: zeros stand for it here.
        bottom, right = skip.shape[2] - x.shape[2], skip.shape[3] - x.shape[3]
        if bottom or right:
            x = F.pad(x, (0, right, 0, bottom))
        return self.conv(torch.cat([x, skip], dim=1))


class UNet(nn.Module):
    """See :func:`unet`. ``layers`` is where ``MaxPool2d`` and ``ConvTranspose2d`` come from: ``segkernels.nn``, or
    ``torch.nn`` for the same network without these kernels, to compare with."""

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 1,
        width: int = 64,
        layers: Any = segkernels.nn,
        aux_loss: bool = False,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.e1 = EncoderBlock(in_channels, width, layers)
        self.e2 = EncoderBlock(width, 2 * width, layers)
        self.e3 = EncoderBlock(2 * width, 4 * width, layers)
        self.e4 = EncoderBlock(4 * width, 8 * width, layers)
        self.b = ConvBlock(8 * width, 16 * width)
        self.d1 = DecoderBlock(16 * width, 8 * width, layers)
        self.d2 = DecoderBlock(8 * width, 4 * width, layers)
        self.d3 = DecoderBlock(4 * width, 2 * width, layers)
        self.d4 = DecoderBlock(2 * width, width, layers)
        self.outputs = nn.Conv2d(width, num_classes, kernel_size=1)
        self.aux_classifier = FCNHead(16 * width, num_classes) if aux_loss else None

    def forward(self, input: torch.Tensor) -> OrderedDict[str, torch.Tensor]:
        check_input(input, self.in_channels, _STRIDE)
        s1, x = self.e1(input)
        s2, x = self.e2(x)
        s3, x = self.e3(x)
        s4, x = self.e4(x)
        bridge = self.b(x)
        x = self.d1(bridge, s4)
        x = self.d2(x, s3)
        x = self.d3(x, s2)
        x = self.d4(x, s1)
        return add_aux(OrderedDict(out=self.outputs(x)), self.aux_classifier, bridge, input.shape[2:])


@register_model
def unet(
    *,
    in_channels: int = 3,
    num_classes: int = 1,
    width: int = 64,
    aux_loss: bool | None = None,
    weights: Weights | None = None,
    weights_backbone: None = None,
    progress: bool = True,
) -> UNet:
    """U-Net: four encoder blocks, a bridge, four decoder blocks with the encoder's maps concatenated.

    31,043,521 parameters with the defaults. Modules are named ``e1..e4``, ``b``, ``d1..d4`` and ``outputs``; inside them
    ``conv1, bn1, conv2, bn2, relu``, ``conv, pool`` and ``up, conv``. Unlike the paper's, the convolutions pad, so that the
    logits have the input's size. Pooling and transposed convolutions are ``segkernels.nn``'s.

    Args:
        in_channels: channels of the input.
        num_classes: channels of the logits; 1 for foreground against the rest.
        width: channels of the first block; each of the next three and the bridge doubles them.
        aux_loss: True adds an FCN head on the bridge, whose logits are ``aux``. None (default): where the
            weights have one.
        weights: path of a state dict to load, strictly.
        weights_backbone: None, the only value: no classifier has this encoder. :func:`encoder_unet` takes pretrained ones.
        progress: show a progress bar while weights are downloaded; a path downloads nothing.

    Returns:
        UNet: ``[N, in_channels, H, W] -> OrderedDict(out=[N, num_classes, H, W])``. H and W are at least 16 and need not be
        multiples of it: where a pooling dropped a last row or column, the decoder pads its map with a zero one on the
        bottom or the right before the concatenation.

    Raises:
        ValueError: for ``weights_backbone``; from ``forward``, for another rank, number of channels, or a smaller input.
    """
    if weights_backbone is not None:
        raise ValueError(f"weights_backbone: expected None, since no classifier has this encoder, got {weights_backbone!r}")
    state, has_aux = read_semantic("unet", weights, progress, num_classes, aux_loss)
    model = UNet(in_channels, num_classes, width, aux_loss=has_aux)
    if state is not None:
        load_state(model, state, weights)
    return model
