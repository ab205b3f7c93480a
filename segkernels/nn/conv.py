"""Convolution modules: isinstance of the torch.nn class, so that initialisers and surgery code work."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from segkernels import ops


def _ints(values: Sequence[object]) -> list[int]:
    # torch annotates these attributes as tuples of anything.
    return [int(value) for value in values]  # type: ignore[call-overload]


class ConvTranspose1d(nn.ConvTranspose1d):
    """:class:`torch.nn.ConvTranspose1d` on :func:`segkernels.ops.conv_transpose1d`.

    Constructor, ``state_dict``, repr and ``forward(input, output_size=None)`` are torch's.
    """

    def forward(self, input: torch.Tensor, output_size: list[int] | None = None) -> torch.Tensor:
        stride, padding, dilation = _ints(self.stride), _ints(self.padding), _ints(self.dilation)
        output_padding = self._output_padding(input, output_size, stride, padding, _ints(self.kernel_size), 1, dilation)
        return ops.conv_transpose1d(input, self.weight, self.bias, stride, padding, output_padding, self.groups, dilation)


class ConvTranspose2d(nn.ConvTranspose2d):
    """:class:`torch.nn.ConvTranspose2d` on :func:`segkernels.ops.conv_transpose2d`.

    Constructor, ``state_dict``, repr and ``forward(input, output_size=None)`` are torch's.
    """

    def forward(self, input: torch.Tensor, output_size: list[int] | None = None) -> torch.Tensor:
        stride, padding, dilation = _ints(self.stride), _ints(self.padding), _ints(self.dilation)
        output_padding = self._output_padding(input, output_size, stride, padding, _ints(self.kernel_size), 2, dilation)
        return ops.conv_transpose2d(input, self.weight, self.bias, stride, padding, output_padding, self.groups, dilation)
