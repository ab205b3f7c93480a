"""RoI Align: pools regions of a feature map by bilinear sampling, without rounding their coordinates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from segkernels._layout import is_channels_last, memory_format
from segkernels._register import register
from segkernels.ops._arguments import check_floating, check_rank, pair
from segkernels.ops._boxes import Boxes, as_rois


def _fake(input, boxes, output_size, spatial_scale, sampling_ratio, aligned):
    shape = (boxes.shape[0], input.shape[1], *output_size)
    return torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=memory_format(input))


def _backward_fake(grad_output, boxes, batch, height, width, spatial_scale, sampling_ratio, aligned, channels_last):
    layout = torch.channels_last if channels_last else torch.contiguous_format
    shape = (batch, grad_output.shape[1], height, width)
    return torch.empty(shape, dtype=grad_output.dtype, device=grad_output.device, memory_format=layout)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    input, boxes, _, *ctx.sampling = inputs
    batch, _, height, width = input.shape
    ctx.image = (batch, height, width)
    ctx.channels_last = is_channels_last(input)
    ctx.save_for_backward(boxes)


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    (boxes,) = ctx.saved_tensors
    return _op_backward(grad, boxes, *ctx.image, *ctx.sampling, ctx.channels_last), None, None, None, None, None


def _setup_context_backward(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    grad_output, boxes, _, _, _, *ctx.sampling, _ = inputs
    ctx.output_size = list(grad_output.shape[2:])
    ctx.save_for_backward(boxes)


def _double_backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    # Linear in grad_output, and its transpose is the forward op.
    (boxes,) = ctx.saved_tensors
    return _op(grad, boxes, ctx.output_size, *ctx.sampling), None, None, None, None, None, None, None, None


_op = register(
    "roi_align",
    "(Tensor input, Tensor boxes, SymInt[2] output_size, float spatial_scale, int sampling_ratio, bool aligned) -> Tensor",
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
)
_op_backward = register(
    "roi_align_backward",
    "(Tensor grad_output, Tensor boxes, SymInt batch, SymInt height, SymInt width, float spatial_scale, "
    "int sampling_ratio, bool aligned, bool channels_last) -> Tensor",
    fake=_backward_fake,
    backward=_double_backward,
    setup_context=_setup_context_backward,
)


def roi_align(
    input: torch.Tensor,
    boxes: Boxes,
    output_size: int | Sequence[int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
) -> torch.Tensor:
    """Mean of bilinear samples in each bin of each box.

    Replaces :func:`torchvision.ops.roi_align` (Mask R-CNN, He et al. 2017).

    Args:
        input (Tensor[N, C, H, W]): feature map; float32, float64, float16 or bfloat16.
        boxes (Tensor[K, 5] or list of N Tensor[L, 4]): (x1, y1, x2, y2), in a single tensor after the number of their
            image. Any floating dtype, whatever that of ``input``; coordinates are computed in float32, or in float64
            where ``input`` is float64.
        output_size: ``(height, width)`` of the bins, or one number for both.
        spatial_scale: factor from the boxes' coordinates to the map's. Default: 1.0.
        sampling_ratio: samples per bin and axis; 0 or less takes ``ceil(bin size)``. Default: -1.
        aligned: shift boxes by half a pixel, so that pixel centres lie at integers. Without it boxes are at least 1x1.
            Default: False.

    Returns:
        Tensor[K, C, output_size[0], output_size[1]]: in the dtype and memory format of ``input``.

    Samples more than a pixel outside the map count as zeros; bins without a sample are zero: those of boxes that are
    reversed while ``aligned``, and of boxes with NaN or infinite coordinates, or 2^31 samples and more.
    Deterministic, forward and backward, the same bits for any number of threads; twice differentiable in ``input``. No
    gradient goes to ``boxes``, as in torchvision.

    Raises:
        ValueError, TypeError: for a wrong rank, dtype, device or shape.
        RuntimeError: on CPU, for a box of an image outside the batch. On a GPU its bins are zero and it has no gradient.
    """
    check_floating(input, "input")
    check_rank(input, "input", (4,), "[N, C, H, W]")
    size = pair(output_size, "output_size", 1)
    return _op(input, as_rois(input, boxes), size, float(spatial_scale), int(sampling_ratio), bool(aligned))
