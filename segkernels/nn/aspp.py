"""Atrous spatial pyramid pooling of DeepLab v2, v3 and v3+."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from segkernels.nn.separable import DepthwiseSeparableConv2d


class _Pooling(nn.Sequential):
    """Image-level features: global average, 1x1 convolution, and back to the size of the input."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        # The bilinear interpolation of one pixel is that pixel everywhere.
        return super().forward(input).expand(-1, -1, *input.shape[-2:])


class ASPP(nn.Module):
    """Parallel convolutions of several dilations over one map.

    ``variant="v3"`` (Chen et al. 2017): a 1x1 convolution, one 3x3 per rate and image pooling, each with BatchNorm and ReLU,
    concatenated and projected by a 1x1 convolution; parameters and ``state_dict`` keys are those of
    ``torchvision.models.segmentation.deeplabv3.ASPP``. ``variant="v2"`` (Chen et al. 2016): one 3x3 convolution with bias per
    rate, summed.

    Args:
        in_channels, out_channels: default of the latter: 256.
        atrous_rates: for example (6, 12, 18) at output stride 16, (12, 24, 36) at 8, (6, 12, 18, 24) for v2.
        variant: ``"v3"`` (default) or ``"v2"``.
        separable: depthwise-separable 3x3 convolutions (DeepLabv3+). Default: False.
        dropout: after the projection of v3. Default: 0.5.
    """

    def __init__(
        self,
        in_channels: int,
        atrous_rates: Sequence[int],
        out_channels: int = 256,
        *,
        variant: str = "v3",
        separable: bool = False,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if variant not in ("v2", "v3"):
            raise ValueError(f"variant: expected 'v2' or 'v3', got {variant!r}")
        self.variant = variant

        def atrous(rate: int, bias: bool) -> nn.Module:
            if separable:
                return DepthwiseSeparableConv2d(in_channels, out_channels, 3, 1, rate, rate, bias=bias)
            return nn.Conv2d(in_channels, out_channels, 3, padding=rate, dilation=rate, bias=bias)

        def pointwise(channels: int) -> list[nn.Module]:
            return [nn.Conv2d(channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels), nn.ReLU()]

        if variant == "v2":
            self.convs = nn.ModuleList(atrous(rate, True) for rate in atrous_rates)
            return
        branches = [nn.Sequential(atrous(rate, False), nn.BatchNorm2d(out_channels), nn.ReLU()) for rate in atrous_rates]
        pooling = _Pooling(nn.AdaptiveAvgPool2d(1), *pointwise(in_channels))
        self.convs = nn.ModuleList([nn.Sequential(*pointwise(in_channels)), *branches, pooling])
        self.project = nn.Sequential(*pointwise(len(self.convs) * out_channels), nn.Dropout(dropout))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        results = [conv(input) for conv in self.convs]
        if self.variant == "v2":
            return torch.stack(results).sum(0) if len(results) > 1 else results[0]
        return self.project(torch.cat(results, 1))
