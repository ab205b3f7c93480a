"""Convolution modules: isinstance of the torch.nn class, so that initialisers and surgery code work."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from segkernels import ops


def _ints(values: Sequence[object]) -> list[int]:
    # torch annotates these attributes as tuples of anything.
    return [int(value) for value in values]  # type: ignore[call-overload]


class Conv2d(nn.Conv2d):
    """:class:`torch.nn.Conv2d` on :func:`segkernels.ops.conv2d`.

    Constructor, ``state_dict`` and repr are torch's, and so are all padding modes.
    """

    def _conv_forward(self, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        padding: str | int | list[int] = self.padding if isinstance(self.padding, str) else _ints(self.padding)
        if self.padding_mode != "zeros":
            input = nn.functional.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = 0
        return ops.conv2d(input, weight, bias, _ints(self.stride), padding, _ints(self.dilation), self.groups)


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
