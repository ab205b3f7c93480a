"""Metrics of semantic segmentation, all from one accumulated confusion matrix."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn

from segkernels.ops.confusion_matrix import check_labels, count

_AVERAGES = (None, "macro", "micro")


class ConfusionMatrix(nn.Module):
    """Accumulates a confusion matrix, rows targets and columns predictions, and reads the usual figures from it.

    Used as torchmetrics' classes are: ``metric.update(prediction, target)`` or ``metric(prediction, target)``, which also
    returns the figures of that batch alone, then ``metric.compute()`` and ``metric.reset()``. The counts are int64 buffers,
    so that ``to(device)`` and ``state_dict()`` carry them. ``update`` does not wait for the device. Replaces torchvision's
    script ``ConfusionMatrix`` and torchmetrics' ``MulticlassConfusionMatrix``, ``JaccardIndex`` and ``F1Score``.

    Args:
        num_classes: C.
        ignore_index: pixels of this target label are left out. If it is one of the C classes, that class also stays out of
            the means.
        absent: figure of a class that occurs neither in the targets nor in the predictions. ``'nan'``: NaN, left out of
            means, as torchvision's script, mmsegmentation and detectron2 do; ``0.0``: 0, left out of means, as torchmetrics
            does; ``1.0``: 1, and counted in means, as smp does.

    Figures are float64 tensors on the metric's device, fractions and not percent. A class that occurs, but was never
    predicted, has precision 0, and one that was predicted, but does not occur, has recall 0 (scikit-learn, torchmetrics);
    :meth:`mean_accuracy` is over the classes that occur in the targets.

    Attributes:
        matrix (Tensor[C, C]): int64 counts so far.
        invalid (Tensor[2]): how many predicted and how many target labels lay outside [0, C) and were left out. Always 0 on
            CPU, where ``update`` raises for them; on a GPU the figures raise.
    """

    matrix: torch.Tensor
    invalid: torch.Tensor

    def __init__(self, num_classes: int, ignore_index: int | None = None, absent: str | float = "nan") -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes: expected at least 1, got {num_classes}")
        if absent not in ("nan", 0, 1):
            raise ValueError(f"absent: expected 'nan', 0.0 or 1.0, got {absent!r}")
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.absent = float(absent)
        self.register_buffer("matrix", torch.zeros((num_classes, num_classes), dtype=torch.int64))
        self.register_buffer("invalid", torch.zeros(2, dtype=torch.int64))

    def update(self, prediction: torch.Tensor, target: torch.Tensor) -> None:
        """Adds a batch: labels [N, *] or logits [N, C, *], and labels [N, *], as :func:`segkernels.ops.confusion_matrix`.

        Raises:
            ValueError, TypeError: as that function does; the counts are then as before.
        """
        self._add(prediction, target)

    def forward(self, prediction: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
        """Adds a batch and returns what :meth:`compute` would for this batch alone, without waiting for the device."""
        return self._figures(self._add(prediction, target))

    def compute(self) -> dict[str, torch.Tensor]:
        """All figures of what was accumulated.

        Returns:
            dict: scalars ``mean_iou``, ``mean_dice``, ``pixel_accuracy``, ``mean_accuracy``, ``frequency_weighted_iou``,
            ``macro_precision``, ``macro_recall``, ``macro_f1``, ``micro_f1``; per class [C] ``iou``, ``dice``, ``precision``,
            ``recall``, ``f1``; and ``matrix`` [C, C].

        Raises:
            ValueError: on a GPU, when labels outside [0, C) were left out. So does every figure below.
        """
        return self._figures(self._checked())

    def reset(self) -> None:
        """Forgets everything."""
        self.matrix.zero_()
        self.invalid.zero_()

    def all_reduce(self, group: dist.ProcessGroup | None = None) -> None:
        """Sums the counts over the processes of ``group``, in place; once, before the figures are read.

        Without an initialised process group it does nothing.
        """
        if not (dist.is_available() and dist.is_initialized()):
            return
        counts = torch.cat([self.matrix.flatten(), self.invalid])
        dist.all_reduce(counts, group=group)
        self.matrix.copy_(counts[:-2].view_as(self.matrix))
        self.invalid.copy_(counts[-2:])

    def iou(self) -> torch.Tensor:
        """Intersection over union of each class [C]."""
        return self._iou(self._checked())

    def mean_iou(self) -> torch.Tensor:
        """Mean of :meth:`iou`."""
        matrix = self._checked()
        return self._mean(self._iou(matrix), matrix)

    def dice(self) -> torch.Tensor:
        """Dice coefficient of each class [C]; the same as ``f1()``."""
        return self._f1(self._checked())

    def mean_dice(self) -> torch.Tensor:
        """Mean of :meth:`dice`."""
        return self.f1("macro")

    def pixel_accuracy(self) -> torch.Tensor:
        """Share of the pixels whose class is right."""
        return self._pixel_accuracy(self._checked())

    def mean_accuracy(self) -> torch.Tensor:
        """Mean recall of the classes that occur in the targets."""
        return self._mean_accuracy(self._checked())

    def frequency_weighted_iou(self) -> torch.Tensor:
        """Mean of :meth:`iou`, weighted by how often each class occurs in the targets."""
        return self._frequency_weighted_iou(self._checked())

    def precision(self, average: str | None = None) -> torch.Tensor:
        """Share of the pixels predicted as a class that are of it: per class [C], their mean, or of all pixels together."""
        matrix = self._checked()
        return self._average(self._precision(matrix), matrix, average)

    def recall(self, average: str | None = None) -> torch.Tensor:
        """Share of the pixels of a class that are predicted as it: per class [C], their mean, or of all pixels together."""
        matrix = self._checked()
        return self._average(self._recall(matrix), matrix, average)

    def f1(self, average: str | None = None) -> torch.Tensor:
        """Harmonic mean of precision and recall: per class [C], their mean (``'macro'``), or of all pixels together
        (``'micro'``, which equals :meth:`pixel_accuracy`)."""
        matrix = self._checked()
        return self._average(self._f1(matrix), matrix, average)

    def extra_repr(self) -> str:
        return f"num_classes={self.num_classes}, ignore_index={self.ignore_index}, absent={self.absent}"

    def _add(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if target.device != self.matrix.device:
            raise ValueError(
                f"target: expected the metric's device {self.matrix.device} (move it with to()), got {target.device}"
            )
        matrix, invalid = count(prediction, target, self.num_classes, self.ignore_index)
        check_labels(invalid, prediction, target, self.num_classes, self.ignore_index)
        self.matrix.add_(matrix)
        self.invalid.add_(invalid)
        return matrix

    def _checked(self) -> torch.Tensor:
        predictions, targets = self.invalid.tolist()
        if predictions or targets:
            raise ValueError(
                f"ConfusionMatrix: expected labels in [0, {self.num_classes}) or ignore_index={self.ignore_index}, "
                f"got {predictions} predictions and {targets} targets outside, which were left out"
            )
        return self.matrix

    def _figures(self, matrix: torch.Tensor) -> dict[str, torch.Tensor]:
        iou, f1 = self._iou(matrix), self._f1(matrix)
        precision, recall = self._precision(matrix), self._recall(matrix)
        pixel_accuracy = self._pixel_accuracy(matrix)
        macro_f1 = self._mean(f1, matrix)
        return {
            "mean_iou": self._mean(iou, matrix),
            "mean_dice": macro_f1,
            "pixel_accuracy": pixel_accuracy,
            "mean_accuracy": self._mean_accuracy(matrix),
            "frequency_weighted_iou": self._frequency_weighted_iou(matrix),
            "macro_precision": self._mean(precision, matrix),
            "macro_recall": self._mean(recall, matrix),
            "macro_f1": macro_f1,
            "micro_f1": pixel_accuracy,
            "iou": iou,
            "dice": f1,
            "precision": precision,
            "recall": recall,
            "f1": f1,
            "matrix": matrix.clone(),
        }

    def _present(self, matrix: torch.Tensor) -> torch.Tensor:
        return (matrix.sum(0) + matrix.sum(1)) > 0

    def _per_class(self, hits: torch.Tensor, total: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
        ratio = hits.double() / total.clamp(min=1)
        return torch.where(self._present(matrix), ratio, self.absent)

    def _iou(self, matrix: torch.Tensor) -> torch.Tensor:
        hits = matrix.diagonal()
        return self._per_class(hits, matrix.sum(0) + matrix.sum(1) - hits, matrix)

    def _f1(self, matrix: torch.Tensor) -> torch.Tensor:
        return self._per_class(2 * matrix.diagonal(), matrix.sum(0) + matrix.sum(1), matrix)

    def _precision(self, matrix: torch.Tensor) -> torch.Tensor:
        return self._per_class(matrix.diagonal(), matrix.sum(0), matrix)

    def _recall(self, matrix: torch.Tensor) -> torch.Tensor:
        return self._per_class(matrix.diagonal(), matrix.sum(1), matrix)

    def _pixel_accuracy(self, matrix: torch.Tensor) -> torch.Tensor:
        total = matrix.sum()
        return torch.where(total > 0, matrix.trace().double() / total, self.absent)

    def _mean_accuracy(self, matrix: torch.Tensor) -> torch.Tensor:
        return self._mean_over(self._recall(matrix), matrix.sum(1) > 0)

    def _frequency_weighted_iou(self, matrix: torch.Tensor) -> torch.Tensor:
        occurrences = matrix.sum(1)
        iou = torch.where(occurrences > 0, self._iou(matrix), 0.0)
        total = occurrences.sum()
        return torch.where(total > 0, (iou * occurrences).sum() / total, self.absent)

    def _mean(self, values: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
        """Over the classes that count: the present ones, and absent ones where they count as perfect; not the ignored one."""
        counted = torch.ones_like(values, dtype=torch.bool) if self.absent == 1.0 else self._present(matrix)
        if self.ignore_index is not None and 0 <= self.ignore_index < self.num_classes:
            classes = torch.arange(self.num_classes, device=matrix.device)
            counted = counted & (classes != self.ignore_index)
        return self._mean_over(values, counted)

    def _mean_over(self, values: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
        number = counted.sum()
        mean = torch.where(counted, values, 0.0).sum() / number
        return torch.where(number > 0, mean, self.absent)

    def _average(self, values: torch.Tensor, matrix: torch.Tensor, average: str | None) -> torch.Tensor:
        if average not in _AVERAGES:
            raise ValueError(f"average: expected one of {_AVERAGES}, got {average!r}")
        if average is None:
            return values
        return self._mean(values, matrix) if average == "macro" else self._pixel_accuracy(matrix)
