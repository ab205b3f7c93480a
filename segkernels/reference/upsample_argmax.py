"""The class of each pixel of bilinearly upsampled logits in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def upsample_argmax(logits: torch.Tensor, output_size: list[int], align_corners: bool, label_bits: int) -> torch.Tensor:
    dtype = {8: torch.uint8, 32: torch.int32, 64: torch.int64}[label_bits]
    wide = logits if logits.dtype == torch.float64 else logits.float()
    if wide.numel() == 0:
        return torch.empty((logits.shape[0], *output_size), dtype=dtype, device=logits.device)
    full = F.interpolate(wide, output_size, mode="bilinear", align_corners=align_corners)
    return full.argmax(1).to(dtype)
