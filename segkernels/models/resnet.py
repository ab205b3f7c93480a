"""ResNet encoders (He et al. 2016; strides in the 3x3 convolutions, as in torchvision), with torchvision's keys."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

import torch
from torch import nn

from segkernels.nn import Conv2d, MaxPool2d


def conv_bn(
    in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, dilation: int = 1
) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    """A convolution that keeps the size at stride 1, without bias, and its normalisation."""
    padding = dilation * (kernel_size // 2)
    cls = Conv2d if dilation > 1 else nn.Conv2d
    conv = cls(in_channels, out_channels, kernel_size, stride, padding, dilation, bias=False)
    return conv, nn.BatchNorm2d(out_channels)


class _Block(nn.Module):
    """What both kinds share: the way around, and the projection on it where the shape changes."""

    expansion: int
    relu: nn.ReLU
    downsample: nn.Sequential | None

    def residual(self, input: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        around = input if self.downsample is None else self.downsample(input)
        return self.relu(self.residual(input) + around)


class BasicBlock(_Block):
    """Two 3x3 convolutions (ResNet-18 and -34)."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int, dilation: int, downsample: nn.Sequential | None) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_bn(in_channels, width, 3, stride, dilation)
        self.relu = nn.ReLU(inplace=True)
        self.conv2, self.bn2 = conv_bn(width, width, 3, 1, dilation)
        self.downsample = downsample

    def residual(self, input: torch.Tensor) -> torch.Tensor:
        return self.bn2(self.conv2(self.relu(self.bn1(self.conv1(input)))))


class Bottleneck(_Block):
    """1x1 down, 3x3, 1x1 up to four times the width (ResNet-50 and deeper)."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, dilation: int, downsample: nn.Sequential | None) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_bn(in_channels, width, 1)
        self.conv2, self.bn2 = conv_bn(width, width, 3, stride, dilation)
        self.conv3, self.bn3 = conv_bn(width, width * self.expansion, 1)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def residual(self, input: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.bn1(self.conv1(input)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.bn3(self.conv3(x))


class _Layout(NamedTuple):
    block: type[BasicBlock] | type[Bottleneck]
    depths: tuple[int, int, int, int]


RESNETS = {
    "resnet18": _Layout(BasicBlock, (2, 2, 2, 2)),
    "resnet34": _Layout(BasicBlock, (3, 4, 6, 3)),
    "resnet50": _Layout(Bottleneck, (3, 4, 6, 3)),
    "resnet101": _Layout(Bottleneck, (3, 4, 23, 3)),
    "resnet152": _Layout(Bottleneck, (3, 8, 36, 3)),
}
_WIDTHS = (64, 128, 256, 512)


class ResNetEncoder(nn.Module):
    """ResNet without its classifier: one map for each stride.

    Args:
        name: ``"resnet18"``, ``"resnet34"``, ``"resnet50"``, ``"resnet101"`` or ``"resnet152"``.
        in_channels: channels of the input.
        output_stride: 32, or 16 or 8, where the last one or two stages keep their size and dilate instead (DeepLab).
        dilate_first: whether the first block of such a stage dilates as the others do (SMP), or as the stage before it
            (torchvision, default). The ``state_dict`` is the same.

    ``forward`` returns an ``OrderedDict`` with ``stem`` (half the input's size, before the pooling), ``layer1`` (a quarter) to
    ``layer4``; ``channels`` has their channels under the same names. The ``state_dict`` is that of torchvision's ResNet
    without ``fc``.
    """

    def __init__(
        self, name: str = "resnet50", in_channels: int = 3, output_stride: int = 32, dilate_first: bool = False
    ) -> None:
        super().__init__()
        if name not in RESNETS:
            raise ValueError(f"name: expected one of {', '.join(RESNETS)}, got {name!r}")
        if output_stride not in (8, 16, 32):
            raise ValueError(f"output_stride: expected 8, 16 or 32, got {output_stride}")
        block, depths = RESNETS[name]
        if block is BasicBlock and output_stride != 32:
            raise ValueError(f"output_stride: expected 32 for {name}, whose blocks do not dilate, got {output_stride}")
        self.conv1 = nn.Conv2d(in_channels, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = MaxPool2d(3, 2, 1)
        self.channels = {"stem": 64}
        channels, reached, dilation = 64, 4, 1
        for i, (width, depth) in enumerate(zip(_WIDTHS, depths)):
            stride = 1 if i == 0 else 2
            first_dilation = dilation
            if i > 0 and reached == output_stride:
                stride, dilation = 1, 2 * dilation
            reached *= stride
            layer = _stage(block, channels, width, depth, stride, dilation if dilate_first else first_dilation, dilation)
            channels = width * block.expansion
            self.add_module(f"layer{i + 1}", layer)
            self.channels[f"layer{i + 1}"] = channels
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, input: torch.Tensor) -> OrderedDict[str, torch.Tensor]:
        maps = OrderedDict(stem=self.relu(self.bn1(self.conv1(input))))
        x = self.maxpool(maps["stem"])
        for name in ("layer1", "layer2", "layer3", "layer4"):
            x = maps[name] = self.get_submodule(name)(x)
        return maps


def _stage(
    block: type[BasicBlock] | type[Bottleneck],
    in_channels: int,
    width: int,
    depth: int,
    stride: int,
    first_dilation: int,
    dilation: int,
) -> nn.Sequential:
    """The first block has the stage's stride, and a dilation of its own."""
    out_channels = width * block.expansion
    downsample = None
    if stride != 1 or in_channels != out_channels:
        downsample = nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))
    blocks = [block(in_channels, width, stride, first_dilation, downsample)]
    blocks += [block(out_channels, width, 1, dilation, None) for _ in range(depth - 1)]
    return nn.Sequential(*blocks)
