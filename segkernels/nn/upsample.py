"""Upsampling: isinstance of the torch.nn class, with its constructor and repr."""

from __future__ import annotations

import torch
from torch import nn

from segkernels import ops

_FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


class Upsample(nn.Upsample):
    """:class:`torch.nn.Upsample` on :func:`segkernels.ops.upsample_bilinear2d` and
    :func:`segkernels.ops.upsample_nearest2d`.

    Other modes, other ranks than [N, C, h, w], other dtypes than the floating-point ones, and
    ``recompute_scale_factor=True`` are torch's own.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        ours = input.dim() == 4 and input.dtype in _FLOATING and not self.recompute_scale_factor
        if ours and self.mode == "bilinear":
            return ops.upsample_bilinear2d(input, self.size, self.scale_factor, bool(self.align_corners))
        if ours and self.mode == "nearest" and self.align_corners is None:
            return ops.upsample_nearest2d(input, self.size, self.scale_factor)
        return super().forward(input)
