"""Convolution in plain PyTorch: every tap is a strided window of the padded input, times its weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from segkernels._layout import memory_format


def conv2d(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> torch.Tensor:
    kernel = weight.shape[2:]
    padded = F.pad(input, (padding[1], padding[1], padding[0], padding[0]))
    size = [(padded.shape[2 + d] - dilation[d] * (kernel[d] - 1) - 1) // stride[d] + 1 for d in range(2)]
    # Half-precision sums are kept in float32.
    compute = torch.promote_types(input.dtype, torch.float32)
    kernels = weight.unflatten(0, (groups, -1)).to(compute)
    output = input.new_zeros((input.shape[0], groups, kernels.shape[1], *size), dtype=compute)
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            rows = slice(i * dilation[0], i * dilation[0] + (size[0] - 1) * stride[0] + 1, stride[0])
            columns = slice(j * dilation[1], j * dilation[1] + (size[1] - 1) * stride[1] + 1, stride[1])
            window = padded[:, :, rows, columns].unflatten(1, (groups, -1)).to(compute)
            output = output + torch.einsum("ngchw,gmc->ngmhw", window, kernels[..., i, j])
    output = output.flatten(1, 2)
    if bias is not None:
        output = output + bias.to(compute)[:, None, None]
    return output.to(input.dtype).contiguous(memory_format=memory_format(input))


def conv2d_backward(
    grad_output: torch.Tensor,
    input: torch.Tensor,
    weight: torch.Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    need_input: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients that are not asked for come back empty."""
    mask = [need_input, need_weight, need_bias]
    grads = torch.ops.aten.convolution_backward(
        grad_output, input, weight, [grad_output.shape[1]], stride, padding, dilation, False, [0, 0], groups, mask
    )
    none = input.new_empty(0)
    return (
        grads[0].contiguous(memory_format=memory_format(input)) if need_input else none,
        grads[1].contiguous() if need_weight else none.clone(),
        grads[2] if need_bias else none.clone(),
    )
