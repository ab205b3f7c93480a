"""Atrous spatial pyramid pooling of DeepLab v2, v3 and v3+."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from segkernels import ops
from segkernels.nn.conv import Conv2d
from segkernels.nn.separable import DepthwiseSeparableConv2d


class _Pooling(nn.Sequential):
    """Image-level features: global average, 1x1 convolution, and back to the size of the input."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        # The bilinear interpolation of one pixel is that pixel everywhere.
        return super().forward(input).expand(-1, -1, *input.shape[-2:])


class ASPP(nn.Module):
    """Parallel convolutions of several dilations over one map, in one op (:func:`segkernels.ops.multi_dilation_conv2d`).

    ``variant="v3"`` (Chen et al. 2017): a 1x1 convolution, one 3x3 per rate and image pooling, each with BatchNorm and ReLU,
    concatenated and projected by a 1x1 convolution; parameters and ``state_dict`` keys are those of
    ``torchvision.models.segmentation.deeplabv3.ASPP``. ``variant="v2"`` (Chen et al. 2016): one 3x3 convolution with bias per
    rate, summed. ``shared=True`` (Huang et al. 2019, KSAC): one 3x3 weight for all rates, under each rate's key; every rate
    keeps its own BatchNorm or bias. Of the branches' parameters at three rates, 62% are saved.

    Args:
        in_channels, out_channels: default of the latter: 256.
        atrous_rates: for example (6, 12, 18) at output stride 16, (12, 24, 36) at 8, (6, 12, 18, 24) for v2.
        variant: ``"v3"`` (default) or ``"v2"``.
        separable: depthwise-separable 3x3 convolutions (DeepLabv3+). Default: False.
        shared: one weight for all rates. Default: False.
        dropout: after the projection of v3. Default: 0.5.

    Raises:
        ValueError: for another variant, no rate, or ``separable`` and ``shared`` together.
    """

    def __init__(
        self,
        in_channels: int,
        atrous_rates: Sequence[int],
        out_channels: int = 256,
        *,
        variant: str = "v3",
        separable: bool = False,
        shared: bool = False,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if variant not in ("v2", "v3"):
            raise ValueError(f"variant: expected 'v2' or 'v3', got {variant!r}")
        if not atrous_rates:
            raise ValueError("atrous_rates: expected at least one")
        if separable and shared:
            raise ValueError("shared: expected False with separable=True, whose rates differ in their depthwise weights")
        self.variant = variant

        def atrous(rate: int, bias: bool) -> nn.Module:
            if separable:
                return DepthwiseSeparableConv2d(in_channels, out_channels, 3, 1, rate, rate, bias=bias)
            return nn.Conv2d(in_channels, out_channels, 3, padding=rate, dilation=rate, bias=bias)

        def pointwise(channels: int) -> list[nn.Module]:
            return [nn.Conv2d(channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels), nn.ReLU()]

        rates = [atrous(rate, variant == "v2") for rate in atrous_rates]
        if shared:
            for conv in rates[1:]:
                conv.weight = rates[0].weight
        if variant == "v2":
            self.convs = nn.ModuleList(rates)
            return
        branches = [nn.Sequential(rate, nn.BatchNorm2d(out_channels), nn.ReLU()) for rate in rates]
        pooling = _Pooling(nn.AdaptiveAvgPool2d(1), *pointwise(in_channels))
        self.convs = nn.ModuleList([nn.Sequential(*pointwise(in_channels)), *branches, pooling])
        self.project = nn.Sequential(*pointwise(len(self.convs) * out_channels), nn.Dropout(dropout))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self.variant == "v2":
            maps = _side_by_side(list(self.convs), input)
            if maps is None:
                return torch.stack([conv(input) for conv in self.convs]).sum(0)
            return maps.unflatten(1, (len(self.convs), -1)).sum(1)
        first, *branches, pooling = self.convs
        return self.project(torch.cat([first(input), *_branches(branches, input), pooling(input)], 1))


def _side_by_side(convs: list[Any], input: torch.Tensor) -> torch.Tensor | None:
    """The convolutions' results in one op, or None where one was replaced or is watched by a hook."""
    for conv in convs:
        plain = type(conv) in (nn.Conv2d, Conv2d) and not conv._forward_hooks and not conv._forward_pre_hooks
        if not plain or conv.kernel_size != (3, 3) or conv.padding != conv.dilation:
            return None
    weights = [conv.weight for conv in convs]
    shared = all(weight is weights[0] for weight in weights)
    maps = ops.multi_dilation_conv2d(input, weights[0] if shared else weights, [conv.dilation[0] for conv in convs])
    if convs[0].bias is not None:
        maps = maps + torch.cat([conv.bias for conv in convs]).to(maps.dtype)[:, None, None]
    return maps


def _branches(branches: list[Any], input: torch.Tensor) -> list[torch.Tensor]:
    """Convolution, norm and activation of each rate; what comes back is to be concatenated."""
    plain = all(type(branch) is nn.Sequential and not branch._forward_hooks for branch in branches)
    maps = _side_by_side([branch[0] for branch in branches], input) if plain else None
    if maps is None:
        return [branch(input) for branch in branches]
    if all(_is_affine(norm) and type(activation) is nn.ReLU for _, norm, activation in branches):
        norms = [branch[1] for branch in branches]
        names = ("running_mean", "running_var", "weight", "bias")
        mean, variance, scale, shift = (torch.cat([getattr(norm, name) for norm in norms]) for name in names)
        return [F.batch_norm(maps, mean, variance, scale, shift, eps=norms[0].eps).relu_()]
    return [branch[1:](part) for branch, part in zip(branches, maps.chunk(len(branches), 1))]


def _is_affine(norm: nn.Module) -> bool:
    """A BatchNorm in eval, which nothing watches."""
    if type(norm) is not nn.BatchNorm2d or norm.training or norm._forward_hooks:
        return False
    return norm.affine and norm.running_mean is not None
