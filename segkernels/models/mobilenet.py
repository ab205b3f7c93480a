"""MobileNet v2 and v3 encoders (Sandler et al. 2018, Howard et al. 2019), with the keys of torchvision's ``features``."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import nn

from segkernels.nn import Conv2d

Layer = Callable[[], nn.Module]
Norm = Callable[[int], nn.Module]
_relu = partial(nn.ReLU, inplace=True)
_relu6 = partial(nn.ReLU6, inplace=True)
_hardswish = partial(nn.Hardswish, inplace=True)
_norm_v3 = partial(nn.BatchNorm2d, eps=0.001, momentum=0.01)

#: Names of the maps by their stride where nothing is dilated, as in ResNetEncoder.
STAGES = {2: "stem", 4: "layer1", 8: "layer2", 16: "layer3", 32: "layer4"}


class _Row(NamedTuple):
    """One block: kernel size, inner and outer channels, squeeze and excitation, activation, stride."""

    kernel_size: int
    expanded: int
    out_channels: int
    squeeze: bool
    activation: Layer
    stride: int


# Tables 1 and 2 of the paper.
_V3_LARGE = (
    _Row(3, 16, 16, False, _relu, 1),
    _Row(3, 64, 24, False, _relu, 2),
    _Row(3, 72, 24, False, _relu, 1),
    _Row(5, 72, 40, True, _relu, 2),
    _Row(5, 120, 40, True, _relu, 1),
    _Row(5, 120, 40, True, _relu, 1),
    _Row(3, 240, 80, False, _hardswish, 2),
    _Row(3, 200, 80, False, _hardswish, 1),
    _Row(3, 184, 80, False, _hardswish, 1),
    _Row(3, 184, 80, False, _hardswish, 1),
    _Row(3, 480, 112, True, _hardswish, 1),
    _Row(3, 672, 112, True, _hardswish, 1),
    _Row(5, 672, 160, True, _hardswish, 2),
    _Row(5, 960, 160, True, _hardswish, 1),
    _Row(5, 960, 160, True, _hardswish, 1),
)
_V3_SMALL = (
    _Row(3, 16, 16, True, _relu, 2),
    _Row(3, 72, 24, False, _relu, 2),
    _Row(3, 88, 24, False, _relu, 1),
    _Row(5, 96, 40, True, _hardswish, 2),
    _Row(5, 240, 40, True, _hardswish, 1),
    _Row(5, 240, 40, True, _hardswish, 1),
    _Row(5, 120, 48, True, _hardswish, 1),
    _Row(5, 144, 48, True, _hardswish, 1),
    _Row(5, 288, 96, True, _hardswish, 2),
    _Row(5, 576, 96, True, _hardswish, 1),
    _Row(5, 576, 96, True, _hardswish, 1),
)
# Expansion, channels, repetitions, stride of the first.
_V2 = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def _v2_rows() -> Iterator[_Row]:
    in_channels = 32
    for expansion, out_channels, repetitions, stride in _V2:
        for i in range(repetitions):
            yield _Row(3, expansion * in_channels, out_channels, False, _relu6, stride if i == 0 else 1)
            in_channels = out_channels


class _ConvNormAct(nn.Sequential):
    """Convolution that keeps the size at stride 1, norm, activation; depthwise ones are ours."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        norm: Norm,
        activation: Layer | None,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
    ) -> None:
        padding = (kernel_size - 1) // 2 * dilation
        cls = Conv2d if groups > 1 else nn.Conv2d
        conv = cls(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias=False)
        layers = [conv, norm(out_channels)]
        super().__init__(*layers, *([activation()] if activation is not None else []))


