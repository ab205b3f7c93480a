"""Labels of the full resolution straight from logits of a lower one."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from segkernels._register import register
from segkernels.ops._arguments import check_resampled, pair

_BITS = {torch.int64: 64, torch.int32: 32, torch.uint8: 8}
_DTYPES = {bits: dtype for dtype, bits in _BITS.items()}


def _fake(logits, output_size, align_corners, label_bits):
    dtype = _DTYPES[label_bits]
    return torch.empty((logits.shape[0], output_size[0], output_size[1]), dtype=dtype, device=logits.device)


_op = register(
    "upsample_argmax",
    "(Tensor logits, SymInt[2] output_size, bool align_corners, int label_bits) -> Tensor",
    fake=_fake,
)


def upsample_argmax(
    logits: torch.Tensor, size: int | Sequence[int], align_corners: bool = False, dtype: torch.dtype = torch.int64
) -> torch.Tensor:
    """The class of each pixel after bilinear upsampling of the logits, which are never written at that size.

    Replaces ``interpolate(logits, size, mode="bilinear").argmax(1)``, how DeepLab's and SegFormer's logits become a
    segmentation.

    Args:
        logits (Tensor[N, C, h, w]): float32, float64, float16 or bfloat16, NCHW or channels_last.
        size: ``(H, W)`` of the labels, or one int for both.
        align_corners: as in :func:`upsample_bilinear2d`.
        dtype: of the labels; int64, int32 or, for at most 256 classes, uint8.

    Returns:
        Tensor[N, H, W]: of equal classes the lowest; NaN counts as the largest, as for :func:`torch.argmax`. Half types are
        interpolated and compared in float32, not rounded in between. Deterministic; it has no gradient.

    Raises:
        ValueError, TypeError: for a wrong rank, dtype or size, or more classes than ``dtype`` can hold.
    """
    check_resampled(logits, "logits")
    bits = _BITS.get(dtype)
    if bits is None:
        raise TypeError(f"dtype: expected uint8, int32 or int64, got {dtype}")
    if logits.shape[1] < 1 or (bits == 8 and logits.shape[1] > 256):
        raise ValueError(f"logits: expected at least one class, and at most 256 for uint8, got shape {list(logits.shape)}")
    return _op(logits, pair(size, "size", 1), align_corners, bits)
