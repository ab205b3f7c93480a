"""Focal loss over classes."""

from __future__ import annotations

import torch

from segkernels.losses._module import FunctionLoss
from segkernels.losses._statistics import multiclass, only_multiclass, pixel_mean, result
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
    """Focal loss (Lin et al. 2017) on softmax probabilities, ``-w_t * (1 - p_t)**gamma * log(p_t)``.

    Args:
        input (Tensor[N, C, H, W]): logits; float32, float64, float16 or bfloat16.
        target (Tensor[N, H, W]): labels, uint8, int32 or int64.
        alpha: weight of every class but the background; class 0 has 1 - alpha (as in MONAI). None: no such weight.
        gamma: at least 0; 0 is the cross entropy.
        class_weights: one for each class, a further factor of its pixels.
        ignore_index: label of pixels that take no part.
        reduction: ``"mean"`` over the valid pixels, whatever their weights, ``"sum"``, or ``"none"`` for a map [N, H, W].
        mode: ``"multiclass"``.
        from_logits: True.

    Returns:
        Tensor: scalar, or the map; float64 for float64 input and float32 otherwise. 0 without a valid pixel, and so is the
        gradient. Bit-equal between runs and numbers of threads; twice differentiable in ``input``.

    Raises:
        ValueError, TypeError: for a wrong mode, name, rank, dtype, device, shape or range.
        RuntimeError: on CPU, for a label outside [0, C) other than ``ignore_index``.
    """
    only_multiclass(mode, from_logits, "dice_bce_loss")
    return _loss(input, target, alpha, gamma, class_weights, ignore_index, reduction, False, False)


def upsample_focal_loss(
    input: torch.Tensor,
    target: torch.Tensor,
    alpha: float | None = None,
    gamma: float = 2.0,
    class_weights: Weights | None = None,
    ignore_index: int | None = None,
    reduction: str = "mean",
    *,
    align_corners: bool = False,
) -> torch.Tensor:
    """:func:`focal_loss` of ``interpolate(input, target.shape[1:], mode="bilinear")``, which never exists.

    ``input`` is [N, C, h, w] with h <= H and w <= W; the gradient reaches it directly. ``align_corners`` is that of
    :func:`torch.nn.functional.interpolate`; the rest is as there.
    """
    return _loss(input, target, alpha, gamma, class_weights, ignore_index, reduction, True, align_corners)


def _loss(
    input: torch.Tensor,
    target: torch.Tensor,
    alpha: float | None,
    gamma: float,
    class_weights: Weights | None,
    ignore_index: int | None,
    reduction: str,
    upsample: bool,
    align_corners: bool,
) -> torch.Tensor:
    choice(reduction, "reduction", REDUCTIONS)
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
    return result(statistics.pixel[:, 0].sum() if reduction == "sum" else pixel_mean(statistics, 2), input)


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
