"""The Lovasz losses."""

from __future__ import annotations

import torch
from torch import nn

from segkernels.ops import lovasz_loss
from segkernels.ops._loss_arguments import REDUCTIONS, choice

__all__ = ["LovaszLoss", "lovasz_loss"]


class LovaszLoss(nn.Module):
    """:func:`lovasz_loss` as a module; arguments, shapes and errors are that function's."""

    def __init__(
        self,
        mode: str = "binary",
        per_image: bool = False,
        ignore_index: int | None = None,
        from_logits: bool = True,
        *,
        classes: str = "present",
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        choice(mode, "mode", {"binary": 0, "multilabel": 1, "multiclass": 2})
        choice(classes, "classes", {"present": 0, "all": 1})
        choice(reduction, "reduction", REDUCTIONS)
        self.mode = mode
        self.per_image = per_image
        self.ignore_index = ignore_index
        self.from_logits = from_logits
        self.classes = classes
        self.reduction = reduction

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return lovasz_loss(
            input,
            target,
            self.mode,
            self.per_image,
            self.ignore_index,
            self.from_logits,
            classes=self.classes,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        return (
            f"mode={self.mode!r}, per_image={self.per_image}, ignore_index={self.ignore_index}, "
            f"classes={self.classes!r}, reduction={self.reduction!r}"
        )
