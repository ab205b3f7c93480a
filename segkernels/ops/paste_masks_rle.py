"""COCO run-length encoding of pasted masks, straight from the boxes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from segkernels import _load
from segkernels._register import register
from segkernels.ops._paste_arguments import parse


def _fake(masks, boxes, image_size, threshold, style):
    runs = masks.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)
    return runs, masks.new_empty(masks.shape[0] + 1, dtype=torch.int64)


_op = register(
    "paste_masks_rle",
    "(Tensor masks, Tensor boxes, SymInt[2] image_size, float threshold, int style) -> (Tensor runs, Tensor offsets)",
    fake=_fake,
)


def _compressed(counts: list[int]) -> bytes:
    """COCO's string of run lengths: differences to the run before the last, five bits a character."""
    text = bytearray()
    for i, count in enumerate(counts):
        value = count - counts[i - 2] if i > 2 else count
        while True:
            bits = value & 31
            value >>= 5
            more = value != (-1 if bits & 16 else 0)
            text.append(48 + bits + 32 * more)
            if not more:
                break
    return bytes(text)


def rle_strings(runs: torch.Tensor, offsets: torch.Tensor) -> list[bytes]:
    """COCO's compressed strings of ``runs[offsets[n]:offsets[n + 1]]``."""
    if _load.helpers is not None:
        return _load.helpers.rle_strings(runs.numpy(), offsets.numpy())
    bounds = offsets.tolist()
    counts = runs.tolist()
    return [_compressed(counts[begin:end]) for begin, end in zip(bounds, bounds[1:])]


def paste_masks_rle(
    masks: torch.Tensor,
    boxes: torch.Tensor,
    image_size: Sequence[int],
    threshold: float = 0.5,
    style: str = "torchvision",
) -> list[dict[str, Any]]:
    """:func:`paste_masks` in COCO's compressed run-length encoding, without the pasted masks.

    Replaces ``pycocotools.mask.encode`` of each pasted mask, byte for byte. Memory is that of the runs and of a strip of one
    box for each thread. Runs on the host wherever the masks are.

    Args:
        masks, boxes, image_size, threshold, style: as for :func:`paste_masks`.

    Returns:
        list: for each mask ``{'size': [H, W], 'counts': bytes}``, as pycocotools takes it; ``counts.decode()`` goes into
        JSON. Deterministic; it has no gradient. The run lengths themselves, int64 [R], and where each mask's begin, int64
        [N + 1], come from ``torch.ops.segkernels.paste_masks_rle``.

    Raises:
        ValueError, TypeError: for a wrong shape, dtype, device or style.
    """
    masks, boxes, size, threshold, kind = parse(masks, boxes, image_size, threshold, style)
    # Strings are the host's, and masks are smaller than their runs: the host encodes those of a GPU too.
    runs, offsets = _op(masks.cpu(), boxes.cpu(), size, threshold, kind)
    return [{"size": list(size), "counts": counts} for counts in rle_strings(runs, offsets)]
