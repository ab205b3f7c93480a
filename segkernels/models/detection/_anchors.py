"""Anchors: the boxes around each place of a feature map that a region proposal network starts from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from segkernels.models.detection._boxes import constant, full_precision


def _cell(sizes: Sequence[float], aspect_ratios: Sequence[float]) -> torch.Tensor:
    """[len(aspect_ratios) * len(sizes), 4]: whole-pixel boxes around the origin; a ratio is height / width."""
    ratio = torch.tensor(aspect_ratios, dtype=torch.float32, device="cpu").sqrt()[:, None]
    size = torch.tensor(sizes, dtype=torch.float32, device="cpu")
    width, height = ((1 / ratio) * size).flatten(), (ratio * size).flatten()
    return (torch.stack([-width, -height, width, height], 1) / 2).round()


class AnchorGenerator(nn.Module):
    """Anchors of each size and aspect ratio at each place of each map.

    Args:
        sizes: for each map, the square roots of the anchors' areas in pixels of the image. Default: one size a map, 32 on
            the finest of five maps to 512 on the coarsest.
        aspect_ratios: for each map, heights divided by widths. Default: 0.5, 1 and 2.
    """

    def __init__(
        self,
        sizes: Sequence[Sequence[float]] = ((32,), (64,), (128,), (256,), (512,)),
        aspect_ratios: Sequence[Sequence[float]] = ((0.5, 1.0, 2.0),) * 5,
    ) -> None:
        super().__init__()
        if len(sizes) != len(aspect_ratios):
            raise ValueError(f"aspect_ratios: expected one for each of {len(sizes)} maps, got {len(aspect_ratios)}")
        self.sizes = sizes
        self.aspect_ratios = aspect_ratios
        self._cells = [_cell(*options) for options in zip(sizes, aspect_ratios)]
        # Training mostly repeats a few sizes; the last one's anchors are kept.
        self._key: tuple[object, ...] = ()
        self._anchors: list[torch.Tensor] = []

    def num_anchors_per_location(self) -> list[int]:
        """Anchors at each place of each map."""
        return [len(cell) for cell in self._cells]

    def forward(self, image_size: Sequence[int], maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """
        Args:
            image_size: ``(height, width)`` of the batch.
            maps (list of Tensor[N, C, h, w]): as many as ``sizes``; only their shapes, dtype and device matter.

        Returns:
            list of Tensor[h * w * A, 4]: row by row, the A anchors of a place together; at least float32.

        Raises:
            ValueError: for another number of maps.
        """
        if len(maps) != len(self._cells):
            raise ValueError(f"maps: expected {len(self._cells)}, one for each of sizes, got {len(maps)}")
        like = full_precision(maps[0].new_empty(0))
        key = (*image_size, *(tuple(map.shape[2:]) for map in maps), like.dtype, like.device)
        if key != self._key:
            self._anchors = [
                self._grid(constant(cell.tolist(), like), image_size, map.shape[2:]) for cell, map in zip(self._cells, maps)
            ]
            self._key = key
        return self._anchors

    @staticmethod
    def _grid(cell: torch.Tensor, image_size: Sequence[int], size: Sequence[int]) -> torch.Tensor:
        y = torch.arange(size[0], device=cell.device) * (image_size[0] // size[0])
        x = torch.arange(size[1], device=cell.device) * (image_size[1] // size[1])
        y, x = torch.meshgrid(y, x, indexing="ij")
        places = torch.stack([x, y, x, y], -1)  # [h, w, 4]
        return (places.reshape(-1, 1, 4) + cell).reshape(-1, 4)
