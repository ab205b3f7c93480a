"""What the geometry of convolutions implies: bilinear kernels, receptive fields, checkerboards and gridding."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch


def bilinear_kernel(kernel_size: int, dtype: torch.dtype | None = None) -> torch.Tensor:
    """The kernel with which a transposed convolution interpolates bilinearly, [K, K] (Long et al. 2015, FCN).

    For an upsampling by s the kernel size is ``2 * s - s % 2``, the stride s and the padding ``s // 2``.
    """
    if kernel_size < 1:
        raise ValueError(f"kernel_size: expected at least 1, got {kernel_size}")
    scale = (kernel_size + 1) // 2
    center = scale - 1 if kernel_size % 2 else scale - 0.5
    line = 1 - (torch.arange(kernel_size, dtype=torch.float64) - center).abs() / scale
    return torch.outer(line, line).to(dtype or torch.get_default_dtype())


def bilinear_(weight: torch.Tensor) -> torch.Tensor:
    """Fills the weight of a transposed convolution, in place, so that it upsamples every channel on its own.

    Args:
        weight (Tensor[C, 1, K, K] with groups = C, or Tensor[C, C, K, K]): the latter gets the kernel on its diagonal.
    """
    if weight.dim() != 4 or weight.shape[2] != weight.shape[3] or weight.shape[1] not in (1, weight.shape[0]):
        raise ValueError(f"weight: expected [C, 1, K, K] or [C, C, K, K], got {list(weight.shape)}")
    kernel = bilinear_kernel(weight.shape[-1]).to(weight)
    with torch.no_grad():
        if weight.shape[1] == 1:
            return weight.copy_(kernel.expand_as(weight))
        channels = torch.arange(weight.shape[0], device=weight.device)
        weight.zero_()[channels, channels] = kernel
        return weight


def receptive_field(layers: Iterable[Sequence[int]]) -> tuple[int, int]:
    """Receptive field and output stride, in input pixels along one axis, of convolutions and poolings in a row.

    Args:
        layers: ``(kernel,)``, ``(kernel, stride)`` or ``(kernel, stride, dilation)`` of each, first layer first.
    """
    size, step = 1, 1
    for layer in layers:
        kernel, stride, dilation = (*layer, *(1, 1)[len(layer) - 1 :])
        size += dilation * (kernel - 1) * step
        step *= stride
    return size, step


def overlap_counts(kernel_size: int, stride: int, dilation: int = 1) -> list[int]:
    """How many input pixels reach each output phase of a transposed convolution, away from the borders, along one axis."""
    counts = [0] * stride
    for tap in range(kernel_size):
        counts[tap * dilation % stride] += 1
    return counts


def checkerboard_score(kernel_size: int, stride: int, dilation: int = 1) -> float:
    """Unevenness of a transposed convolution's overlap, 0 (uniform) to 1 (outputs that nothing reaches).

    ``1 - (min / max) ** 2`` of the overlap counts, the square for two axes. It is 0 iff the stride divides the kernel size
    (dilation 1): the rule against checkerboard artifacts (Odena et al. 2016).
    """
    counts = overlap_counts(kernel_size, stride, dilation)
    return 1 - (min(counts) / max(counts)) ** 2


def gridding_coverage(dilations: Sequence[int], kernel_size: int = 3) -> float:
    """Share of the receptive field's pixels that an output of these dilated convolutions in a row depends on.

    Below 1 there are holes: the gridding effect of dilations with a common factor (Wang et al. 2018, hybrid dilated
    convolution).
    """
    reached = {0}
    for dilation in dilations:
        reached = {at + tap * dilation for at in reached for tap in range(kernel_size)}
    return (len(reached) / (max(reached) + 1)) ** 2


def is_hybrid_dilation(dilations: Sequence[int], kernel_size: int = 3) -> bool:
    """Whether no pixel of the receptive field is left out, as in (1, 2, 5) and unlike (2, 4, 8)."""
    return gridding_coverage(dilations, kernel_size) == 1
