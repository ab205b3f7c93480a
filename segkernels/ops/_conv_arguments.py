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
    sizes, kernel, device = input.shape, weight.shape, input.device  # each access makes a new object
    channels = sizes[1]
    if groups < 1 or channels % groups or kernel[0] != channels:
        raise ValueError(
            f"weight: expected [Cin, Cout / groups, kernel ...] with Cin = {channels} divisible by groups = {groups}, "
            f"got {list(kernel)}"
        )
    if weight.dtype != input.dtype and not torch.is_autocast_enabled(device.type):
        raise TypeError(f"weight: expected the dtype of input, {input.dtype}, got {weight.dtype}")
    if weight.device != device or (bias is not None and bias.device != device):
        raise ValueError(
            f"weight and bias: expected the device of input, {device}, got {weight.device}"
            + ("" if bias is None else f" and {bias.device}")
        )
    if bias is not None and (bias.dim() != 1 or bias.shape[0] != kernel[1] * groups):
        raise ValueError(f"bias: expected [Cout] with Cout = {kernel[1] * groups}, got {list(bias.shape)}")
    for size, taps, step, pad, extra, spread in zip(sizes[2:], kernel[2:], stride, padding, output_padding, dilation):
        if extra >= step and extra >= spread:
            raise ValueError(
                f"output_padding: expected less than stride {stride} or dilation {dilation}, got {output_padding}"
            )
        if size < 1 or (size - 1) * step - 2 * pad + spread * (taps - 1) + extra < 0:
            raise ValueError(
                f"input: expected a size that gives a positive output, got {list(sizes)} with kernel "
                f"{list(kernel[2:])}, stride {stride}, padding {padding}, dilation {dilation}"
            )
