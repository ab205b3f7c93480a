"""Encoders by name, for the models that take any."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import nn

from segkernels.models.mobilenet import MobileNetEncoder
from segkernels.models.resnet import RESNETS, ResNetEncoder
from segkernels.models.vgg import VGG16Encoder


class EncoderSpec(NamedTuple):
    """How to build an encoder, and what its maps are.

    Attributes:
        build: from ``in_channels`` to a module whose ``forward`` returns maps by name and whose ``channels`` has their
            channels under the same names.
        maps: names of the maps of strides 2, 4, 8, 16 and 32.
        head: what the keys begin with that a classifier's state dict has and the encoder's has not.
        center: two more convolutions on the last map, where that is a pooling's (SMP's rule for VGG).
        prefix: what the classifier's keys begin with and the encoder's do not.
    """

    build: Callable[[int], nn.Module]
    maps: tuple[str, str, str, str, str]
    head: tuple[str, ...]
    center: bool = False
    prefix: str = ""


_STAGES = ("stem", "layer1", "layer2", "layer3", "layer4")


def _resnet(name: str) -> EncoderSpec:
    return EncoderSpec(lambda in_channels: ResNetEncoder(name, in_channels), _STAGES, ("fc.",))


def _mobilenet(name: str) -> EncoderSpec:
    return EncoderSpec(lambda in_channels: MobileNetEncoder(name, in_channels), _STAGES, ("classifier.",), prefix="features.")


def _vgg16(batch_norm: bool) -> EncoderSpec:
    maps = ("conv2", "conv3", "conv4", "conv5", "pool5")
    return EncoderSpec(
        lambda in_channels: VGG16Encoder(in_channels, batch_norm, maps=maps), maps, ("classifier.",), center=True
    )


#: Encoders of :func:`~segkernels.models.encoder_unet`.
ENCODERS: dict[str, EncoderSpec] = {
    **{name: _resnet(name) for name in RESNETS},
    **{name: _mobilenet(name) for name in ("mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small")},
    "vgg16": _vgg16(batch_norm=False),
    "vgg16_bn": _vgg16(batch_norm=True),
}


def get_encoder(name: str) -> EncoderSpec:
    """The encoder of that name.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in ENCODERS:
        raise ValueError(f"encoder_name: expected one of {', '.join(sorted(ENCODERS))}, got {name!r}")
    return ENCODERS[name]
