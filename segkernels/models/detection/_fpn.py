"""Feature pyramid on a ResNet (Lin et al. 2017), with torchvision's keys."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from segkernels.models.resnet import ResNetEncoder
from segkernels.ops import upsample_nearest2d


class FrozenBatchNorm2d(nn.Module):
    """Batch normalisation by statistics and an affine map that are never trained; they are buffers.

    Args:
        num_features: channels.
        eps: added to the variance. Default: 1e-5.

    A state dict of :class:`torch.nn.BatchNorm2d` loads.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    running_mean: torch.Tensor
    running_var: torch.Tensor

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.register_load_state_dict_pre_hook(_forget_count)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, eps={self.eps}"


def _forget_count(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    state.pop(prefix + "num_batches_tracked", None)


def freeze_norms(module: nn.Module) -> None:
    """Replaces every BatchNorm2d below ``module`` by a frozen one of the same state, in place."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            frozen = FrozenBatchNorm2d(child.num_features, child.eps)
            frozen.load_state_dict(child.state_dict())
            setattr(module, name, frozen)
        else:
            freeze_norms(child)


def conv_block(in_channels: int, out_channels: int, kernel_size: int, norm: bool, relu: bool) -> nn.Sequential:
    """A convolution that keeps the size: without bias and with batch normalisation, or with bias and without it."""
    block: list[nn.Module] = [nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=not norm)]
    if norm:
        block.append(nn.BatchNorm2d(out_channels))
    if relu:
        block.append(nn.ReLU(inplace=True))
    return nn.Sequential(*block)


class FeaturePyramid(nn.Module):
    """Maps of one width from the maps of an encoder, each with the context of all coarser ones.

    Args:
        in_channels: of each map, from the finest to the coarsest.
        out_channels: of the pyramid.
        norm: batch normalisation after each convolution.

    ``forward`` takes and returns maps by name; the result has one more, ``pool``, the coarsest at half its size.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int = 256, norm: bool = False) -> None:
        super().__init__()
        self.inner_blocks = nn.ModuleList(conv_block(channels, out_channels, 1, norm, False) for channels in in_channels)
        self.layer_blocks = nn.ModuleList(conv_block(out_channels, out_channels, 3, norm, False) for _ in in_channels)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, maps: Mapping[str, torch.Tensor]) -> OrderedDict[str, torch.Tensor]:
        pyramid: list[torch.Tensor] = []
        coarser: torch.Tensor | None = None
        for map, inner, layer in reversed(list(zip(maps.values(), self.inner_blocks, self.layer_blocks))):
            lateral = inner(map)
            coarser = lateral if coarser is None else lateral + upsample_nearest2d(coarser, lateral.shape[2:])
            pyramid.insert(0, layer(coarser))
        result = OrderedDict(zip(maps, pyramid))
        result["pool"] = pyramid[-1][:, :, ::2, ::2]
        return result


class ResNetFPN(nn.Module):
    """ResNet and feature pyramid: ``body`` and ``fpn``, as torchvision names them.

    Args:
        name: as for :class:`segkernels.models.ResNetEncoder`.
        norm: batch normalisation in the pyramid.

    ``forward`` maps ``[N, 3, H, W]`` to an ``OrderedDict`` of 256 channels: ``"0"`` (stride 4) to ``"3"`` (32), and
    ``"pool"`` (64).
    """

    out_channels = 256

    def __init__(self, name: str = "resnet50", norm: bool = False) -> None:
        super().__init__()
        self.body = ResNetEncoder(name)
        channels = [self.body.channels[f"layer{i}"] for i in range(1, 5)]
        self.fpn = FeaturePyramid(channels, self.out_channels, norm)

    def train_layers(self, count: int) -> None:
        """Freezes the body's parameters but those of its last ``count`` of five parts: layer4 to layer1, and the stem."""
        if not 0 <= count <= 5:
            raise ValueError(f"trainable_backbone_layers: expected 0 to 5, got {count}")
        trained = ("layer4.", "layer3.", "layer2.", "layer1.", "conv1.")[:count] + (("bn1.",) if count == 5 else ())
        for name, parameter in self.body.named_parameters():
            if not name.startswith(trained):
                parameter.requires_grad_(False)

    def forward(self, input: torch.Tensor) -> OrderedDict[str, torch.Tensor]:
        maps = self.body(input)
        return self.fpn({str(i): maps[f"layer{i + 1}"] for i in range(4)})
