"""The Xception of DeepLab v3+: deeper, strided separable convolutions instead of pooling (Chollet 2017, Chen et al. 2018)."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from functools import partial

import torch
from torch import nn

from segkernels.nn import DepthwiseSeparableConv2d

_norm = partial(nn.BatchNorm2d, eps=0.001)
#: Blocks of the middle flow.
MIDDLE = 16


class _Block(nn.Module):
    """Three separable convolutions, the last with the stride, and a way around them.

    ReLU comes before each convolution, or, with ``inner_relu``, after both halves of each one; then there is no way around.
    """

    def __init__(
        self, in_channels: int, widths: tuple[int, int, int], stride: int, dilation: int = 1, inner_relu: bool = False
    ) -> None:
        super().__init__()
        self.inner_relu = inner_relu
        self.shortcut: nn.Module | None = None
        if not inner_relu and (stride > 1 or in_channels != widths[-1]):
            self.shortcut = nn.Sequential(nn.Conv2d(in_channels, widths[-1], 1, stride, bias=False), _norm(widths[-1]))
        activation = "relu" if inner_relu else None
        self.convs = nn.ModuleList(
            DepthwiseSeparableConv2d(
                before, after, 3, stride if i == 2 else 1, dilation, dilation, bias=False, norm=_norm, activation=activation
            )
            for i, (before, after) in enumerate(zip((in_channels, *widths), widths))
        )

    def forward(self, input: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The result, and what the last convolution sees: the last map before the stride."""
        before = x = input
        for conv in self.convs:
            before = x if self.inner_relu else x.relu()
            x = conv(before)
        if not self.inner_relu:
            x = x + (input if self.shortcut is None else self.shortcut(input))
        return x, before


class XceptionEncoder(nn.Module):
    """Modified aligned Xception-65: an entry flow, sixteen times the same block, an exit flow.

    Args:
        in_channels: channels of the input.
        output_stride: 32, or 16 or 8, where the last one or two strides become dilations.

    ``forward`` returns an ``OrderedDict`` with ``stem`` (half the input's size, 128 channels), ``layer1`` (a quarter, 256) to
    ``layer4`` (2048); ``channels`` has their channels. All but the last are what the strided convolution of the next size
    sees. :func:`from_timm` gives timm's ``xception65`` these keys.
    """

    def __init__(self, in_channels: int = 3, output_stride: int = 32) -> None:
        super().__init__()
        if output_stride not in (8, 16, 32):
            raise ValueError(f"output_stride: expected 8, 16 or 32, got {output_stride}")
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, 32, 3, 2, 1, bias=False), _norm(32), nn.ReLU(inplace=True),
            nn.Conv2d(32, 64, 3, 1, 1, bias=False), _norm(64), nn.ReLU(inplace=True),
        )  # fmt: skip
        # The strides of the last entry block and of the first exit block are what dilation may replace.
        last_stride, last_dilation = (1, 2) if output_stride == 8 else (2, 1)
        exit_stride, exit_dilation = (2, 1) if output_stride == 32 else (1, 2 * last_dilation)
        self.entry = nn.ModuleList(
            [
                _Block(64, (128, 128, 128), 2),
                _Block(128, (256, 256, 256), 2),
                _Block(256, (728, 728, 728), last_stride),
            ]
        )
        self.middle = nn.ModuleList(_Block(728, (728, 728, 728), 1, last_dilation) for _ in range(MIDDLE))
        self.exit = nn.ModuleList(
            [
                _Block(728, (728, 1024, 1024), exit_stride, last_dilation),
                _Block(1024, (1536, 1536, 2048), 1, exit_dilation, inner_relu=True),
            ]
        )
        self.channels = {"stem": 128, "layer1": 256, "layer2": 728, "layer3": 1024, "layer4": 2048}
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, input: torch.Tensor) -> OrderedDict[str, torch.Tensor]:
        maps: OrderedDict[str, torch.Tensor] = OrderedDict()
        x = self.stem(input)
        for name, block in zip(("stem", "layer1", "layer2"), self.entry):
            x, maps[name] = block(x)
        for block in self.middle:
            x, _ = block(x)
        x, maps["layer3"] = self.exit[0](x)
        maps["layer4"], _ = self.exit[1](x)
        return maps


_HALVES = {"dw": "depthwise", "pw": "pointwise"}
_TIMM = (
    (r"^stem\.([01])\.(conv|bn)\.", lambda m: f"stem.{3 * int(m[1]) + (m[2] == 'bn')}."),
    (r"^blocks\.(\d+)\.", lambda m: _flow(int(m[1]))),
    (r"\.shortcut\.(conv|bn)\.", lambda m: f".shortcut.{int(m[1] == 'bn')}."),
    (r"\.stack\.conv([123])\.", lambda m: f".convs.{int(m[1]) - 1}."),
    (r"\.(conv|bn)_(dw|pw)\.", lambda m: f".{_HALVES[m[2]]}.{'norm.' if m[1] == 'bn' else ''}"),
)


def _flow(block: int) -> str:
    if block < 3:
        return f"entry.{block}."
    return f"middle.{block - 3}." if block < 3 + MIDDLE else f"exit.{block - 3 - MIDDLE}."


def from_timm(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """State dict of timm's ``xception65`` with our keys, without its classifier; one that has our keys stays as it is."""
    result = {}
    for key, value in state.items():
        for pattern, replacement in _TIMM:
            key = re.sub(pattern, replacement, key)
        result[key] = value
    return {key: value for key, value in result.items() if not key.startswith("head.")}
