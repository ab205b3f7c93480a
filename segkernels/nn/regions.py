"""Region modules: torchvision's constructors, calls and repr."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from segkernels import ops
from segkernels.ops._boxes import Boxes


class RoIAlign(nn.Module):
    """:class:`torchvision.ops.RoIAlign` on :func:`segkernels.ops.roi_align`, whose arguments it keeps."""

    def __init__(
        self, output_size: int | Sequence[int], spatial_scale: float, sampling_ratio: int, aligned: bool = False
    ) -> None:
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned

    def forward(self, input: torch.Tensor, rois: Boxes) -> torch.Tensor:
        return ops.roi_align(input, rois, self.output_size, self.spatial_scale, self.sampling_ratio, self.aligned)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(output_size={self.output_size}, spatial_scale={self.spatial_scale}, "
            f"sampling_ratio={self.sampling_ratio}, aligned={self.aligned})"
        )


class RoIPool(nn.Module):
    """:class:`torchvision.ops.RoIPool` on :func:`segkernels.ops.roi_pool`, whose arguments it keeps."""

    def __init__(self, output_size: int | Sequence[int], spatial_scale: float) -> None:
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale

    def forward(self, input: torch.Tensor, rois: Boxes) -> torch.Tensor:
        return ops.roi_pool(input, rois, self.output_size, self.spatial_scale)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(output_size={self.output_size}, spatial_scale={self.spatial_scale})"


class MultiScaleRoIAlign(nn.Module):
    """:class:`torchvision.ops.MultiScaleRoIAlign` on :func:`segkernels.ops.multiscale_roi_align`.

    Args:
        featmap_names: names of the maps to pool from, finest first; other maps are ignored.
        output_size: of the pooled regions, one number or ``(height, width)``.
        sampling_ratio: as for :func:`segkernels.ops.roi_align`.
        canonical_scale, canonical_level: as for :func:`segkernels.ops.multiscale_roi_align`. Default: 224 and 4.
    """

    def __init__(
        self,
        featmap_names: list[str],
        output_size: int | Sequence[int],
        sampling_ratio: int,
        *,
        canonical_scale: int = 224,
        canonical_level: int = 4,
    ) -> None:
        super().__init__()
        self.featmap_names = featmap_names
        self.sampling_ratio = sampling_ratio
        self.output_size = (output_size, output_size) if isinstance(output_size, int) else tuple(output_size)
        self.canonical_scale = canonical_scale
        self.canonical_level = canonical_level
        # Taken from the first call's sizes and kept, as torchvision does.
        self.scales: list[float] | None = None

    def forward(
        self, x: Mapping[str, torch.Tensor], boxes: list[torch.Tensor], image_shapes: Sequence[tuple[int, int]]
    ) -> torch.Tensor:
        """
        Args:
            x (dict of Tensor[N, C, H, W]): maps by name, from the finest to the coarsest.
            boxes (list of Tensor[L, 4]): one tensor per image, in image pixels.
            image_shapes: ``(height, width)`` of each image before the backbone.

        Raises:
            ValueError: without an image or a map of the given names.
        """
        maps = [value for name, value in x.items() if name in self.featmap_names]
        if not maps:
            raise ValueError(f"x: expected maps named {self.featmap_names}, got {list(x)}")
        if self.scales is None:
            if not image_shapes:
                raise ValueError("image_shapes: expected at least one (height, width)")
            height = max(shape[0] for shape in image_shapes)
            # Backbones halve: the scale is the nearest power of two.
            self.scales = [2.0 ** round(math.log2(map.shape[-2] / height)) for map in maps]
        return ops.multiscale_roi_align(
            maps,
            boxes,
            self.output_size,
            self.scales,
            self.sampling_ratio,
            canonical_scale=self.canonical_scale,
            canonical_level=self.canonical_level,
        )

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(featmap_names={self.featmap_names}, output_size={self.output_size}, "
            f"sampling_ratio={self.sampling_ratio})"
        )
