"""Forwards of the losses that are replaced: torch's, segmentation-models-pytorch's and MONAI's own results from one pass.

Attributes are read at every call, as the original does. What our sums cannot give (soft labels where the formula differs,
other ranks, half precision outside autocast) goes to the original forward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from segkernels._accelerate._classes import Accelerated, suits
from segkernels.losses import dice_ce_loss, dice_loss, jaccard_loss, tversky_loss
from segkernels.ops import lovasz_loss, sigmoid_statistics, softmax_statistics

_REDUCTIONS = ("mean", "sum")
_INTEGERS = (torch.int64, torch.int32, torch.uint8)
#: Logits from which one pass of ours beats torch's three, which are fast while all fits into the cache.
_LARGE = 1 << 18


def _logits(input: Any, on: frozenset[str]) -> bool:
    # The original's result is of half precision, too, unless autocast computes it in float32.
    return suits(input, on) and (input.dtype in (torch.float32, torch.float64) or torch.is_autocast_enabled(input.device.type))


def _labels(target: Any, input: torch.Tensor, dtypes: tuple[torch.dtype, ...] = (torch.int64,)) -> bool:
    """[N, H, W] for logits [N, C, H, W]."""
    return (
        input.dim() == 4
        and target.dim() == 3
        and target.dtype in dtypes
        and target.device == input.device
        and target.shape[0] == input.shape[0]
        and target.shape[1:] == input.shape[2:]
    )


def _planes(target: torch.Tensor, input: torch.Tensor, soft: bool) -> bool:
    """Of the shape of the logits [N, C, H, W]; ``soft``: floating targets, too."""
    kind = target.dtype in (*_INTEGERS, torch.bool) or (soft and target.dtype == input.dtype)
    return kind and input.dim() == 4 and target.shape == input.shape and target.device == input.device


def cross_entropy(
    on: frozenset[str],
    input: Any,
    target: torch.Tensor,
    weight: torch.Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> torch.Tensor | None:
    """torch's cross entropy of [N, C, H, W] and labels, NaN without a valid pixel; None for other arguments."""
    if not (_logits(input, on) and _labels(target, input) and input.numel() >= _LARGE):
        return None
    if reduction not in (*_REDUCTIONS, "none"):
        return None
    if weight is not None and (weight.requires_grad or weight.shape != input.shape[1:2]):
        return None
    every = reduction == "none"
    _, pixel, losses = softmax_statistics(input, target, weight, ignore_index, label_smoothing, losses=every)
    if every:
        return losses
    total, weights, _ = pixel.sum(0).unbind()
    return _as_original(total / weights if reduction == "mean" else total, input)


def _as_original(loss: torch.Tensor, input: torch.Tensor) -> torch.Tensor:
    return loss if input.dtype == torch.float64 else loss.float()


class CrossEntropyLoss(Accelerated, nn.CrossEntropyLoss):
    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        loss = cross_entropy(
            self._accelerated_on, input, target, self.weight, self.ignore_index, self.reduction, self.label_smoothing
        )
        return super().forward(input, target) if loss is None else loss


