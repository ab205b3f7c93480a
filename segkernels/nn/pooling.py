"""Pooling modules: isinstance of the torch.nn class, with its constructor, repr and ``state_dict``."""

from __future__ import annotations

import torch
from torch import nn

from segkernels import ops


class MaxPool2d(nn.MaxPool2d):
    """:class:`torch.nn.MaxPool2d` on :func:`segkernels.ops.max_pool2d`.

    Args:
        index_dtype: dtype of the indices when ``return_indices`` is set; ``torch.uint8`` gives offsets inside the window,
            an eighth of the memory, which :class:`MaxUnpool2d` takes as well. Default: ``torch.int64``, torch's own.
    """

    def __init__(
        self,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] | None = None,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        return_indices: bool = False,
        ceil_mode: bool = False,
        *,
        index_dtype: torch.dtype = torch.int64,
    ) -> None:
        super().__init__(kernel_size, stride, padding, dilation, return_indices, ceil_mode)
        if index_dtype not in (torch.int64, torch.uint8):
            raise TypeError(f"index_dtype: expected torch.int64 or torch.uint8, got {index_dtype}")
        self.index_dtype = index_dtype

    def forward(self, input: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        return ops.max_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.ceil_mode,
            self.return_indices,
            self.index_dtype,
        )


class MaxUnpool2d(nn.MaxUnpool2d):
    """:class:`torch.nn.MaxUnpool2d` on :func:`segkernels.ops.max_unpool2d`; takes int64 and uint8 indices."""

    def forward(self, input: torch.Tensor, indices: torch.Tensor, output_size: list[int] | None = None) -> torch.Tensor:
        return ops.max_unpool2d(input, indices, self.kernel_size, self.stride, self.padding, output_size)
