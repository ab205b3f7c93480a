"""From an image to a model's input: resize, crop, normalise, as torchvision's evaluation presets do."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing:
    """Callable from images to a model's input: ``[..., 3, H, W]`` to float32 ``[..., 3, h, w]``.

    Equal to torchvision's presets for tensors. uint8 images are divided by 255, floating-point ones are taken to be in [0, 1].

    Args:
        resize_size: length of the shorter side after a bilinear, antialiased resize; None (default) keeps the size.
        crop_size: side of the square that is cut from the centre; None (default) keeps all.
        mean, std: of the three channels, subtracted and divided by; None for neither. Default: ImageNet's.
    """

    resize_size: int | None = None
    crop_size: int | None = None
    mean: tuple[float, ...] | None = IMAGENET_MEAN
    std: tuple[float, ...] | None = IMAGENET_STD

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        if image.dim() < 3 or image.shape[-3] != 3 or 0 in image.shape:
            raise ValueError(f"image: expected [..., 3, H, W], got {list(image.shape)}")
        if image.dtype != torch.uint8 and not image.is_floating_point():
            raise TypeError(f"image: expected uint8 or a floating-point dtype, got {image.dtype}")
        whole = image.dtype == torch.uint8
        x = image.reshape(-1, *image.shape[-3:]).float()
        if self.resize_size is not None:
            size = _shorter_side(x.shape[-2:], self.resize_size)
            if size != tuple(x.shape[-2:]):
                x = F.interpolate(x, size, mode="bilinear", antialias=True)
                # Eight bits in, eight bits out: the published figures were measured with images that were rounded here.
                x = x.round() if whole else x
        if self.crop_size is not None:
            x = _centre(x, self.crop_size)
        if whole:
            x = x / 255
        if self.mean is not None and self.std is not None:
            x = (x - x.new_tensor(self.mean)[:, None, None]) / x.new_tensor(self.std)[:, None, None]
        return x.reshape(*image.shape[:-2], *x.shape[-2:])


def _shorter_side(size: torch.Size, target: int) -> tuple[int, int]:
    height, width = size
    if height <= width:
        return target, int(target * width / height)
    return int(target * height / width), target


def _centre(x: torch.Tensor, side: int) -> torch.Tensor:
    """The square in the middle, of an image padded with zeros where it is smaller."""
    missing_y, missing_x = (max(side - length, 0) for length in x.shape[-2:])
    x = F.pad(x, (missing_x // 2, missing_x - missing_x // 2, missing_y // 2, missing_y - missing_y // 2))
    top, left = (round((length - side) / 2) for length in x.shape[-2:])
    return x[..., top : top + side, left : left + side]
