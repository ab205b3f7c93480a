"""What is computed for each region: box and mask heads and their predictors, with torchvision's keys."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from segkernels.models.detection._fpn import conv_block
from segkernels.nn import ConvTranspose2d


def _kaiming(module: nn.Module) -> None:
    for child in module.modules():
        if isinstance(child, nn.Conv2d):
            nn.init.kaiming_normal_(child.weight, mode="fan_out", nonlinearity="relu")
            if child.bias is not None:
                nn.init.zeros_(child.bias)


class TwoMLPHead(nn.Module):
    """Two fully connected layers: ``[K, C, h, w] -> [K, representation_size]``; ``in_channels`` is C * h * w."""

    def __init__(self, in_channels: int, representation_size: int) -> None:
        super().__init__()
        self.fc6 = nn.Linear(in_channels, representation_size)
        self.fc7 = nn.Linear(representation_size, representation_size)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return F.relu(self.fc7(F.relu(self.fc6(input.flatten(1)))))


class FastRCNNConvFCHead(nn.Sequential):
    """3x3 convolutions with batch normalisation, then fully connected layers.

    Args:
        input_size: channels, height and width of a region.
        conv_layers: channels of each convolution.
        fc_layers: width of each fully connected layer.
    """

    def __init__(self, input_size: tuple[int, int, int], conv_layers: Sequence[int], fc_layers: Sequence[int]) -> None:
        channels, height, width = input_size
        layers: list[nn.Module] = []
        for out_channels in conv_layers:
            layers.append(conv_block(channels, out_channels, 3, True, True))
            channels = out_channels
        layers.append(nn.Flatten())
        features = channels * height * width
        for out_features in fc_layers:
            layers += [nn.Linear(features, out_features), nn.ReLU(inplace=True)]
            features = out_features
        super().__init__(*layers)
        _kaiming(self)


class FastRCNNPredictor(nn.Module):
    """Class logits ``[K, num_classes]`` and box regression ``[K, 4 * num_classes]`` from ``[K, in_channels]``.

    Class 0 is the background. Replace a model's ``roi_heads.box_predictor`` by one of these to train it for other classes.
    """

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(in_channels, num_classes)
        self.bbox_pred = nn.Linear(in_channels, num_classes * 4)

    def forward(self, input: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        input = input.flatten(1)
        return self.cls_score(input), self.bbox_pred(input)


class MaskRCNNHeads(nn.Sequential):
    """3x3 convolutions, with bias or with batch normalisation: ``[K, in_channels, h, w] -> [K, layers[-1], h, w]``."""

    def __init__(self, in_channels: int, layers: Sequence[int], norm: bool = False) -> None:
        widths = [in_channels, *layers]
        super().__init__(*(conv_block(before, after, 3, norm, True) for before, after in zip(widths, layers)))
        _kaiming(self)


class MaskRCNNPredictor(nn.Sequential):
    """Mask logits of each class at twice the size: ``[K, in_channels, h, w] -> [K, num_classes, 2h, 2w]``.

    Replace a model's ``roi_heads.mask_predictor`` by one of these to train it for other classes.
    """

    def __init__(self, in_channels: int, dim_reduced: int, num_classes: int) -> None:
        super().__init__(
            OrderedDict(
                conv5_mask=ConvTranspose2d(in_channels, dim_reduced, 2, 2),
                relu=nn.ReLU(inplace=True),
                mask_fcn_logits=nn.Conv2d(dim_reduced, num_classes, 1),
            )
        )
        for name, parameter in self.named_parameters():
            if name.endswith("weight"):
                nn.init.kaiming_normal_(parameter, mode="fan_out", nonlinearity="relu")
