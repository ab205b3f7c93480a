"""Functions called inside forwards, caught by a mode."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from segkernels import ops
from segkernels._accelerate import _losses as losses
from segkernels._accelerate import _modules as modules
from segkernels._accelerate._classes import devices, suits

#: What a handler returns for arguments that are torch's own.
_OTHER = NotImplemented


class accelerated(TorchFunctionMode):
    """Runs functions on segkernels: ``with segkernels.accelerated(): output = model(image)``.

    For what :func:`accelerate` cannot reach because it is no module. Covered, in this thread, wherever they are called:

    - ``F.interpolate`` of [N, C, h, w], bilinear and nearest, without antialiasing and ``recompute_scale_factor``
    - ``F.max_pool2d`` (with and without indices), ``F.max_unpool2d`` of windows that do not overlap
    - ``F.conv_transpose2d`` where :func:`accelerate` replaces the module
    - ``F.cross_entropy`` of [N, C, H, W] and labels
    - ``torchvision.ops.roi_align`` and ``nms``, and what is made of them (``batched_nms``, detection models): the calls of
      ``torch.ops.torchvision`` are caught

    All other calls and arguments, small inputs and devices without a kernel are torch's and torchvision's own. The gradient of
    what was computed inside may be taken outside. Every torch function called inside costs some microseconds more.
    """

    def __torch_function__(
        self, func: Callable, types: Iterable[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        handler = _HANDLERS.get(func) or _HANDLERS.get(getattr(func, "_qualified_op_name", None))
        if handler is not None:
            result = handler(*args, **kwargs)
            if result is not _OTHER:
                return result
        return func(*args, **kwargs)


_ON = {
    op: devices((op, f"{op}_backward"))
    for op in (
        "conv_transpose2d",
        "max_pool2d",
        "max_unpool2d",
        "roi_align",
        "softmax_statistics",
        "upsample_bilinear2d",
        "upsample_nearest2d",
    )
} | {"nms": devices(("nms",))}


def _interpolate(
    input: Any,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Any:
    op = {"bilinear": "upsample_bilinear2d", "nearest": "upsample_nearest2d"}.get(mode)
    if op is None or antialias or recompute_scale_factor or (size is None) == (scale_factor is None):
        return _OTHER
    if not suits(input, _ON[op]) or input.dim() != 4 or not modules.resamples_faster(input, mode):
        return _OTHER
    if mode == "bilinear":
        return ops.upsample_bilinear2d(input, size, scale_factor, bool(align_corners))
    return _OTHER if align_corners is not None else ops.upsample_nearest2d(input, size, scale_factor)


def _max_pool2d(
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    if not suits(input, _ON["max_pool2d"]) or kernel_size in (1, (1, 1), [1, 1]):
        return _OTHER
    return ops.max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def _max_unpool2d(
    input: Any, indices: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, output_size: Any = None
) -> Any:
    overlap = stride is not None and stride != kernel_size
    if overlap or not suits(input, _ON["max_unpool2d"]) or indices.dtype != torch.int64:
        return _OTHER
    return ops.max_unpool2d(input, indices, kernel_size, stride, padding, output_size)


def _conv_transpose2d(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Any:
    if not suits(input, _ON["conv_transpose2d"]) or weight.dtype != input.dtype:
        return _OTHER
    kernel, step, pad = modules.pair(weight.shape[2:]), modules.pair(stride), modules.pair(padding)
    extra, spread = modules.pair(output_padding), modules.pair(dilation)
    channels = weight.shape[0], weight.shape[1] * groups
    if not modules.transposed_by_us(kernel, step, pad, extra, spread, groups, *channels):
        return _OTHER
    return ops.conv_transpose2d(input, weight, bias, stride, padding, output_padding, groups, dilation)


def _cross_entropy(
    input: Any,
    target: Any,
    weight: Any = None,
    size_average: Any = None,
    ignore_index: int = -100,
    reduce: Any = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Any:
    if size_average is not None or reduce is not None:
        return _OTHER
    loss = losses.cross_entropy(_ON["softmax_statistics"], input, target, weight, ignore_index, reduction, label_smoothing)
    return _OTHER if loss is None else loss


def _roi_align(
    input: Any, rois: Any, spatial_scale: float, height: int, width: int, sampling_ratio: int, aligned: bool
) -> Any:
    if not suits(input, _ON["roi_align"]):
        return _OTHER
    return ops.roi_align(input, rois, (height, width), spatial_scale, sampling_ratio, aligned)


def _nms(boxes: Any, scores: Any, iou_threshold: float) -> Any:
    return ops.nms(boxes, scores, iou_threshold) if suits(boxes, devices(("nms",))) else _OTHER


_HANDLERS: dict[Any, Callable[..., Any]] = {
    F.interpolate: _interpolate,
    F.max_pool2d: _max_pool2d,
    F.max_pool2d_with_indices: _max_pool2d,
    F.max_unpool2d: _max_unpool2d,
    F.conv_transpose2d: _conv_transpose2d,
    F.cross_entropy: _cross_entropy,
    "torchvision::roi_align": _roi_align,
    "torchvision::nms": _nms,
}
