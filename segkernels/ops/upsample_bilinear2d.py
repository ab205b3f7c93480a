"""Bilinear resampling of feature maps and logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from segkernels._layout import memory_format
from segkernels._register import register
from segkernels.ops._arguments import check_resampled, resampled_size


def _fake(input, output_size, align_corners, scales_h, scales_w):
    shape = (input.shape[0], input.shape[1], output_size[0], output_size[1])
    return torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=memory_format(input))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    input, _, *ctx.coordinates = inputs
    ctx.input_size = list(input.shape[2:])


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    return _op_backward(grad, ctx.input_size, *ctx.coordinates), None, None, None, None


def _double_backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    # Linear in grad_output, and its transpose is the forward op.
    return _op(grad, ctx.input_size, *ctx.coordinates), None, None, None, None


def _vendor_backward(grad_output, input_size, align_corners, scales_h, scales_w):
    shape = [*grad_output.shape[:2], *input_size]
    return torch.ops.aten.upsample_bilinear2d_backward(
        grad_output, grad_output.shape[2:], shape, align_corners, scales_h, scales_w
    )


_op = register(
    "upsample_bilinear2d",
    "(Tensor input, SymInt[2] output_size, bool align_corners, float? scales_h, float? scales_w) -> Tensor",
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
    vendor=torch.ops.aten.upsample_bilinear2d.default,
)
# In both directions the sizes of the tensor handed in are what the gradient comes back in.
_op_backward = register(
    "upsample_bilinear2d_backward",
    "(Tensor grad_output, SymInt[2] input_size, bool align_corners, float? scales_h, float? scales_w) -> Tensor",
    fake=_fake,
    backward=_double_backward,
    setup_context=_setup_context,
    vendor=_vendor_backward,
)


def upsample_bilinear2d(
    input: torch.Tensor,
    size: int | Sequence[int] | None = None,
    scale_factor: float | Sequence[float] | None = None,
    align_corners: bool = False,
) -> torch.Tensor:
    """Bilinear interpolation to a larger or smaller size, without antialiasing.

    Replaces ``torch.nn.functional.interpolate(..., mode="bilinear")``: the same coordinates and weights.

    Args:
        input (Tensor[N, C, h, w]): float32, float64, float16 or bfloat16, NCHW or channels_last.
        size: ``(H, W)`` of the output, or one int for both.
        scale_factor: instead of ``size``; one number or two (height, width). The output is ``floor(h * scale_factor)``, and
            the factor itself, not the ratio of the sizes, is used in the coordinates (torch's
            ``recompute_scale_factor=None``).
        align_corners: corner pixels keep their values; default: pixels are areas, and their outer edges are aligned.

    Returns:
        Tensor[N, C, H, W]: in the memory format and dtype of ``input``. Coordinates and sums are float32 (float64 for
        float64).

    Deterministic, forward and backward (torch's CUDA backward is not): each gradient gathers its own terms. Twice
    differentiable.

    Raises:
        ValueError, TypeError: for a wrong rank, dtype or size, or unless exactly one of ``size`` and ``scale_factor`` is
            given.
    """
    check_resampled(input, "input")
    output_size, scales_h, scales_w = resampled_size(input, size, scale_factor)
    return _op(input, output_size, align_corners, scales_h, scales_w)
