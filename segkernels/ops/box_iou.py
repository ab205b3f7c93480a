"""Intersection over union of all pairs of two sets of boxes."""

from __future__ import annotations

from typing import Any

import torch

from segkernels._register import double_backward_through, register
from segkernels.ops._arguments import check_boxes, check_same_device
from segkernels.reference.box_iou import box_iou_backward as reference_backward


def _fake(boxes1, boxes2):
    dtype = torch.float64 if boxes1.dtype == torch.float64 else torch.float32
    return boxes1.new_empty((*boxes1.shape[:-1], boxes2.shape[-2]), dtype=dtype)


def _backward_fake(grad_output, boxes1, boxes2):
    return boxes1.new_empty(boxes1.shape), boxes2.new_empty(boxes2.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    return _op_backward(grad, *ctx.saved_tensors)


_op = register(
    "box_iou",
    "(Tensor boxes1, Tensor boxes2) -> Tensor",
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
)
_double_backward, _double_setup = double_backward_through(reference_backward)
_op_backward = register(
    "box_iou_backward",
    "(Tensor grad_output, Tensor boxes1, Tensor boxes2) -> (Tensor, Tensor)",
    fake=_backward_fake,
    backward=_double_backward,
    setup_context=_double_setup,
)


def box_iou(boxes1: torch.Tensor, boxes2: torch.Tensor) -> torch.Tensor:
    """Intersection over union of every box of one set with every box of another.

    Replaces :func:`torchvision.ops.box_iou`, without its intermediate tensors of all pairs.

    Args:
        boxes1 (Tensor[..., N, 4]): corners ``(x1, y1, x2, y2)`` with ``x1 <= x2`` and ``y1 <= y2``; float32, float64, float16
            or bfloat16.
        boxes2 (Tensor[..., M, 4]): of the same dtype; leading dimensions broadcast.

    Returns:
        Tensor[..., N, M]: float64 for float64, else float32, since half precision cannot hold an area. Two empty boxes and
        NaN give NaN. Deterministic, forward and backward; twice differentiable, with torch's subgradients: half to each of
        two equal edges, and 0 for boxes that do not touch.

    Raises:
        ValueError, TypeError: for a wrong shape, dtype or device.
    """
    check_boxes(boxes1, "boxes1")
    check_boxes(boxes2, "boxes2")
    if boxes1.dtype != boxes2.dtype:
        raise TypeError(f"boxes1 and boxes2: expected one dtype, got {boxes1.dtype} and {boxes2.dtype}")
    check_same_device(boxes1, boxes2, "boxes1", "boxes2")
    leading = boxes1.shape[:-2]
    if leading != boxes2.shape[:-2]:
        try:
            leading = torch.broadcast_shapes(leading, boxes2.shape[:-2])
        except RuntimeError:
            raise ValueError(
                f"boxes1 and boxes2: expected leading dimensions that broadcast, got {list(boxes1.shape)} and "
                f"{list(boxes2.shape)}"
            ) from None
        boxes1 = boxes1.expand(*leading, -1, -1)
        boxes2 = boxes2.expand(*leading, -1, -1)
    return _op(boxes1, boxes2)
