"""Argument parsing shared by the losses: modes, shapes, names of conventions, weights of classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from segkernels.ops._arguments import check_same_device

#: The numbers that dispatcher ops take for the names.
REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}
STYLES = {"lecture": 0, "smp": 1, "monai": 2}

Weights = float | Sequence[float] | torch.Tensor

_TARGET_DTYPES = frozenset(
    (
        torch.uint8,
        torch.bool,
        torch.int32,
        torch.int64,
        torch.float32,
        torch.float64,
        torch.float16,
        torch.bfloat16,
    )
)


def choice(value: str, name: str, among: dict[str, int]) -> int:
    try:
        return among[value]
    except (KeyError, TypeError):
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, among))}, got {value!r}") from None


def planes(input: torch.Tensor, target: torch.Tensor, mode: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Both as [N, C, H, W] views, for the modes binary and multilabel."""
    if not isinstance(target, torch.Tensor):
        raise TypeError(f"target: expected a Tensor, got {type(target).__name__}")
    if target.dtype not in _TARGET_DTYPES:
        raise TypeError(f"target: expected uint8, bool, int32, int64 or a floating type, got {target.dtype}")
    check_same_device(input, target, "input", "target")
    shape, target_shape = input.shape, target.shape
    if mode == "binary":
        if len(shape) != 3 and (len(shape) != 4 or shape[1] != 1):
            raise ValueError(f"input: expected [N, 1, H, W] or [N, H, W] for mode='binary', got shape {list(shape)}")
        if len(shape) == 3:
            input = input.unsqueeze(1)
        if len(target_shape) == 3:
            target = target.unsqueeze(1)
        expected = "[N, 1, H, W] or [N, H, W]"
    elif mode == "multilabel":
        if len(shape) != 4:
            raise ValueError(f"input: expected [N, C, H, W] for mode='multilabel', got shape {list(shape)}")
        expected = "the shape of input"
    else:
        raise ValueError(f"mode: expected 'binary' or 'multilabel', got {mode!r}")
    if target.shape != input.shape:
        raise ValueError(f"target: expected {expected} for input {list(shape)}, got shape {list(target_shape)}")
    return input, target


def channel_weights(weights: Weights | None, name: str, input: torch.Tensor) -> torch.Tensor | None:
    """None, or a tensor with one value or one for each channel of [N, C, H, W]."""
    if weights is None:
        return None
    if not isinstance(weights, torch.Tensor):
        weights = torch.tensor(weights, dtype=torch.float64 if input.dtype == torch.float64 else torch.float32).to(
            input.device
        )
    elif not weights.is_floating_point():
        weights = weights.to(torch.float32)
    count = weights.numel()
    if count != 1 and count != input.shape[1]:
        raise ValueError(
            f"{name}: expected one value or {input.shape[1]} (one per channel of input), got shape {list(weights.shape)}"
        )
    check_same_device(input, weights, "input", name)
    return weights
