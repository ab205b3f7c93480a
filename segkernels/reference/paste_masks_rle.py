"""Run lengths of pasted masks in plain PyTorch, through the pasted masks."""

from __future__ import annotations

import torch

from segkernels.reference.paste_masks import paste_masks


def paste_masks_rle(
    masks: torch.Tensor, boxes: torch.Tensor, image_size: list[int], threshold: float, style: int
) -> tuple[torch.Tensor, torch.Tensor]:
    pixels = paste_masks(masks, boxes, image_size, threshold, style).mT.flatten(1)
    total = pixels.shape[1]
    counts = []
    for column_major in pixels:
        # A run of zeros, possibly empty, comes first.
        before = torch.cat([column_major.new_zeros(1), column_major[:-1]])[:total]
        changes = (column_major != before).nonzero().flatten()
        ends = torch.cat([changes, changes.new_full((1,), total)])
        counts.append(ends.diff(prepend=ends.new_zeros(1)))
    sizes = torch.tensor([0] + [len(count) for count in counts], device=masks.device)
    empty = torch.empty(0, dtype=torch.int64, device=masks.device)
    return torch.cat([empty, *counts]), sizes.cumsum(0)
