"""What the semantic models share: a backbone, a classifier on its last map, and logits at the input's size."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import nn

from segkernels.models._registry import check_input
from segkernels.models._weights import StateDict, Weights, check_member, read_state_dict
from segkernels.ops import upsample_bilinear2d


class FCNHead(nn.Sequential):
    """3x3 convolution to a quarter of the channels, dropout, 1x1 convolution; torchvision's keys."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        width = in_channels // 4
        super().__init__(
            nn.Conv2d(in_channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Dropout(0.1),
            nn.Conv2d(width, num_classes, 1),
        )


def add_aux(
    result: OrderedDict[str, torch.Tensor], classifier: nn.Module | None, map: torch.Tensor, size: Sequence[int]
) -> OrderedDict[str, torch.Tensor]:
    """``result`` with the auxiliary head's logits at that size under ``aux``, where there is a head."""
    if classifier is not None:
        result["aux"] = upsample_bilinear2d(classifier(map), size)
    return result


class SemanticModel(nn.Module):
    """``backbone``, ``classifier`` and, where wanted, ``aux_classifier``, as torchvision's segmentation models name them.

    Args:
        backbone: returns maps by name.
        classifier: from the map ``out`` to logits.
        aux_classifier: from the map ``aux`` to logits, or None.
        out, aux: names of those maps.
        smallest: smallest height and width that the backbone takes.
        align_corners: of the upsampling of the logits.
    """

    def __init__(
        self,
        backbone: nn.Module,
        classifier: nn.Module,
        aux_classifier: nn.Module | None = None,
        out: str = "layer4",
        aux: str = "layer3",
        smallest: int = 1,
        in_channels: int = 3,
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = classifier
        self.aux_classifier = aux_classifier
        self.out, self.aux, self.smallest, self.in_channels = out, aux, smallest, in_channels
        self.align_corners = align_corners

    def classify(self, maps: OrderedDict[str, torch.Tensor]) -> torch.Tensor:
        """Logits from the maps, at the size that they have."""
        return self.classifier(maps[self.out])

    def forward(self, input: torch.Tensor) -> OrderedDict[str, torch.Tensor]:
        check_input(input, self.in_channels, self.smallest)
        maps = self.backbone(input)
        result = OrderedDict(out=self.classify(maps))
        if self.aux_classifier is not None:
            result["aux"] = self.aux_classifier(maps[self.aux])
        for key, logits in result.items():
            result[key] = upsample_bilinear2d(logits, input.shape[2:], align_corners=self.align_corners)
        return result


def read_semantic(
    name: str, weights: Weights | None, progress: bool, num_classes: int, aux_loss: bool | None
) -> tuple[StateDict | None, bool]:
    """State dict of a whole model, or None, and whether the model has an auxiliary head: it does if the weights have one.

    Raises:
        ValueError: for a member of another model's enum or with other classes, for what is not a state dict, and for
            ``aux_loss=False`` where the weights have an auxiliary head.
    """
    if weights is None:
        return None, bool(aux_loss)
    check_member(weights, name, num_classes)
    state = read_state_dict(weights, progress)
    has_aux = any(key.startswith("aux_classifier.") for key in state)
    if has_aux and aux_loss is False:
        raise ValueError(f"aux_loss: expected None or True for {weights}, which has an auxiliary head, got False")
    return state, has_aux or bool(aux_loss)
