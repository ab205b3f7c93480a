"""Transposed convolution of sequences in Triton: that of planes, with a height of 1."""

from __future__ import annotations

from segkernels.triton import conv_transpose2d as planes


def _row(tensor):
    # Dense first: strides of a permuted sequence would read as channels_last.
    return tensor.contiguous()[:, :, None]


def conv_transpose1d(input, weight, bias, stride, padding, output_padding, groups, dilation):
    geometry = [1, stride], [0, padding], [0, output_padding], groups, [1, dilation]
    return planes.conv_transpose2d(_row(input), _row(weight), bias, *geometry)[:, :, 0]


def conv_transpose1d_backward(
    grad_output, input, weight, stride, padding, output_padding, groups, dilation, need_input, need_weight, need_bias
):  # fmt: skip
    geometry = [1, stride], [0, padding], [0, output_padding], groups, [1, dilation]
    needs = need_input, need_weight, need_bias
    grads = planes.conv_transpose2d_backward(_row(grad_output), _row(input), _row(weight), *geometry, *needs)
    return (
        grads[0][:, :, 0] if need_input else grads[0],
        grads[1][:, :, 0] if need_weight else grads[1],
        grads[2],
    )


def compile_cases():
    """No kernel of its own."""
    return ()
