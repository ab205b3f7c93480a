"""RoI pooling: the maximum in each bin of a box whose coordinates are rounded to pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from segkernels._layout import is_channels_last, memory_format
from segkernels._register import register
from segkernels.ops._arguments import check_floating, check_rank, pair
from segkernels.ops._boxes import Boxes, as_rois


def _fake(input, boxes, output_size, spatial_scale):
    shape = (boxes.shape[0], input.shape[1], *output_size)
    output = torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=memory_format(input))
    return output, torch.empty_like(output, dtype=torch.int64)


def _backward_fake(grad_output, argmax, boxes, spatial_scale, batch, height, width, channels_last):
    layout = torch.channels_last if channels_last else torch.contiguous_format
    shape = (batch, grad_output.shape[1], height, width)
    return torch.empty(shape, dtype=grad_output.dtype, device=grad_output.device, memory_format=layout)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    input, boxes, _, ctx.spatial_scale = inputs
    batch, _, height, width = input.shape
    ctx.image = (batch, height, width, is_channels_last(input))
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1], boxes)


def _backward(ctx: Any, grad: torch.Tensor, _: Any) -> tuple[Any, ...]:
    argmax, boxes = ctx.saved_tensors
    return _op_backward(grad, argmax, boxes, ctx.spatial_scale, *ctx.image), None, None, None


def _setup_context_backward(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    _, argmax, boxes, *_ = inputs
    ctx.save_for_backward(argmax, boxes)


def _double_backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    # Each entry is read back from where it went.
    argmax, boxes = ctx.saved_tensors
    batch = grad.shape[0]
    if argmax.numel() == 0 or grad.numel() == 0:
        return grad.new_zeros(argmax.shape), *[None] * 7
    ids = boxes[:, 0]
    inside = (ids > -1) & (ids < batch)
    valid = (argmax >= 0) & inside[:, None, None, None]
    maps = grad.flatten(2)[torch.where(inside, ids, 0).long()]
    taken = maps.gather(2, argmax.clamp(min=0).flatten(2)).view(argmax.shape)
    return torch.where(valid, taken, 0), *[None] * 7


_op = register(
    "roi_pool",
    "(Tensor input, Tensor boxes, SymInt[2] output_size, float spatial_scale) -> (Tensor, Tensor)",
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
)
_op_backward = register(
    "roi_pool_backward",
    "(Tensor grad_output, Tensor argmax, Tensor boxes, float spatial_scale, SymInt batch, SymInt height, SymInt width, "
    "bool channels_last) -> Tensor",
    fake=_backward_fake,
    backward=_double_backward,
    setup_context=_setup_context_backward,
)


def roi_pool(input: torch.Tensor, boxes: Boxes, output_size: int | Sequence[int], spatial_scale: float = 1.0) -> torch.Tensor:
    """Maximum of the pixels in each bin of each box.

    Replaces :func:`torchvision.ops.roi_pool` (Fast R-CNN, Girshick 2015).

    Args:
        input (Tensor[N, C, H, W]): feature map; float32, float64, float16 or bfloat16.
        boxes: as for :func:`roi_align`; corners are scaled and rounded, half away from zero, and both are inside the box.
        output_size: ``(height, width)`` of the bins, or one number for both.
        spatial_scale: factor from the boxes' coordinates to the map's. Default: 1.0.

    Returns:
        Tensor[K, C, output_size[0], output_size[1]]: in the dtype and memory format of ``input``; bins without a pixel of
        the map are zero. NaN is the maximum where there is one, as in max-pooling.

    The gradient goes to the first maximum of a bin. A NaN coordinate counts as 0, infinite and huge ones as 2^30.
    Deterministic, forward and backward, the same bits for any number of threads; twice differentiable in ``input``.

    Raises:
        ValueError, TypeError: for a wrong rank, dtype, device or shape.
        RuntimeError: on CPU, for a box of an image outside the batch. On a GPU its bins are zero and it has no gradient.
    """
    check_floating(input, "input")
    check_rank(input, "input", (4,), "[N, C, H, W]")
    size = pair(output_size, "output_size", 1)
    return _op(input, as_rois(input, boxes), size, float(spatial_scale))[0]
