"""RoI Align over a feature pyramid in plain PyTorch: every level pools every box, and each box keeps its own level's."""

from __future__ import annotations

import math

import torch

from segkernels.reference import roi_align as one_level


def box_levels(boxes: torch.Tensor, scales: list[float], canonical_scale: float, canonical_level: float) -> torch.Tensor:
    """The level of each box, int64 [K], -1 for none: equation 1 of Lin et al. 2017, rounded as torchvision does."""
    if len(scales) == 1:
        return torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
    low, high = int(-math.log2(scales[0])), int(-math.log2(scales[-1]))
    side = ((boxes[:, 3] - boxes[:, 1]) * (boxes[:, 4] - boxes[:, 2])).sqrt()
    level = torch.floor(canonical_level + torch.log2(side / canonical_scale) + 1e-6)
    return torch.where(level.isnan(), -1, level.clamp(low, high).nan_to_num() - low).long()


def multiscale_roi_align(
    features: list[torch.Tensor],
    boxes: torch.Tensor,
    output_size: list[int],
    spatial_scales: list[float],
    sampling_ratio: int,
    aligned: bool,
    canonical_scale: float,
    canonical_level: float,
) -> torch.Tensor:
    values = boxes.to(one_level.compute_dtype(features[0].dtype))
    levels = box_levels(values, spatial_scales, canonical_scale, canonical_level)
    output = features[0].new_zeros((len(boxes), features[0].shape[1], *output_size))
    for level, (map, scale) in enumerate(zip(features, spatial_scales)):
        pooled = one_level.roi_align(map, boxes, output_size, scale, sampling_ratio, aligned)
        output = torch.where((levels == level)[:, None, None, None], pooled, output)
    return output.contiguous(memory_format=one_level.memory_format(features[0]))


def multiscale_roi_align_backward(
    grad_output: torch.Tensor,
    boxes: torch.Tensor,
    batch: int,
    sizes: list[int],
    spatial_scales: list[float],
    sampling_ratio: int,
    aligned: bool,
    canonical_scale: float,
    canonical_level: float,
    channels_last: bool,
) -> list[torch.Tensor]:
    values = boxes.to(one_level.compute_dtype(grad_output.dtype))
    levels = box_levels(values, spatial_scales, canonical_scale, canonical_level)
    grads = []
    for level, scale in enumerate(spatial_scales):
        grad = torch.where((levels == level)[:, None, None, None], grad_output, 0)
        height, width = sizes[2 * level : 2 * level + 2]
        grads.append(
            one_level.roi_align_backward(grad, boxes, batch, height, width, scale, sampling_ratio, aligned, channels_last)
        )
    return grads
