"""Images of any size to a batch, and detections back to the images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from segkernels.models.detection._boxes import constant
from segkernels.models.detection._paste import paste_soft_masks
from segkernels.ops import paste_masks, upsample_bilinear2d


def resize_boxes(boxes: torch.Tensor, before: tuple[int, int], after: tuple[int, int]) -> torch.Tensor:
    """Boxes [N, 4] of an image of one ``(height, width)`` in the same image of another."""
    height, width = after[0] / before[0], after[1] / before[1]
    return boxes * constant([width, height, width, height], boxes)


class Transform(nn.Module):
    """Normalises and resizes images, pads them to a batch, and takes detections back.

    Args:
        min_size: what the shorter side becomes; of several, training draws one for each image and evaluation takes the
            last.
        max_size: what the longer side becomes where it would be longer.
        image_mean, image_std: of each channel.
        size_divisible: the batch's height and width are multiples of it.
        fixed_size: ``(width, height)`` that every image gets instead.
        mask_threshold: None for masks of probabilities, else the probability from which a pixel is set.
    """

    def __init__(
        self,
        min_size: int | Sequence[int],
        max_size: int,
        image_mean: Sequence[float],
        image_std: Sequence[float],
        size_divisible: int = 32,
        fixed_size: tuple[int, int] | None = None,
        mask_threshold: float | None = None,
    ) -> None:
        super().__init__()
        self.min_size = (min_size,) if isinstance(min_size, int) else tuple(min_size)
        self.max_size = max_size
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)
        self.size_divisible = size_divisible
        self.fixed_size = fixed_size
        self.mask_threshold = mask_threshold

    def forward(
        self, images: Sequence[torch.Tensor], targets: Sequence[Mapping[str, torch.Tensor]] | None = None
    ) -> tuple[torch.Tensor, list[tuple[int, int]], list[dict[str, torch.Tensor]] | None]:
        """
        Args:
            images (list of Tensor[C, H, W]): floating-point, mostly from 0 to 1.
            targets: objects of each image; ``boxes`` and ``masks`` are resized.

        Returns:
            The batch, zero where it is padded; ``(height, width)`` of each image in it; and the targets.
        """
        resized = [self._image(image) for image in images]
        sizes = [(image.shape[1], image.shape[2]) for image in resized]
        height, width = (-(-max(side) // self.size_divisible) * self.size_divisible for side in zip(*sizes))
        batch = resized[0].new_zeros((len(resized), resized[0].shape[0], height, width))
        for place, image in zip(batch, resized):
            place[:, : image.shape[1], : image.shape[2]].copy_(image)
        if targets is None:
            return batch, sizes, None
        originals = [(image.shape[1], image.shape[2]) for image in images]
        return batch, sizes, [self._target(*each) for each in zip(targets, originals, sizes)]

    def _image(self, image: torch.Tensor) -> torch.Tensor:
        mean, std = (constant(values, image)[:, None, None] for values in (self.image_mean, self.image_std))
        image = (image - mean) / std
        size = self._size(image.shape[1], image.shape[2])
        return image if size == image.shape[1:] else upsample_bilinear2d(image[None], size)[0]

    def _size(self, height: int, width: int) -> tuple[int, int]:
        drawn = -1
        if self.training:
            drawn = int(torch.rand(1) * len(self.min_size))
        if self.fixed_size is not None:
            return self.fixed_size[1], self.fixed_size[0]
        scale = min(self.min_size[drawn] / min(height, width), self.max_size / max(height, width))
        return max(math.floor(height * scale), 1), max(math.floor(width * scale), 1)

    @staticmethod
    def _target(
        target: Mapping[str, torch.Tensor], before: tuple[int, int], after: tuple[int, int]
    ) -> dict[str, torch.Tensor]:
        result = dict(target)
        result["boxes"] = resize_boxes(target["boxes"], before, after)
        result["masks"] = F.interpolate(target["masks"][:, None].byte(), after)[:, 0]
        return result

    def postprocess(
        self,
        detections: list[dict[str, torch.Tensor]],
        sizes: Sequence[tuple[int, int]],
        originals: Sequence[tuple[int, int]],
    ) -> list[dict[str, torch.Tensor]]:
        """Boxes in pixels of the original images, and masks [N, 1, H, W] pasted into them; no host sync."""
        for detection, size, original in zip(detections, sizes, originals):
            detection["boxes"] = boxes = resize_boxes(detection["boxes"], size, original)
            if self.mask_threshold is None:
                masks = paste_soft_masks(detection["masks"], boxes, original)
            else:
                masks = paste_masks(detection["masks"], boxes, original, self.mask_threshold)
            detection["masks"] = masks[:, None]
        return detections
