"""From logits and labels to the sums that the losses of every mode follow from."""

from __future__ import annotations

from typing import NamedTuple

import torch

from segkernels.losses._region import Region, region_loss
from segkernels.ops import softmax_statistics
from segkernels.ops._loss_arguments import REDUCTIONS, STYLES, Weights, channel_weights, choice


class Statistics(NamedTuple):
    """Sums over the valid pixels, in float64."""

    region: torch.Tensor  # [N, C, 3]: p * t, p, t
    pixel: torch.Tensor  # [N, 3]: losses, weights of the labels, valid pixels
    losses: torch.Tensor  # [N, H, W]


def multiclass(
    input: torch.Tensor,
    target: torch.Tensor,
    *,
    class_weights: Weights | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    gamma: float = 0.0,
    regions: bool = False,
    losses: bool = False,
    upsample: bool = False,
    align_corners: bool = False,
) -> Statistics:
    return Statistics(
        *softmax_statistics(
            input, target, class_weights, ignore_index, label_smoothing, gamma, regions, losses, upsample, align_corners
        )
    )


def region_term(input: torch.Tensor, statistics: Statistics, region: Region, class_weights: Weights | None) -> torch.Tensor:
    """The region loss, in float64."""
    intersection, probability, target = statistics.region.unbind(2)
    weights = None if class_weights is None else channel_weights(class_weights, "class_weights", input)
    return region_loss(region, intersection, probability, target, statistics.pixel[:, 2:], weights)


def pixel_mean(statistics: Statistics, weighted: bool) -> torch.Tensor:
    """Sum of the losses over the valid pixels, or over the weights of their labels; 0 where that is 0."""
    total, weights, count = statistics.pixel.sum(0).unbind()
    # Weights may lie below 1, or below 0; the comparison and the sum of two types cost 10 us more on a CPU.
    return total / (weights + (weights == 0) if weighted else count.clamp(min=1))


def result(loss: torch.Tensor, input: torch.Tensor) -> torch.Tensor:
    """float32: a sum of half-precision losses overflows."""
    return loss if input.dtype == torch.float64 else loss.float()


def check_names(reduction: str, style: str) -> None:
    choice(reduction, "reduction", REDUCTIONS)
    choice(style, "style", STYLES)


def logits_only(from_logits: bool) -> None:
    if not from_logits:
        raise ValueError("from_logits: expected True for mode='multiclass', got False")