class _Loss(Accelerated):
    def forward(self: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = self._fast(*args, **kwargs) if len(args) + len(kwargs) == 2 else None
        return super().forward(*args, **kwargs) if loss is None else loss  # type: ignore[misc]


class SmpRegionLoss(_Loss):
    """DiceLoss; the subclasses are JaccardLoss and TverskyLoss."""

    def _score(self) -> tuple[float, float, float]:
        return 0.5, 0.5, 1.0

    def _fast(self: Any, y_pred: Any, y_true: torch.Tensor) -> torch.Tensor | None:
        if not _logits(y_pred, self._accelerated_on):
            return None
        if self.mode == "multiclass":
            # Without ignore_index the original's one_hot takes int64 only.
            if not _labels(y_true, y_pred, (torch.int64,) if self.ignore_index is None else _INTEGERS):
                return None
        else:
            y_true = _with_channel(y_true, self.mode)
            if not _planes(y_true, y_pred, True) or (self.mode == "binary" and y_pred.shape[1] != 1):
                return None
        weights = None if self.class_weights is None else self.class_weights.to(y_pred.device)
        alpha, beta, gamma = self._score()
        return tversky_loss(
            y_pred,
            y_true,
            alpha,
            beta,
            gamma,
            self.smooth,
            weights,
            self.ignore_index,
            mode=self.mode,
            log_loss=self.log_loss,
            style="smp",
        )


class SmpJaccardLoss(SmpRegionLoss):
    def _score(self) -> tuple[float, float, float]:
        return 1.0, 1.0, 1.0


class SmpTverskyLoss(SmpRegionLoss):
    def _score(self: Any) -> tuple[float, float, float]:
        return self.alpha, self.beta, self.gamma


def _with_channel(target: torch.Tensor, mode: str) -> torch.Tensor:
    return target.unsqueeze(1) if mode == "binary" and target.dim() == 3 else target


class SmpFocalLoss(_Loss):
    def _fast(self: Any, y_pred: Any, y_true: torch.Tensor) -> torch.Tensor | None:
        y_true = _with_channel(y_true, self.mode)
        # Of soft targets the original's p_t is another.
        if not (_logits(y_pred, self._accelerated_on) and _planes(y_true, y_pred, False)):
            return None
        if self.mode == "binary" and y_pred.shape[1] != 1:
            return None
        options = self.focal_loss_fn.keywords
        alpha, gamma = options["alpha"], options["gamma"]
        negative = 1.0 if alpha is None else 1 - alpha
        _, pixel, _ = sigmoid_statistics(y_pred, y_true, alpha, negative, gamma, self.ignore_index, mode="multilabel")
        totals, valid = pixel.sum(0).unbind(1)
        classes = totals / valid if options["reduction"] == "mean" else totals
        if self.class_weights is None:
            return _as_original(classes.mean(), y_pred)
        weights = self.class_weights.to(classes)
        return _as_original((classes * weights).sum() / weights.sum(), y_pred)


class SmpLovaszLoss(_Loss):
    def _fast(self: Any, y_pred: Any, y_true: torch.Tensor) -> torch.Tensor | None:
        if not _logits(y_pred, self._accelerated_on):
            return None
        if self.mode == "multiclass":
            if not _labels(y_true, y_pred, _INTEGERS):
                return None
        elif not _planes(_with_channel(y_true, self.mode), y_pred, False):
            return None
        elif self.mode == "binary" and y_pred.shape[1] != 1:
            return None
        return lovasz_loss(y_pred, y_true, self.mode, self.per_image, self.ignore_index)


class SmpSoftCrossEntropyLoss(_Loss):
    def _fast(self: Any, y_pred: Any, y_true: torch.Tensor) -> torch.Tensor | None:
        if not (_logits(y_pred, self._accelerated_on) and _labels(y_true, y_pred) and y_pred.numel() >= _LARGE):
            return None
        _, pixel, _ = softmax_statistics(y_pred, y_true, None, self.ignore_index, self.smooth_factor)
        total = pixel[:, 0].sum()
        # Its mean counts the ignored pixels.
        return _as_original(total / y_true.numel() if self.reduction == "mean" else total, y_pred)


class _MonaiRegionLoss(_Loss):
    def _fast(self: Any, input: Any, target: torch.Tensor) -> torch.Tensor | None:
        if not _logits(input, self._accelerated_on) or target.device != input.device:
            return None
        if self.softmax:
            labels = _monai_labels(input, target)
            return None if labels is None else self._loss(input, labels, "multiclass")
        # The original warns of options that mean nothing for one channel, and converts labels to one-hot.
        one = input.shape[1:2] == (1,)
        if not _planes(target, input, True) or (self.to_onehot_y or (one and not self.include_background)):
            return None
        return self._loss(input, target, "multilabel")

    def _options(self: Any, mode: str) -> dict[str, Any]:
        return {
            "mode": mode,
            "style": "monai",
            "reduction": self.reduction,
            "batch_dice": self.batch,
            "include_background": self.include_background,
        }


class MonaiDiceLoss(_MonaiRegionLoss):
    def _loss(self: Any, input: torch.Tensor, target: torch.Tensor, mode: str) -> torch.Tensor:
        function = jaccard_loss if self.jaccard else dice_loss
        return function(input, target, self.smooth_nr, class_weights=self.class_weight, **self._options(mode))


class MonaiTverskyLoss(_MonaiRegionLoss):
    def _loss(self: Any, input: torch.Tensor, target: torch.Tensor, mode: str) -> torch.Tensor:
        return tversky_loss(input, target, self.alpha, self.beta, 1.0, self.smooth_nr, **self._options(mode))


class MonaiDiceCELoss(_Loss):
    def _fast(self: Any, input: Any, target: torch.Tensor) -> torch.Tensor | None:
        if not _logits(input, self._accelerated_on) or target.device != input.device:
            return None
        labels = _monai_labels(input, target)
        if labels is None:
            return None
        dice = self.dice
        return dice_ce_loss(
            input, labels, self.lambda_dice, self.lambda_ce, dice.smooth_nr, self.cross_entropy.weight, None, dice.reduction,
            self.cross_entropy.label_smoothing,
            batch_dice=dice.batch, include_background=dice.include_background, style="monai",
        )  # fmt: skip


class MonaiFocalLoss(_Loss):
    def _fast(self: Any, input: Any, target: torch.Tensor) -> torch.Tensor | None:
        # Its result is float32 whatever the input.
        if not suits(input, self._accelerated_on) or input.dtype == torch.float64 or target.device != input.device:
            return None
        labels = _monai_labels(input, target)
        if labels is None:
            return None
        n, c, h, w = input.shape
        weights = None if self.class_weight is None else self.class_weight.to(input.device, torch.float32).expand(c)
        if self.alpha is not None:
            factors = torch.full((c,), float(self.alpha), device=input.device)
            factors[:1] = 1 - float(self.alpha)
            weights = factors if weights is None else factors * weights
        _, pixel, _ = softmax_statistics(input, labels, weights, gamma=self.gamma)
        # Its means are over the pixels of all channels, which are zero but for the label's.
        return (pixel[:, 0].sum() / (h * w if self.reduction == "sum" else n * c * h * w)).float()


def _monai_labels(input: torch.Tensor, target: torch.Tensor) -> torch.Tensor | None:
    """[N, H, W] from [N, 1, H, W], which may be floating; None for other shapes, and for one channel, which has no softmax."""
    if input.dim() != 4 or input.shape[1] == 1 or target.shape != (input.shape[0], 1, *input.shape[2:]):
        return None
    return target.squeeze(1) if target.dtype in _INTEGERS else target.squeeze(1).long()


def keep_smp_region(module: Any) -> str | None:
    weights = module.class_weights
    if not module.from_logits:
        return "from_logits=False"
    if module.classes is not None:
        return "classes: ours takes all of them"
    if module.eps != 1e-7:
        return f"eps={module.eps}: ours is 1e-7"
    return "class_weights that sum to 0" if weights is not None and float(weights.sum()) == 0 else None


def keep_smp_focal(module: Any) -> str | None:
    options = module.focal_loss_fn.keywords
    if module.mode == "multiclass":
        return "multiclass: a sigmoid for every class, ours is a softmax"
    if module.mode == "multilabel" and module.ignore_index is not None:
        return "ignore_index with mode 'multilabel'"
    if not module.from_logits or options["normalized"] or options["reduced_threshold"] is not None:
        return "from_logits=False, normalized or reduced_threshold"
    return None if options["reduction"] in _REDUCTIONS else f"reduction={options['reduction']!r}"


def keep_smp_soft_cross_entropy(module: Any) -> str | None:
    if module.dim != 1 or module.smooth_factor is None or not 0 <= module.smooth_factor <= 1:
        return "dim other than 1, or no smooth_factor in [0, 1]"
    return None if module.reduction in _REDUCTIONS else f"reduction={module.reduction!r}"


def keep_monai_region(module: Any) -> str | None:
    if not (module.sigmoid or (module.softmax and module.to_onehot_y)):
        return "ours takes sigmoid, or softmax with to_onehot_y"
    return _keep_monai_sums(module)


def _keep_monai_sums(module: Any) -> str | None:
    weight = getattr(module, "class_weight", None)
    if getattr(module, "squared_pred", False) or module.soft_label or module.other_act is not None:
        return "squared_pred, soft_label or other_act"
    if module.ignore_index is not None:
        return "ignore_index: ours leaves the pixel out of all sums"
    if module.smooth_nr != module.smooth_dr or module.smooth_dr < 1e-6:
        return "smooth_nr other than smooth_dr, or below 1e-6"
    if weight is not None and (weight.dim() != 1 or not module.include_background):
        return "one weight for all classes, or weights without a background"
    return None if module.reduction in _REDUCTIONS else f"reduction={module.reduction!r}"


def keep_monai_dice_ce(module: Any) -> str | None:
    dice, entropy = module.dice, module.cross_entropy
    if not (dice.softmax and dice.to_onehot_y) or dice.jaccard:
        return "ours takes softmax with to_onehot_y, and not jaccard; its parts are replaced one by one"
    if type(dice).__name__ != "DiceLoss" or entropy.ignore_index != -100:
        return "its parts were exchanged"
    return _keep_monai_sums(dice)


def keep_monai_focal(module: Any) -> str | None:
    if not (module.use_softmax and module.to_onehot_y):
        return "ours takes use_softmax with to_onehot_y"
    if not module.include_background or module.ignore_index is not None:
        return "include_background=False or ignore_index"
    if isinstance(module.alpha, torch.Tensor) and module.alpha.dim():
        return "one alpha for each class"
    return None if module.reduction in _REDUCTIONS else f"reduction={module.reduction!r}"
