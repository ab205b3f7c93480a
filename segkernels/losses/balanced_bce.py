"""Balanced binary cross entropy."""

from __future__ import annotations

import torch
from torch import nn

from segkernels.losses._sigmoid import sigmoid_pixel_loss
from segkernels.ops._loss_arguments import REDUCTIONS, Weights, choice

__all__ = ["BalancedBCELoss", "balanced_bce_loss"]


def balanced_bce_loss(
    input: torch.Tensor,
    target: torch.Tensor,
    beta: float = 0.5,
    ignore_index: int | None = None,
    reduction: str = "mean",
    *,
    mode: str = "binary",
    from_logits: bool = True,
    class_weights: Weights | None = None,
) -> torch.Tensor:
    r"""The mean of ``-(beta * t * log p + (1 - beta) * (1 - t) * log(1 - p))`` (Xie and Tu 2015), p = sigmoid(input).

    Args:
        input (Tensor[N, 1, H, W] or Tensor[N, H, W]; Tensor[N, C, H, W] for multilabel): logits, or probabilities (kept 1e-7
            from 0 and 1) with ``from_logits=False``; float32, float64, float16 or bfloat16.
        target (Tensor[N, H, W] or Tensor[N, 1, H, W]; Tensor[N, C, H, W] for multilabel): 0 and 1 as uint8, bool, int32 or
            int64, or soft targets in a floating type.
        beta: weight of the positive term, in [0, 1]; often the share of negative pixels.
        ignore_index: label of pixels that take no part.
        reduction: ``"mean"`` over the valid pixels, ``"sum"``, or ``"none"`` for a map with 0 at ignored pixels.
        mode: ``"binary"`` or ``"multilabel"``.
        class_weights: factors of the channels.

    Returns:
        Tensor: scalar, or the map; float64 for float64 input and float32 otherwise; 0 without a valid pixel. Bit-equal between
        runs and numbers of threads; twice differentiable in ``input``.

    Raises:
        ValueError, TypeError: for a wrong mode, name, rank, dtype, device, shape or range.
        RuntimeError: on CPU, for an integer label other than 0, 1 and ``ignore_index``.
    """
    if not 0 <= beta <= 1:
        raise ValueError(f"beta: expected a value in [0, 1], got {beta}")
    return sigmoid_pixel_loss(
        input, target, beta, 1 - beta, 0.0, mode=mode, from_logits=from_logits, ignore_index=ignore_index,
        class_weights=class_weights, reduction=reduction,
    )  # fmt: skip


class BalancedBCELoss(nn.Module):
    """:func:`balanced_bce_loss` as a module; arguments, shapes and errors are that function's."""

    class_weights: torch.Tensor | None

    def __init__(
        self,
        beta: float = 0.5,
        ignore_index: int | None = None,
        reduction: str = "mean",
        *,
        mode: str = "binary",
        from_logits: bool = True,
        class_weights: Weights | None = None,
    ) -> None:
        super().__init__()
        choice(reduction, "reduction", REDUCTIONS)
        self.beta = beta
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.mode = mode
        self.from_logits = from_logits
        weights = None if class_weights is None else torch.as_tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights)

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return balanced_bce_loss(
            input, target, self.beta, self.ignore_index, self.reduction, mode=self.mode, from_logits=self.from_logits,
            class_weights=self.class_weights,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return f"beta={self.beta}, ignore_index={self.ignore_index}, reduction={self.reduction!r}, mode={self.mode!r}"
