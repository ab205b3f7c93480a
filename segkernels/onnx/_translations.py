"""The translations: functions named as the dispatcher ops, with the same arguments.

The exporter calls them with the graph's values for tensors and with Python's own values for the rest; a SymInt that is
not known at export is a value too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from onnx import TensorProto
from onnxscript import opset18

from segkernels.reference.upsample_bilinear2d import taps
from segkernels.reference.upsample_nearest2d import sources

#: Its annotations ask for tensors where Python's own ints and lists do.
op: Any = opset18
#: A value of the ONNX graph, of any type: these functions are not dispatched by dtype.
Value = Any

_LABELS = {8: TensorProto.UINT8, 32: TensorProto.INT32, 64: TensorProto.INT64}
_HALF = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


def conv2d(input, weight, bias, stride, padding, dilation, groups):
    return op.Conv(input, weight, bias, strides=stride, pads=[*padding, *padding], dilations=dilation, group=groups)


def conv_transpose1d(input, weight, bias, stride, padding, output_padding, groups, dilation):
    return conv_transpose2d(input, weight, bias, [stride], [padding], [output_padding], groups, [dilation])


def conv_transpose2d(input, weight, bias, stride, padding, output_padding, groups, dilation):
    return op.ConvTranspose(
        input,
        weight,
        bias,
        strides=stride,
        pads=[*padding, *padding],
        output_padding=output_padding,
        dilations=dilation,
        group=groups,
    )


def depthwise_separable_conv2d(
    input, depthwise_weight, pointwise_weight, depthwise_bias, pointwise_bias, stride, padding, dilation, relu
):
    hidden = conv2d(input, depthwise_weight, depthwise_bias, stride, padding, dilation, input.shape[1])
    output = op.Conv(op.Relu(hidden) if relu else hidden, pointwise_weight, pointwise_bias)
    return op.Relu(output) if relu else output


def multi_dilation_conv2d(input, weights, dilations):
    results = []
    for weight, dilation in zip(weights * len(dilations) if len(weights) == 1 else weights, dilations):
        padding = [dilation * (k // 2) for k in weight.shape[2:]]
        results.append(conv2d(input, weight, None, [1, 1], padding, [dilation, dilation], 1))
    return op.Concat(*results, axis=1)


def _origins(map: Value, axis: int, stride: int, padding: int) -> Value:
    """The row (axis 2, [h, 1]) or column (axis 3, [w]) of the input at which each window of a pooled map begins."""
    count = op.Squeeze(op.Shape(map, start=axis, end=axis + 1), [0])
    first = op.Sub(op.Mul(op.Range(0, count, 1), stride), padding)
    return op.Unsqueeze(first, [1]) if axis == 2 else first


def max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode, index_bits):
    output, flat = op.MaxPool(
        input,
        ceil_mode=int(ceil_mode),
        kernel_shape=kernel_size,
        strides=stride,
        pads=[*padding, *padding],
        dilations=dilation,
    )
    if index_bits == 0:
        return output, op.Cast(op.ConstantOfShape([0]), to=TensorProto.UINT8)
    # ONNX counts through the whole tensor, torch through the plane.
    positions = op.Mod(flat, op.ReduceProd(op.Shape(input, start=2), keepdims=0))
    if index_bits == 64:
        return output, positions
    width = op.Shape(input, start=3)
    rows = op.Sub(op.Div(positions, width), _origins(output, 2, stride[0], padding[0]))
    columns = op.Sub(op.Mod(positions, width), _origins(output, 3, stride[1], padding[1]))
    offsets = op.Add(op.Mul(op.Div(rows, dilation[0]), kernel_size[1]), op.Div(columns, dilation[1]))
    return output, op.Cast(offsets, to=TensorProto.UINT8)


def max_unpool2d(input, indices, output_size, kernel_size, stride, padding):
    size = _tensor(output_size)
    positions = indices
    if indices.dtype == TensorProto.UINT8:
        offsets = op.Cast(indices, to=TensorProto.INT64)
        rows = op.Add(op.Div(offsets, kernel_size[1]), _origins(input, 2, stride[0], padding[0]))
        columns = op.Add(op.Mod(offsets, kernel_size[1]), _origins(input, 3, stride[1], padding[1]))
        positions = op.Add(op.Mul(rows, op.Slice(size, [1], [2])), columns)
    planes = op.Shape(input, end=2)
    area = op.ReduceProd(size)
    if _is_static(input, output_size) and list(output_size) == [
        (input.shape[2 + d] - 1) * stride[d] - 2 * padding[d] + kernel_size[d] for d in range(2)
    ]:
        # ONNX counts through the whole tensor.
        number = op.Range(0, op.ReduceProd(planes, keepdims=0), 1)
        start = op.Mul(op.Reshape(number, op.Concat(planes, op.Constant(value_ints=[1, 1]), axis=0)), area)
        pads = [*padding, *padding]
        return op.MaxUnpool(input, op.Add(positions, start), kernel_shape=kernel_size, strides=stride, pads=pads)
    zeros = op.CastLike(op.ConstantOfShape(op.Concat(planes, area, axis=0)), input)
    filled = op.ScatterElements(zeros, op.Reshape(positions, [0, 0, -1]), op.Reshape(input, [0, 0, -1]), axis=2)
    return op.Reshape(filled, op.Concat(planes, size, axis=0))


def bed_of_nails(input, scale):
    blocks = op.Pad(op.Unsqueeze(input, [3, 5]), [0, 0, 0, 0, 0, 0, 0, 0, 0, scale[0] - 1, 0, scale[1] - 1])
    return op.Reshape(blocks, op.Mul(op.Shape(input), [1, 1, *scale]))


def _is_static(input: Value, output_size: Sequence[Any]) -> bool:
    return all(isinstance(size, int) for size in (*input.shape[2:], *output_size))


def _tensor(sizes: Sequence[Any]) -> Value:
    if all(isinstance(size, int) for size in sizes):
        return op.Constant(value_ints=list(sizes))
    parts = [op.Constant(value_ints=[size]) if isinstance(size, int) else op.Reshape(size, [-1]) for size in sizes]
    return op.Concat(*parts, axis=0)


def _resize(input: Value, output_size: Sequence[Any], scales: Sequence[float | None], **mode: str) -> Value:
    if None not in scales and not _is_static(input, output_size):
        return op.Resize(input, None, op.Constant(value_floats=[1.0, 1.0, *scales]), **mode)
    sizes = op.Concat(op.Shape(input, end=2), _tensor(output_size), axis=0)
    return op.Resize(input, None, None, sizes, **mode)


def upsample_bilinear2d(input, output_size, align_corners, scales_h, scales_w):
    scales = [None, None] if align_corners else [scales_h, scales_w]
    if _is_static(input, output_size):
        sizes = list(zip((2, 3), input.shape[2:], output_size, scales))
        if any(scale is not None and old * scale != new for _, old, new, scale in sizes):
            # Resize takes a ratio or a size, not a size and the ratio it was rounded from.
            return _interpolated(input, sizes)
    return _bilinear(input, output_size, align_corners, scales)


def _bilinear(input: Value, output_size: Sequence[Any], align_corners: bool, scales: Sequence[float | None]) -> Value:
    transformation = "align_corners" if align_corners else "half_pixel"
    return _resize(input, output_size, scales, mode="linear", coordinate_transformation_mode=transformation)


def _interpolated(input: Value, sizes: Sequence[tuple[int, int, int, float | None]]) -> Value:
    for axis, old, new, scale in reversed(sizes):
        low, high, weight = taps(old, new, False, scale, torch.float32, torch.device("cpu"))
        shape = [-1] + [1] * (3 - axis)
        values = [op.Gather(input, op.Constant(value_ints=tap.tolist()), axis=axis) for tap in (low, high)]
        factors = [op.Reshape(op.Constant(value_floats=w.tolist()), shape) for w in (1 - weight, weight)]
        input = op.Add(*(op.Mul(value, op.CastLike(factor, input)) for value, factor in zip(values, factors)))
    return input


def upsample_nearest2d(input, output_size, scales_h, scales_w):
    if _is_static(input, output_size):
        axes = [
            (axis, new // old if new % old == 0 else 0, sources(old, new, scale, torch.device("cpu")).tolist())
            for axis, old, new, scale in zip((2, 3), input.shape[2:], output_size, (scales_h, scales_w))
        ]
        if any(not repeats or rows != [i // repeats for i in range(len(rows))] for _, repeats, rows in axes):
            # Other ratios are rounded, and by each runtime in its own way.
            for axis, _, rows in axes:
                input = op.Gather(input, op.Constant(value_ints=rows), axis=axis)
            return input
    return _resize(
        input,
        output_size,
        [scales_h, scales_w],
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )


def _wide(input: Value) -> Value:
    return op.Cast(input, to=TensorProto.FLOAT) if input.dtype in _HALF else input


def upsample_argmax(logits, output_size, align_corners, label_bits):
    full = _bilinear(_wide(logits), output_size, align_corners, [None, None])
    labels = op.ArgMax(full, axis=1, keepdims=0)
    return labels if label_bits == 64 else op.Cast(labels, to=_LABELS[label_bits])


def roi_align(input, boxes, output_size, spatial_scale, sampling_ratio, aligned):
    wide = _wide(input)
    # Half-precision boxes are exact in float32; those of another precision take the map's.
    output = op.RoiAlign(
        wide,
        op.CastLike(op.Slice(boxes, [1], [5], [1]), wide),
        op.Cast(op.Squeeze(op.Slice(boxes, [0], [1], [1]), [1]), to=TensorProto.INT64),
        coordinate_transformation_mode="half_pixel" if aligned else "output_half_pixel",
        mode="avg",
        output_height=output_size[0],
        output_width=output_size[1],
        sampling_ratio=max(sampling_ratio, 0),
        spatial_scale=spatial_scale,
    )
    return output if wide is input else op.CastLike(output, input)


def nms(boxes, scores, iou_threshold):
    single = TensorProto.FLOAT
    boxes, scores = op.Cast(boxes, to=single), op.Cast(scores, to=single)
    kept = op.NonMaxSuppression(op.Unsqueeze(boxes, [0]), op.Unsqueeze(scores, [0, 1]), 2**63 - 1, iou_threshold)
    return op.Reshape(op.Slice(kept, [2], [3], [1]), [-1])


TRANSLATIONS = (
    bed_of_nails,
    conv2d,
    conv_transpose1d,
    conv_transpose2d,
    depthwise_separable_conv2d,
    max_pool2d,
    max_unpool2d,
    multi_dilation_conv2d,
    nms,
    roi_align,
    upsample_argmax,
    upsample_bilinear2d,
    upsample_nearest2d,
)
