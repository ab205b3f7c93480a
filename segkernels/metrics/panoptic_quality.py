"""Panoptic quality: how well predicted segments match the true ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from segkernels.ops.confusion_matrix import confusion_matrix

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class PanopticQuality(nn.Module):
    """Panoptic quality (Kirillov et al. 2019) by panopticapi's rules, from labels and instance ids.

    ``metric.update(prediction, target)``, ``metric.compute()``, ``metric.reset()``, as torchmetrics' ``PanopticQuality``. A
    predicted and a true segment of one category match where their intersection over union, without the predicted segment's
    pixels on void, is above 0.5. A prediction of which more than half lies on void, or on crowds of its category, is no
    false positive, and a crowd is never matched nor missed.

    Args:
        things: category ids whose instances are told apart.
        stuff: category ids of one segment an image; their instance ids are ignored. Any other id is void.

    Raises:
        ValueError: for an id that is both, or no ids at all.
    """

    statistics: torch.Tensor
    categories: torch.Tensor
    _is_stuff: torch.Tensor

    def __init__(self, things: Iterable[int], stuff: Iterable[int]) -> None:
        super().__init__()
        things, stuff = set(things), set(stuff)
        if things & stuff:
            raise ValueError(f"things and stuff: expected different ids, got {sorted(things & stuff)} in both")
        if not things | stuff:
            raise ValueError("things and stuff: expected at least one category id")
        ids = sorted(things | stuff)
        self.things, self.stuff = sorted(things), sorted(stuff)
        self.register_buffer("categories", torch.tensor(ids, dtype=torch.int64), persistent=False)
        self.register_buffer("_is_stuff", torch.tensor([c in stuff for c in ids] + [True]), persistent=False)
        # Sum of the matches' IoU, true positives, false positives, false negatives of each category.
        self.register_buffer("statistics", torch.zeros((4, len(ids)), dtype=torch.float64))

    def update(self, prediction: torch.Tensor, target: torch.Tensor, crowd: torch.Tensor | None = None) -> None:
        """Adds a batch.

        Args:
            prediction, target (Tensor[N, *, 2]): category and instance id of each pixel, of an integer dtype.
            crowd (Tensor[N, *]): bool, the target's pixels that belong to crowds.

        Raises:
            ValueError, TypeError: for a wrong shape or dtype.
        """
        self.statistics += self._batch(prediction, target, crowd)

    def forward(self, prediction: torch.Tensor, target: torch.Tensor, crowd: torch.Tensor | None = None) -> dict[str, Any]:
        """Adds a batch and returns what :meth:`compute` would for this batch alone."""
        batch = self._batch(prediction, target, crowd)
        self.statistics += batch
        return self._figures(batch)

    def compute(self) -> dict[str, Any]:
        """The figures of what was accumulated.

        Returns:
            dict: ``pq``, ``sq``, ``rq``: float64 scalars, means over the categories that occur in the targets or predictions
            (NaN when none does); ``per_class``: category id -> ``{'pq', 'sq', 'rq', 'tp', 'fp', 'fn'}``.
        """
        return self._figures(self.statistics)

    def reset(self) -> None:
        """Forgets everything."""
        self.statistics.zero_()

    def all_reduce(self, group: dist.ProcessGroup | None = None) -> None:
        """Sums the statistics over the processes of ``group``, in place; nothing without an initialised process group."""
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(self.statistics, group=group)

    def _batch(self, prediction: torch.Tensor, target: torch.Tensor, crowd: torch.Tensor | None) -> torch.Tensor:
        for name, labels in (("prediction", prediction), ("target", target)):
            if labels.dtype not in _INTEGERS:
                raise TypeError(f"{name}: expected an integer dtype, got {labels.dtype}")
        if prediction.dim() < 3 or prediction.shape[-1] != 2:
            raise ValueError(f"prediction: expected [N, *, 2] (category, instance), got shape {list(prediction.shape)}")
        if prediction.shape != target.shape:
            raise ValueError(f"target: expected prediction's shape {list(prediction.shape)}, got {list(target.shape)}")
        if crowd is None:
            crowd = torch.zeros(target.shape[:-1], dtype=torch.bool, device=target.device)
        if crowd.shape != target.shape[:-1]:
            raise ValueError(f"crowd: expected shape {list(target.shape[:-1])}, got {list(crowd.shape)}")
        statistics = torch.zeros_like(self.statistics)
        for image in zip(prediction, target, crowd.bool()):
            statistics += self._image(*image)
        return statistics

    def _segments(self, labels: torch.Tensor, crowd: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Segment of each pixel; category (the last one is void) and whether it is a crowd, of each segment."""
        category, instance = labels.reshape(-1, 2).long().unbind(1)
        void = len(self.categories)
        place = torch.searchsorted(self.categories, category.contiguous()).clamp(max=void - 1)
        place = torch.where(self.categories[place] == category, place, void)
        instances, instance = torch.unique(torch.where(self._is_stuff[place], 0, instance), return_inverse=True)
        key = (place * len(instances) + instance) * 2 + (crowd.flatten() & (place != void))
        keys, pixels = torch.unique(key, return_inverse=True)
        return pixels, keys // 2 // max(len(instances), 1), keys % 2 == 1

    def _image(self, prediction: torch.Tensor, target: torch.Tensor, crowd: torch.Tensor) -> torch.Tensor:
        void = len(self.categories)
        predicted, category, _ = self._segments(prediction, torch.zeros_like(crowd))
        true, true_category, is_crowd = self._segments(target, crowd)
        if len(predicted) == 0:
            return torch.zeros_like(self.statistics)
        size = max(len(category), len(true_category))
        joint = confusion_matrix(predicted, true, size)[: len(true_category), : len(category)]
        on_void = joint[true_category == void].sum(0)
        area = joint.sum(0)
        union = area - on_void + joint.sum(1, keepdim=True) - joint
        same = (true_category[:, None] == category) & (category != void)
        # Above one half, at most one segment can match another.
        matched = same & ~is_crowd[:, None] & (2 * joint > union)
        iou = torch.where(matched, joint / union.clamp(min=1).double(), 0.0).sum(1)
        on_crowd = torch.where(same & is_crowd[:, None], joint, 0).sum(0)
        false_positive = (category != void) & ~matched.any(0) & (2 * (on_void + on_crowd) <= area)
        false_negative = (true_category != void) & ~is_crowd & ~matched.any(1)
        order = torch.arange(void, device=category.device)[:, None]
        of_true, of_predicted = (order == true_category).double(), (order == category).double()
        hits = of_true @ matched.any(1).double()
        return torch.stack([of_true @ iou, hits, of_predicted @ false_positive.double(), of_true @ false_negative.double()])

    def _figures(self, statistics: torch.Tensor) -> dict[str, Any]:
        iou, tp, fp, fn = statistics
        total = tp + 0.5 * fp + 0.5 * fn
        figures = {"pq": iou / total.clamp(min=0.5), "sq": iou / tp.clamp(min=1), "rq": tp / total.clamp(min=0.5)}
        result: dict[str, Any] = {name: values[total > 0].mean() for name, values in figures.items()}
        counts = {"tp": tp, "fp": fp, "fn": fn}
        result["per_class"] = {
            category: {name: values[i].item() for name, values in figures.items()}
            | {name: int(values[i]) for name, values in counts.items()}
            for i, category in enumerate(self.categories.tolist())
        }
        return result
