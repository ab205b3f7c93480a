"""VGG16 encoders (Simonyan & Zisserman 2014), with torchvision's keys."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import nn

from segkernels.models._weights import Weights, load_backbone
from segkernels.nn import MaxPool2d

# Channels of the 3x3 convolutions of the five stages, each closed by a pooling, in units of the first one's.
_STAGES = ((1, 1), (2, 2), (4, 4, 4), (8, 8, 8), (8, 8, 8))
_MAPS = tuple(f"{kind}{stage}" for stage in range(1, 6) for kind in ("conv", "pool"))


def pool_by_2(stage: int) -> nn.Module:
    return MaxPool2d(2)


def pool_with_switches(stage: int) -> nn.Module:
    """One byte of index per window, where the position in the plane takes eight."""
    return MaxPool2d(2, return_indices=True, index_dtype=torch.uint8)


def vgg16_features(
    in_channels: int = 3,
    width: int = 64,
    batch_norm: bool = False,
    pool: Callable[[int], nn.Module] = pool_by_2,
    dilations: Sequence[int] = (1, 1, 1, 1, 1),
    padding: int = 1,
) -> nn.Sequential:
    """``features`` of torchvision's ``vgg16``, or ``vgg16_bn``: the same numbering, so the same keys.

    Args:
        in_channels: channels of the input.
        width: channels of the first stage.
        batch_norm: a BatchNorm after every convolution.
        pool: gives the pooling that closes stage 1 to 5.
        dilations: of each stage's convolutions.
        padding: of the first convolution; all others keep the size.
    """
    layers: list[nn.Module] = []
    channels = in_channels
    for i, (stage, dilation) in enumerate(zip(_STAGES, dilations)):
        for multiple in stage:
            out_channels = width * multiple
            layers.append(nn.Conv2d(channels, out_channels, 3, 1, dilation if layers else padding, dilation))
            if batch_norm:
                layers.append(nn.BatchNorm2d(out_channels))
            layers.append(nn.ReLU(inplace=True))
            channels = out_channels
        layers.append(pool(i + 1))
    return nn.Sequential(*layers)


def mirrored_stages(width: int, out_channels: int) -> list[list[tuple[int, int]]]:
    """``(in, out)`` channels of VGG16's convolutions backwards, the last one to ``out_channels`` (SegNet, DeconvNet)."""
    channels = [width * multiple for stage in _STAGES for multiple in stage][::-1] + [out_channels]
    pairs = iter(zip(channels, channels[1:]))
    return [[next(pairs) for _ in stage] for stage in reversed(_STAGES)]


Switches = list[tuple[torch.Tensor, torch.Size]]


def pooled_with_switches(features: nn.Sequential, input: torch.Tensor) -> tuple[torch.Tensor, Switches]:
    """The last pooling's result, and of every pooling its indices and the size it had."""
    x = input
    switches = []
    for layer in features:
        if isinstance(layer, MaxPool2d):
            size = x.shape[2:]
            x, indices = layer(x)
            switches.append((indices, size))
        else:
            x = layer(x)
    return x, switches


def initialize(module: nn.Module) -> None:
    """He's initialisation, fan out, of all convolutions, as torchvision's VGG has it; biases of zero."""
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class VGG16Encoder(nn.Module):
    """VGG16 without its classifier: the chosen maps by name.

    Args:
        in_channels: channels of the input.
        batch_norm: torchvision's ``vgg16_bn`` instead of ``vgg16``. Default: False.
        width: channels of the first stage. Default: 64, the paper's.
        maps: which to return, of ``conv1`` (the input's size) and ``pool1`` (half of it) to ``conv5`` and ``pool5``. Default:
            ``conv1`` to ``conv5``, the ends of the stages before their poolings, and ``pool5``.
        pool, dilations, padding: see :func:`vgg16_features`.

    ``forward`` returns an ``OrderedDict`` of them, shallow to deep; ``channels`` has their channels under the same names. The
    ``state_dict`` is that of torchvision's VGG16 without ``classifier``.

    Raises:
        ValueError: for a name that is no map's.
    """

    def __init__(
        self,
        in_channels: int = 3,
        batch_norm: bool = False,
        width: int = 64,
        maps: Collection[str] = ("conv1", "conv2", "conv3", "conv4", "conv5", "pool5"),
        pool: Callable[[int], nn.Module] = pool_by_2,
        dilations: Sequence[int] = (1, 1, 1, 1, 1),
        padding: int = 1,
    ) -> None:
        super().__init__()
        if not set(maps) <= set(_MAPS):
            raise ValueError(f"maps: expected names out of {', '.join(_MAPS)}, got {', '.join(maps)}")
        self.features = vgg16_features(in_channels, width, batch_norm, pool, dilations, padding)
        initialize(self)
        widths = {f"{kind}{i}": width * stage[-1] for i, stage in enumerate(_STAGES, 1) for kind in ("conv", "pool")}
        self.channels = {name: widths[name] for name in _MAPS if name in maps}
        # Where each map comes out: a stage's last ReLU, and the pooling after it.
        layers = 3 if batch_norm else 2
        self._ends: dict[int, str] = {}
        pooling = -1
        for i, stage in enumerate(_STAGES, 1):
            pooling += layers * len(stage) + 1
            self._ends |= {pooling - 1: f"conv{i}", pooling: f"pool{i}"}

    def forward(self, input: torch.Tensor) -> OrderedDict[str, torch.Tensor]:
        maps: OrderedDict[str, torch.Tensor] = OrderedDict()
        x = input
        for i, layer in enumerate(self.features):
            x = layer(x)
            if self._ends.get(i) in self.channels:
                maps[self._ends[i]] = x
        return maps


def vgg16_name(batch_norm: bool) -> str:
    return "vgg16_bn" if batch_norm else "vgg16"


def load_features(features: nn.Module, weights: Weights | None, progress: bool = True, batch_norm: bool = False) -> None:
    """Loads ``features`` of torchvision's ``vgg16`` or ``vgg16_bn``; None loads nothing."""
    load_backbone(features, weights, progress, ("classifier.",), "features.", vgg16_name(batch_norm))


def convolutionalize(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict of torchvision's ``vgg16`` or ``vgg16_bn`` with the linear layers as convolutions (Long et al. 2015).

    A linear layer on a 7x7 map is a 7x7 convolution that fits once, and one on a vector is a 1x1 convolution:

    ==================  ========================  ============================================
    torchvision         shape                     :func:`~segkernels.models.fcn32s_vgg16`'s
    ==================  ========================  ============================================
    ``features.N.*``                              ``backbone.features.N.*``
    ``classifier.0.*``  ``[4096, 512 * 7 * 7]``   ``fc6.*``, ``[4096, 512, 7, 7]``
    ``classifier.3.*``  ``[4096, 4096]``          ``fc7.*``, ``[4096, 4096, 1, 1]``
    ``classifier.6.*``  ``[1000, 4096]``          ``score.pool5.*``, ``[1000, 4096, 1, 1]``
    ==================  ========================  ============================================
    """
    names = {"features": "backbone.features", "classifier.0": "fc6", "classifier.3": "fc7", "classifier.6": "score.pool5"}
    result = {}
    for key, value in state.items():
        for name, ours in names.items():
            if key.startswith(f"{name}."):
                if value.dim() == 2:
                    value = value.unflatten(1, (-1, 7, 7) if name == "classifier.0" else (-1, 1, 1))
                key = ours + key.removeprefix(name)
                break
        result[key] = value
    return result
