"""Confusion matrix: counts of (target, predicted) class pairs, from labels or straight from logits."""

from __future__ import annotations

import torch

from segkernels._register import register
from segkernels.ops._arguments import check_same_device

_LABELS = (torch.int64, torch.uint8, torch.int32, torch.bool, torch.int16, torch.int8)
_LOGITS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def _fake(prediction, target, num_classes, ignore_index):
    matrix = torch.empty((num_classes, num_classes), dtype=torch.int64, device=target.device)
    return matrix, torch.empty(2, dtype=torch.int64, device=target.device)


_op = register(
    "confusion_matrix",
    "(Tensor prediction, Tensor target, int num_classes, int? ignore_index) -> (Tensor matrix, Tensor invalid)",
    fake=_fake,
)


def confusion_matrix(
    prediction: torch.Tensor, target: torch.Tensor, num_classes: int, ignore_index: int | None = None
) -> torch.Tensor:
    """Counts of (target, predicted) class pairs, from labels or straight from logits.

    Replaces ``bincount(num_classes * target + logits.argmax(1))`` of torchvision's segmentation script, torchmetrics and
    others, and ``interpolate`` before it: neither labels nor upsampled logits are written to memory.

    Args:
        prediction (Tensor[N, *] or Tensor[N, C, *]): labels of any integer dtype or bool; or logits, float32, float64,
            float16 or bfloat16, whose largest class is taken: of equal ones the lowest, and NaN counts as the largest, as for
            :func:`torch.argmax`. Logits [N, C, h, w] smaller than the target [N, H, W] are upsampled bilinearly
            (``align_corners=False``, in float32, or float64 for float64) on the fly.
        target (Tensor[N, *]): labels of any integer dtype or bool.
        num_classes: C.
        ignore_index: pixels of this target label are left out, and so are pixels predicted as it where it is not a class.

    Returns:
        Tensor[C, C]: int64, rows are targets and columns predictions (torchvision, torchmetrics, scikit-learn; detectron2
        is transposed). Empty inputs give zeros. Deterministic; it has no gradient.

    Raises:
        ValueError, TypeError: for a wrong shape, dtype or device.
        ValueError: on CPU, for a label outside [0, C) other than ``ignore_index``, in either argument (RuntimeError under
            ``torch.compile``). On a GPU such a pixel is left out, without a host sync;
            :class:`segkernels.metrics.ConfusionMatrix` counts them and raises when it computes.
    """
    matrix, invalid = count(prediction, target, num_classes, ignore_index)
    check_labels(invalid, prediction, target, num_classes, ignore_index)
    return matrix


def count(
    prediction: torch.Tensor, target: torch.Tensor, num_classes: int, ignore_index: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The matrix, and how many labels of prediction and of target lay outside [0, C), int64 [2]: they are left out."""
    if num_classes < 1:
        raise ValueError(f"num_classes: expected at least 1, got {num_classes}")
    if target.dtype not in _LABELS:
        raise TypeError(f"target: expected labels of an integer dtype or bool, got {target.dtype}")
    size, expected = prediction.shape, target.shape
    if prediction.dtype in _LOGITS:
        if len(size) != len(expected) + 1 or len(size) < 2 or size[0] != expected[0]:
            raise ValueError(
                f"prediction: expected logits [N, C, *] for a target [N, *], got {list(size)} for {list(expected)}"
            )
        if size[1] != num_classes:
            raise ValueError(f"prediction: expected logits of {num_classes} classes, got shape {list(size)}")
        if size[2:] != expected[1:] and not _can_upsample(size, expected):
            raise ValueError(
                f"prediction: expected logits of the target's size, or [N, C, h, w] no larger than it, "
                f"got {list(size)} for {list(expected)}"
            )
    elif prediction.dtype not in _LABELS:
        raise TypeError(f"prediction: expected labels (integer or bool) or logits (floating-point), got {prediction.dtype}")
    elif size != expected:
        raise ValueError(f"prediction: expected labels of the target's shape {list(expected)}, got {list(size)}")
    check_same_device(prediction, target, "prediction", "target")
    return _op(prediction, target, num_classes, ignore_index)


def _can_upsample(size: torch.Size, expected: torch.Size) -> bool:
    return len(size) == 4 and 0 < size[2] <= expected[1] and 0 < size[3] <= expected[2]


def check_labels(
    invalid: torch.Tensor, prediction: torch.Tensor, target: torch.Tensor, num_classes: int, ignore_index: int | None
) -> None:
    """Raises on CPU when :func:`count` left out labels; on other devices it would have to wait for them."""
    if not invalid.is_cpu:
        return
    if torch.compiler.is_compiling():
        torch._assert_async(invalid.sum() == 0, "confusion_matrix: found a label outside [0, num_classes)")
        return
    wrong_predictions, wrong_targets = invalid.tolist()
    if wrong_targets:
        raise _label_error("target", target, wrong_targets, num_classes, ignore_index)
    if wrong_predictions:
        raise _label_error("prediction", prediction, wrong_predictions, num_classes, ignore_index)


def _label_error(name: str, labels: torch.Tensor, wrong: int, num_classes: int, ignore_index: int | None) -> ValueError:
    values = labels.flatten().long()
    outside = (values < 0) | (values >= num_classes)
    if ignore_index is not None:
        outside &= values != ignore_index
    found = values[outside][0].item()
    return ValueError(
        f"{name}: expected labels in [0, {num_classes}) or ignore_index={ignore_index}, got {found} ({wrong} such labels)"
    )
