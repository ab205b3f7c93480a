"""RoI Align over a feature pyramid in Triton: roi_align's kernels, all levels in one launch."""

from __future__ import annotations

from segkernels.triton.roi_align import pool, pool_backward


def multiscale_roi_align(
    features, boxes, output_size, spatial_scales, sampling_ratio, aligned, canonical_scale, canonical_level
):
    return pool(features, boxes, output_size, spatial_scales, sampling_ratio, aligned, canonical_scale, canonical_level)


def multiscale_roi_align_backward(
    grad_output, boxes, batch, sizes, spatial_scales, sampling_ratio, aligned, canonical_scale, canonical_level, channels_last
):
    return pool_backward(
        grad_output, boxes, batch, sizes, spatial_scales, sampling_ratio, aligned, channels_last, canonical_scale,
        canonical_level,
    )  # fmt: skip


def compile_cases():
    """No kernel of its own."""
    return ()
