"""Confusion matrix in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def predicted_labels(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Lowest class of the largest logit, bilinearly upsampled to the target's size where it is larger."""
    if logits.shape[2:] != target.shape[1:]:
        wide = logits if logits.dtype == torch.float64 else logits.float()
        logits = F.interpolate(wide, size=target.shape[1:], mode="bilinear", align_corners=False)
    return logits.argmax(1)


def label_bins(labels: torch.Tensor, num_classes: int, ignore_index: int | None) -> torch.Tensor:
    """The label, ``num_classes`` for the ignored one, ``num_classes + 1`` for any other outside [0, num_classes)."""
    labels = labels.long()
    bins = torch.where((labels >= 0) & (labels < num_classes), labels, num_classes + 1)
    return bins if ignore_index is None else torch.where(labels == ignore_index, num_classes, bins)


def confusion_matrix(
    prediction: torch.Tensor, target: torch.Tensor, num_classes: int, ignore_index: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    if prediction.is_floating_point():
        prediction = predicted_labels(prediction, target)
    rows = label_bins(target, num_classes, ignore_index)
    # A class that the target ignores is still a class to predict.
    is_class = ignore_index is not None and 0 <= ignore_index < num_classes
    cols = label_bins(prediction, num_classes, None if is_class else ignore_index)
    size = num_classes + 2
    bins = (rows * size + cols).flatten()
    table = torch.zeros(size * size, dtype=torch.int64, device=target.device)
    # bincount waits for the device to learn its length.
    table = table.scatter_add_(0, bins, torch.ones_like(bins)).view(size, size)
    invalid = torch.stack([table[:, -1].sum(), table[-1].sum()])
    return table[:num_classes, :num_classes].contiguous(), invalid
