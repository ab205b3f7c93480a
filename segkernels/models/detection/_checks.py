"""Errors for images and targets that name the one that is wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch


def check_images(images: Sequence[torch.Tensor], channels: int) -> None:
    if isinstance(images, torch.Tensor) or len(images) == 0:
        got = f"a Tensor of shape {list(images.shape)}" if isinstance(images, torch.Tensor) else "none"
        raise ValueError(f"images: expected a list of at least one [{channels}, H, W], got {got}")
    for i, image in enumerate(images):
        if image.dim() != 3 or image.shape[0] != channels or min(image.shape) == 0:
            raise ValueError(f"images: expected [{channels}, H, W], got shape {list(image.shape)} at index {i}")
        if not image.is_floating_point():
            raise TypeError(f"images: expected a floating-point dtype (values from 0 to 1), got {image.dtype} at index {i}")


def check_targets(targets: Sequence[Mapping[str, torch.Tensor]], images: Sequence[torch.Tensor]) -> None:
    """One host sync for all targets together."""
    if len(targets) != len(images):
        raise ValueError(f"targets: expected one for each of {len(images)} images, got {len(targets)}")
    for i, (target, image) in enumerate(zip(targets, images)):
        for key in ("boxes", "labels", "masks"):
            if not isinstance(target.get(key), torch.Tensor):
                raise ValueError(f"targets: expected a Tensor named {key}, got {target.get(key)!r} for target at index {i}")
        boxes, labels, masks = target["boxes"], target["labels"], target["masks"]
        if not boxes.is_floating_point():
            raise TypeError(f"targets: expected boxes of a floating-point dtype, got {boxes.dtype} for target at index {i}")
        if labels.dtype != torch.int64:
            raise TypeError(f"targets: expected labels of dtype int64, got {labels.dtype} for target at index {i}")
        count, size = len(boxes), list(image.shape[1:])
        for key, tensor, shape in (
            ("boxes", boxes, [count, 4]),
            ("labels", labels, [count]),
            ("masks", masks, [count, *size]),
        ):
            if list(tensor.shape) != shape:
                raise ValueError(f"targets: expected {key} of shape {shape}, got {list(tensor.shape)} for target at index {i}")
    # Not greater, rather than less or equal: NaN has no area either.
    flat = [~(target["boxes"][:, 2:] > target["boxes"][:, :2]).all(1) for target in targets]
    if not torch.cat(flat).any():
        return
    for i, (target, wrong) in enumerate(zip(targets, flat)):
        if wrong.any():
            box = target["boxes"][wrong][0].tolist()
            raise ValueError(
                "targets: all bounding boxes should have positive height and width; found invalid box "
                f"{box} for target at index {i}"
            )