class _SqueezeExcitation(nn.Module):
    """Scales each channel by what a small network makes of the channels' means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        # A quarter, rounded to a multiple of 8, but by no more than a tenth downwards.
        quarter = channels // 4
        width = max(8, (quarter + 4) // 8 * 8)
        width += 8 if width < 0.9 * quarter else 0
        self.fc1 = nn.Conv2d(channels, width, 1)
        self.fc2 = nn.Conv2d(width, channels, 1)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        x = self.fc1(input.mean((2, 3), keepdim=True)).relu()
        return input * nn.functional.hardsigmoid(self.fc2(x))


class _InvertedResidual(nn.Module):
    """1x1 up, depthwise, perhaps squeeze and excitation, 1x1 down, and the input where it has the result's shape.

    ``key`` names the sequence: ``"conv"`` in torchvision's v2, where the last two layers are not nested, ``"block"`` in v3.
    """

    def __init__(self, in_channels: int, row: _Row, stride: int, dilation: int, norm: Norm, key: str) -> None:
        super().__init__()
        self.key = key
        self.around = row.stride == 1 and in_channels == row.out_channels
        layers: list[nn.Module] = []
        if row.expanded != in_channels:
            layers.append(_ConvNormAct(in_channels, row.expanded, 1, norm, row.activation))
        layers.append(
            _ConvNormAct(
                row.expanded, row.expanded, row.kernel_size, norm, row.activation, stride, dilation, groups=row.expanded
            )
        )
        if row.squeeze:
            layers.append(_SqueezeExcitation(row.expanded))
        last = _ConvNormAct(row.expanded, row.out_channels, 1, norm, None)
        self.add_module(key, nn.Sequential(*layers, *(last if key == "conv" else [last])))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        x = self.get_submodule(self.key)(input)
        return x + input if self.around else x


class MobileNetEncoder(nn.Sequential):
    """MobileNet without its classifier: one map for each stride.

    Args:
        name: ``"mobilenet_v2"``, ``"mobilenet_v3_large"`` or ``"mobilenet_v3_small"``.
        in_channels: channels of the input.
        output_stride: 32, or 16 or 8, where the last one or two stages keep their size and dilate instead.
        extra: further maps, by name: the index of the block that gives it.

    ``forward`` returns an ``OrderedDict`` with ``stem`` (half the input's size), ``layer1`` (a quarter) to ``layer4``, the
    last map of each size, and the extra ones; ``channels`` has their channels. The ``state_dict`` is that of ``features`` of
    torchvision's model, without this prefix.
    """

    def __init__(
        self,
        name: str = "mobilenet_v3_large",
        in_channels: int = 3,
        output_stride: int = 32,
        extra: dict[str, int] | None = None,
    ) -> None:
        tables = {"mobilenet_v2": tuple(_v2_rows()), "mobilenet_v3_large": _V3_LARGE, "mobilenet_v3_small": _V3_SMALL}
        if name not in tables:
            raise ValueError(f"name: expected one of {', '.join(tables)}, got {name!r}")
        if output_stride not in (8, 16, 32):
            raise ValueError(f"output_stride: expected 8, 16 or 32, got {output_stride}")
        v2 = name == "mobilenet_v2"
        norm, activation = (nn.BatchNorm2d, _relu6) if v2 else (_norm_v3, _hardswish)
        channels = [32 if v2 else 16]
        blocks: list[nn.Module] = [_ConvNormAct(in_channels, channels[0], 3, norm, activation, 2)]
        strides = [2]
        for row in tables[name]:
            full = strides[-1] * row.stride
            stride = row.stride if full <= output_stride else 1
            dilation = max(full // output_stride, 1)
            blocks.append(_InvertedResidual(channels[-1], row, stride, dilation, norm, "conv" if v2 else "block"))
            channels.append(row.out_channels)
            strides.append(full)
        channels.append(1280 if v2 else 6 * channels[-1])
        blocks.append(_ConvNormAct(channels[-2], channels[-1], 1, norm, activation))
        strides.append(strides[-1])
        super().__init__(*blocks)
        # The last block of each stride.
        indices = {STAGES[stride]: i for i, stride in enumerate(strides)} | (extra or {})
        self.names: dict[int, list[str]] = {}
        for key, i in indices.items():
            self.names.setdefault(i, []).append(key)
        self.channels = {key: channels[i] for key, i in indices.items()}
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, input: torch.Tensor) -> OrderedDict[str, torch.Tensor]:
        maps: OrderedDict[str, torch.Tensor] = OrderedDict()
        x = input
        for i, block in enumerate(self):
            x = block(x)
            for name in self.names.get(i, ()):
                maps[name] = x
        return maps
