"""Output sizes that operators and their tiers share."""

from __future__ import annotations

from collections.abc import Sequence


def output_size(
    size: Sequence[int], kernel_size: list[int], stride: list[int], padding: list[int], dilation: list[int], ceil_mode: bool
) -> list[int]:
    """``[h, w]`` of pooling. With ``ceil_mode`` a last window is kept only when it starts inside the input
    or its leading padding.
    """
    result = []
    for n, k, s, p, d in zip(size, kernel_size, stride, padding, dilation):
        out = (n + 2 * p - d * (k - 1) - 1 + (s - 1 if ceil_mode else 0)) // s + 1
        result.append(out - 1 if ceil_mode and (out - 1) * s >= n + p else out)
    return result
