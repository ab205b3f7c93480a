"""Depthwise-separable convolution with its norms and activations, and bilinear upsampling as a layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from segkernels import ops
from segkernels.nn.analysis import bilinear_
from segkernels.nn.conv import ConvTranspose2d

Size = int | tuple[int, int]
#: Measured on a CPU: planes narrower than this in NCHW, and fewer pixels than that in channels_last, do not pay for laying
#: out the pointwise weight, nor for folding norms into it.
_NARROW, _FEW = 32, 256


class DepthwiseSeparableConv2d(nn.Module):
    """Depthwise convolution, pointwise convolution, and after each one a norm and a ReLU if asked for.

    On :func:`segkernels.ops.depthwise_separable_conv2d` where it can be one op and, on a CPU, the map is not small: without
    norms always, with BatchNorm in eval, where the norms are folded into the weights at each call, or once and for all by
    :meth:`fuse_`. Keys of the
    ``state_dict`` are detectron2's: ``depthwise.weight``, ``depthwise.norm.*``, ``pointwise.weight``, ``pointwise.norm.*``.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation: as in :class:`torch.nn.Conv2d`; all but the channels
            are the depthwise convolution's.
        channel_multiplier: depthwise filters per input channel. Default: 1.
        bias: of both convolutions; None (default) gives one where no norm follows.
        norm: called with a channel count, for example :class:`torch.nn.BatchNorm2d`; None for none.
        activation: None or ``"relu"``, between the convolutions and after them.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size = 3,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        *,
        channel_multiplier: int = 1,
        bias: bool | None = None,
        norm: Callable[[int], nn.Module] | None = None,
        activation: str | None = None,
    ) -> None:
        super().__init__()
        if activation not in (None, "relu"):
            raise ValueError(f"activation: expected None or 'relu', got {activation!r}")
        self.activation = activation
        hidden = in_channels * channel_multiplier
        with_bias = norm is None if bias is None else bias
        self.depthwise = nn.Conv2d(
            in_channels, hidden, kernel_size, stride, padding, dilation, groups=in_channels, bias=with_bias
        )
        self.pointwise = nn.Conv2d(hidden, out_channels, 1, bias=with_bias)
        if norm is not None:
            self.depthwise.norm = norm(hidden)
            self.pointwise.norm = norm(out_channels)

    def fuse_(self) -> DepthwiseSeparableConv2d:
        """Folds the BatchNorms into weights and biases, for eval; in place, and returns the module.

        Raises:
            RuntimeError: in training mode, where a BatchNorm uses the batch's statistics.
            TypeError: for a norm that is not BatchNorm with running statistics.
        """
        if self.training:
            raise RuntimeError("fuse_: expected a module in eval mode, call eval() first")
        for conv in (self.depthwise, self.pointwise):
            if not hasattr(conv, "norm"):
                continue
            if not _can_fold(conv):
                raise TypeError(f"fuse_: expected BatchNorm2d with running statistics, got {type(conv.norm).__name__}")
            with torch.no_grad():
                weight, bias = _folded(conv)
                assert bias is not None
                conv.weight.copy_(weight)
                conv.bias = nn.Parameter(bias, requires_grad=conv.weight.requires_grad)
            del conv.norm
        return self

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        convs = (self.depthwise, self.pointwise)
        foldable = all(not hasattr(conv, "norm") or (not self.training and _can_fold(conv)) for conv in convs)
        if foldable and not _is_small(input):
            (depthwise_weight, depthwise_bias), (pointwise_weight, pointwise_bias) = map(_folded, convs)
            conv = self.depthwise
            stride, padding, dilation = conv.stride, conv.padding, conv.dilation
            return ops.depthwise_separable_conv2d(
                input, depthwise_weight, pointwise_weight, depthwise_bias, pointwise_bias, stride, padding, dilation,
                self.activation,
            )  # fmt: skip
        for conv in convs:
            input = conv(input)
            if hasattr(conv, "norm"):
                norm: Any = conv.norm
                input = norm(input)
            if self.activation is not None:
                input = input.relu()
        return input

    def extra_repr(self) -> str:
        return "" if self.activation is None else f"activation={self.activation!r}"


def _is_small(input: torch.Tensor) -> bool:
    if torch.compiler.is_compiling() or input.device.type != "cpu" or input.dim() != 4:
        return False  # sizes may be symbols in what is compiled or exported
    if input.is_contiguous():
        return input.shape[3] < _NARROW
    return input.shape[0] * input.shape[2] * input.shape[3] < _FEW


def _can_fold(conv: nn.Conv2d) -> bool:
    norm: Any = conv.norm
    return isinstance(norm, nn.BatchNorm2d) and not norm.training and norm.running_mean is not None


def _folded(conv: nn.Conv2d) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weight and bias of the convolution with the BatchNorm after it."""
    if not hasattr(conv, "norm"):
        return conv.weight, conv.bias
    norm: Any = conv.norm
    scale = (norm.running_var + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -norm.running_mean if conv.bias is None else conv.bias - norm.running_mean
    bias = shift * scale
    if norm.bias is not None:
        bias = bias + norm.bias
    return conv.weight * scale[:, None, None, None].to(conv.weight.dtype), bias.to(conv.weight.dtype)


class BilinearConvTranspose2d(ConvTranspose2d):
    """Upsampling by an integer scale as a depthwise transposed convolution that starts as bilinear interpolation.

    FCN's learnable upsampling (Long et al. 2015): kernel ``2 * scale - scale % 2``, output exactly ``scale`` times the input.
    Until trained it equals ``interpolate(mode="bilinear", align_corners=False)`` away from the borders, where the
    interpolation repeats pixels and a convolution sees zeros.

    Args:
        channels: of input and output; each is upsampled on its own.
        scale: integer factor.
        learnable: False keeps the weight fixed. Default: True.
    """

    def __init__(self, channels: int, scale: int, learnable: bool = True) -> None:
        if scale < 1:
            raise ValueError(f"scale: expected at least 1, got {scale}")
        super().__init__(channels, channels, 2 * scale - scale % 2, scale, scale // 2, groups=channels, bias=False)
        self.weight.requires_grad_(learnable)

    def reset_parameters(self) -> None:
        bilinear_(self.weight)
