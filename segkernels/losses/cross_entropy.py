"""Cross entropy over classes, also from logits smaller than the labels."""

from __future__ import annotations

import torch

from segkernels.losses._module import FunctionLoss
from segkernels.losses._statistics import multiclass, pixel_mean, result
from segkernels.ops._loss_arguments import REDUCTIONS, Weights, choice

__all__ = ["CrossEntropyLoss", "UpsampleCrossEntropyLoss", "cross_entropy_loss", "upsample_cross_entropy_loss"]


def cross_entropy_loss(
    input: torch.Tensor,
    target: torch.Tensor,
    class_weights: Weights | None = None,
    ignore_index: int | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Cross entropy of softmax(input); replaces :func:`torch.nn.functional.cross_entropy` on [N, C, H, W].

    Args:
        input (Tensor[N, C, H, W]): logits; float32, float64, float16 or bfloat16.
        target (Tensor[N, H, W]): labels, uint8, int32 or int64.
        class_weights: one for each class. The mean is then the weighted mean, as torch's.
        ignore_index: label of pixels that take no part; None: every label counts (torch's default is -100).
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for a map [N, H, W] with 0 at ignored pixels.
        label_smoothing: share of the uniform distribution in the target.

    Returns:
        Tensor: scalar, or the map; float64 for float64 input and float32 otherwise. 0 without a valid pixel, and so is the
        gradient (torch: NaN). Bit-equal between runs and numbers of threads; twice differentiable in ``input``.

    Raises:
        ValueError, TypeError: for a wrong name, rank, dtype, device, shape or range.
        RuntimeError: on CPU, for a label outside [0, C) other than ``ignore_index``.
    """
    return _loss(input, target, class_weights, ignore_index, reduction, label_smoothing, False, False)


def upsample_cross_entropy_loss(
    input: torch.Tensor,
    target: torch.Tensor,
    class_weights: Weights | None = None,
    ignore_index: int | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    align_corners: bool = False,
) -> torch.Tensor:
    """:func:`cross_entropy_loss` of ``interpolate(input, target.shape[1:], mode="bilinear")``, which never exists.

    ``input`` is [N, C, h, w] with h <= H and w <= W; the gradient reaches it directly. ``align_corners`` is that of
    :func:`torch.nn.functional.interpolate`; the rest is as there.
    """
    return _loss(input, target, class_weights, ignore_index, reduction, label_smoothing, True, align_corners)


def _loss(
    input: torch.Tensor,
    target: torch.Tensor,
    class_weights: Weights | None,
    ignore_index: int | None,
    reduction: str,
    label_smoothing: float,
    upsample: bool,
    align_corners: bool,
) -> torch.Tensor:
    choice(reduction, "reduction", REDUCTIONS)
    statistics = multiclass(
        input,
        target,
        class_weights=class_weights,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        losses=reduction == "none",
        upsample=upsample,
        align_corners=align_corners,
    )
    if reduction == "none":
        return statistics.losses
    return result(
        statistics.pixel[:, 0].sum() if reduction == "sum" else pixel_mean(statistics, weighted=class_weights is not None),
        input,
    )


class CrossEntropyLoss(FunctionLoss):
    """:func:`cross_entropy_loss` as a module; arguments, shapes and errors are that function's."""

    function = staticmethod(cross_entropy_loss)


class UpsampleCrossEntropyLoss(FunctionLoss):
    """:func:`upsample_cross_entropy_loss` as a module; arguments, shapes and errors are that function's."""

    function = staticmethod(upsample_cross_entropy_loss)
