"""Checks that the convolutions' public functions share."""

from __future__ import annotations

import torch


def check_conv_transpose(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: list[int],
    padding: list[int],
    output_padding: list[int],
    groups: int,
    dilation: list[int],
) -> None:
    """Of one, two or three dimensions: ``input`` [N, Cin, ...], and one entry a dimension in the lists."""
    channels = input.shape[1]
    if groups < 1 or channels % groups or weight.shape[0] != channels:
        raise ValueError(
            f"weight: expected [Cin, Cout / groups, kernel ...] with Cin = {channels} divisible by groups = {groups}, "
            f"got {list(weight.shape)}"
        )
    if weight.dtype != input.dtype and not torch.is_autocast_enabled(input.device.type):
        raise TypeError(f"weight: expected the dtype of input, {input.dtype}, got {weight.dtype}")
    if weight.device != input.device or (bias is not None and bias.device != input.device):
        raise ValueError(
            f"weight and bias: expected the device of input, {input.device}, got {weight.device}"
            + ("" if bias is None else f" and {bias.device}")
        )
    if bias is not None and (bias.dim() != 1 or bias.shape[0] != weight.shape[1] * groups):
        raise ValueError(f"bias: expected [Cout] with Cout = {weight.shape[1] * groups}, got {list(bias.shape)}")
    for d in range(len(stride)):
        if output_padding[d] >= max(stride[d], dilation[d]):
            raise ValueError(
                f"output_padding: expected less than stride {stride} or dilation {dilation}, got {output_padding}"
            )
        size = (input.shape[2 + d] - 1) * stride[d] - 2 * padding[d] + dilation[d] * (weight.shape[2 + d] - 1)
        if input.shape[2 + d] < 1 or size + output_padding[d] + 1 < 1:
            raise ValueError(
                f"input: expected a size that gives a positive output, got {list(input.shape)} with kernel "
                f"{list(weight.shape[2:])}, stride {stride}, padding {padding}, dilation {dilation}"
            )
