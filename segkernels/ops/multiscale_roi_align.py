"""RoI Align over a feature pyramid: chooses each box's level and pools all of them in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from segkernels._layout import is_channels_last, memory_format
from segkernels._register import register
from segkernels.ops._arguments import check_floating, check_rank, check_same_device, pair
from segkernels.ops._boxes import Boxes, as_rois


def _fake(features, boxes, output_size, *parameters):
    first = features[0]
    shape = (boxes.shape[0], first.shape[1], *output_size)
    return torch.empty(shape, dtype=first.dtype, device=first.device, memory_format=memory_format(first))


def _backward_fake(grad_output, boxes, batch, sizes, *parameters):
    layout = torch.channels_last if parameters[-1] else torch.contiguous_format
    shapes = [(batch, grad_output.shape[1], *sizes[i : i + 2]) for i in range(0, len(sizes), 2)]
    kind = {"dtype": grad_output.dtype, "device": grad_output.device}
    return [torch.empty(shape, memory_format=layout, **kind) for shape in shapes]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    features, boxes, _, *ctx.sampling = inputs
    ctx.batch = features[0].shape[0]
    ctx.sizes = [size for map in features for size in map.shape[2:]]
    ctx.channels_last = is_channels_last(features[0])
    ctx.save_for_backward(boxes)


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    (boxes,) = ctx.saved_tensors
    grads = _op_backward(grad, boxes, ctx.batch, ctx.sizes, *ctx.sampling, ctx.channels_last)
    return list(grads), None, None, None, None, None, None, None


def _setup_context_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    grad_output, boxes, _, _, *ctx.sampling, _ = inputs
    ctx.output_size = list(grad_output.shape[2:])
    ctx.save_for_backward(boxes)


def _double_backward(ctx: Any, grads: list[torch.Tensor]) -> tuple[Any, ...]:
    # Linear in grad_output, and its transpose is the forward op.
    (boxes,) = ctx.saved_tensors
    return _op(list(grads), boxes, ctx.output_size, *ctx.sampling), *[None] * 9


_op = register(
    "multiscale_roi_align",
    "(Tensor[] features, Tensor boxes, SymInt[2] output_size, float[] spatial_scales, int sampling_ratio, bool aligned, "
    "float canonical_scale, float canonical_level) -> Tensor",
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
)
_op_backward = register(
    "multiscale_roi_align_backward",
    "(Tensor grad_output, Tensor boxes, SymInt batch, SymInt[] sizes, float[] spatial_scales, int sampling_ratio, "
    "bool aligned, float canonical_scale, float canonical_level, bool channels_last) -> Tensor[]",
    fake=_backward_fake,
    backward=_double_backward,
    setup_context=_setup_context_backward,
)


def multiscale_roi_align(
    features: Sequence[torch.Tensor],
    boxes: Boxes,
    output_size: int | Sequence[int],
    spatial_scales: Sequence[float],
    sampling_ratio: int = 2,
    aligned: bool = False,
    canonical_scale: float = 224,
    canonical_level: float = 4,
) -> torch.Tensor:
    """:func:`roi_align` of each box on the level of a feature pyramid that suits its size, in one call.

    Replaces what :class:`torchvision.ops.MultiScaleRoIAlign` computes, without its loop over levels and its host syncs
    (Feature Pyramid Networks, Lin et al. 2017, equation 1).

    Args:
        features (list of Tensor[N, C, H, W]): maps of one dtype, from the finest to the coarsest; float32, float64,
            float16 or bfloat16.
        boxes: as for :func:`roi_align`, in image pixels.
        output_size: ``(height, width)`` of the bins, or one number for both.
        spatial_scales: factor from image pixels to each map's, such as ``[1/4, 1/8, 1/16, 1/32]``: powers of two, each
            half of the one before, since the level of a box is counted from the first one's exponent.
        sampling_ratio: samples per bin and axis; 0 or less takes ``ceil(bin size)``. Default: 2.
        aligned: as for :func:`roi_align`. Default: False.
        canonical_scale, canonical_level: a box of ``canonical_scale`` squared is pooled from the map of scale
            ``2 ** -canonical_level``. Default: 224 and 4.

    Returns:
        Tensor[K, C, output_size[0], output_size[1]]: in the dtype and memory format of ``features[0]``; zeros for a box of
        negative or NaN area, which has no level.

    Deterministic, forward and backward, the same bits for any number of threads; twice differentiable in ``features``.

    Raises:
        ValueError, TypeError: for a wrong number of maps or scales, or a wrong rank, dtype, device or shape.
        RuntimeError: on CPU, for a box of an image outside the batch. On a GPU its bins are zero and it has no gradient.
    """
    maps = list(features)
    scales = [float(scale) for scale in spatial_scales]
    if not maps or len(maps) != len(scales):
        raise ValueError(f"spatial_scales: expected one for each of {len(maps)} maps (at least 1), got {len(scales)}")
    if min(scales) <= 0:
        raise ValueError(f"spatial_scales: expected positive numbers, got {scales}")
    first = maps[0]
    for map in maps:
        check_floating(map, "features")
        check_rank(map, "features", (4,), "[N, C, H, W]")
        check_same_device(first, map, "features", "features")
        if map.dtype != first.dtype or map.shape[:2] != first.shape[:2]:
            raise ValueError(
                f"features: expected maps of one dtype, batch and channels, got {first.dtype} {list(first.shape)} and "
                f"{map.dtype} {list(map.shape)}"
            )
    rois = as_rois(first, boxes)
    size = pair(output_size, "output_size", 1)
    options = int(sampling_ratio), bool(aligned), float(canonical_scale), float(canonical_level)
    return _op(maps, rois, size, scales, *options)
