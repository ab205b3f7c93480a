"""Which memory format a result takes over: asked by the public functions and by every Python tier."""

from __future__ import annotations

import torch


def is_channels_last(tensor: torch.Tensor) -> bool:
    """Dense in channels_last and not also contiguous; csrc/common/check.h says the same for the compiled tiers."""
    return not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)


def memory_format(tensor: torch.Tensor) -> torch.memory_format:
    return torch.channels_last if is_channels_last(tensor) else torch.contiguous_format
