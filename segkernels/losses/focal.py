"""Focal loss over classes."""

from __future__ import annotations

import torch

from segkernels.losses._module import FunctionLoss
from segkernels.losses._sigmoid import sigmoid_pixel_loss
from segkernels.losses._statistics import logits_only, multiclass, pixel_mean, result
from segkernels.ops._loss_arguments import REDUCTIONS, Weights, channel_weights, choice

__all__ = ["FocalLoss", "UpsampleFocalLoss", "focal_loss", "upsample_focal_loss"]


def focal_loss(
    input: torch.Tensor,
    target: torch.Tensor,
    alpha: float | None = None,
    gamma: float = 2.0,
    class_weights: Weights | None = None,
    ignore_index: int | None = None,
    reduction: str = "mean",
    *,
    mode: str = "multiclass",
    from_logits: bool = True,
) -> torch.Tensor:
    """Focal loss (Lin et al. 2017), ``-w_t * (1 - p_t)**gamma * log(p_t)``, on softmax or sigmoid probabilities.

    Args:
        input (Tensor[N, C, H, W]; Tensor[N, 1, H, W] or Tensor[N, H, W] for binary): logits; float32, float64, float16 or
            bfloat16.
        target (Tensor[N, H, W]): labels, uint8, int32 or int64. Binary and multilabel: the shape of ``input``, 0 and 1 or
            soft targets in a floating type.
        alpha: weight of every class but the background, which has 1 - alpha (as in MONAI); binary and multilabel: of the
            positive term, the negative one has 1 - alpha (as in torchvision). None: no such weight.
        gamma: at least 0; 0 is the cross entropy.
        class_weights: one for each class, a further factor of its pixels.
        ignore_index: label of pixels that take no part.
        reduction: ``"mean"`` over the valid pixels, whatever their weights, ``"sum"``, or ``"none"`` for a map [N, H, W] (the
            shape of ``input`` for binary and multilabel).
        mode: ``"multiclass"``, ``"binary"`` or ``"multilabel"``.
        from_logits: False takes probabilities (modes binary and multilabel; kept 1e-7 from 0 and 1).

    Returns:
        Tensor: scalar, or the map; float64 for float64 input and float32 otherwise. 0 without a valid pixel, and so is the
        gradient. Bit-equal between runs and numbers of threads; twice differentiable in ``input``.

    Raises:
        ValueError, TypeError: for a wrong mode, name, rank, dtype, device, shape or range.
        RuntimeError: on CPU, for a label outside [0, C) other than ``ignore_index``.
    """
    return _loss(input, target, alpha, gamma, class_weights, ignore_index, reduction, mode, from_logits, False, False)


def upsample_focal_loss(
    input: torch.Tensor,
    target: torch.Tensor,
    alpha: float | None = None,
    gamma: float = 2.0,
    class_weights: Weights | None = None,
    ignore_index: int | None = None,
    reduction: str = "mean",
    *,
    mode: str = "multiclass",
    align_corners: bool = False,
) -> torch.Tensor:
    """:func:`focal_loss` of ``interpolate(input, target.shape[1:], mode="bilinear")``, which never exists.

    ``input`` is [N, C, h, w] with h <= H and w <= W; the gradient reaches it directly. ``align_corners`` is that of
    :func:`torch.nn.functional.interpolate`; the rest is as there.
    """
    return _loss(input, target, alpha, gamma, class_weights, ignore_index, reduction, mode, True, True, align_corners)


def _loss(
    input: torch.Tensor,
    target: torch.Tensor,
    alpha: float | None,
    gamma: float,
    class_weights: Weights | None,
    ignore_index: int | None,
    reduction: str,
    mode: str,
    from_logits: bool,
    upsample: bool,
    align_corners: bool,
) -> torch.Tensor:
    choice(reduction, "reduction", REDUCTIONS)
    if mode != "multiclass":
        return sigmoid_pixel_loss(
            input,
            target,
            alpha,
            1.0 if alpha is None else 1 - alpha,
            gamma,
            mode=mode,
            from_logits=from_logits,
            ignore_index=ignore_index,
            class_weights=class_weights,
            reduction=reduction,
            upsample=upsample,
            align_corners=align_corners,
        )
    logits_only(from_logits)
    statistics = multiclass(
        input,
        target,
        class_weights=_weights(input, alpha, class_weights),
        ignore_index=ignore_index,
        gamma=gamma,
        losses=reduction == "none",
        upsample=upsample,
        align_corners=align_corners,
    )
    if reduction == "none":
        return statistics.losses
    return result(statistics.pixel[:, 0].sum() if reduction == "sum" else pixel_mean(statistics, weighted=False), input)


def _weights(input: torch.Tensor, alpha: float | None, class_weights: Weights | None) -> torch.Tensor | None:
    weights = None if class_weights is None else channel_weights(class_weights, "class_weights", input)
    if alpha is None or input.dim() < 2:
        return weights
    dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    factors = torch.full((input.shape[1],), float(alpha), dtype=dtype, device=input.device)
    factors[:1] = 1 - alpha
    return factors if weights is None else factors * weights


class FocalLoss(FunctionLoss):
    """:func:`focal_loss` as a module; arguments, shapes and errors are that function's."""

    function = staticmethod(focal_loss)


class UpsampleFocalLoss(FunctionLoss):
    """:func:`upsample_focal_loss` as a module; arguments, shapes and errors are that function's."""

    function = staticmethod(upsample_focal_loss)
