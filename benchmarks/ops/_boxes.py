"""Random boxes of an image, and torchvision's operators as baselines where it is installed."""

from __future__ import annotations

from collections.abc import Callable

import torch


def random_boxes(count: int, device: str = "cpu", size: float = 1000, largest: float = 200) -> torch.Tensor:
    corner = torch.rand(count, 2, device=device) * size
    return torch.cat([corner, corner + torch.rand(count, 2, device=device) * largest + 1], 1)


def torchvision_baseline(name: str) -> dict[str, Callable]:
    try:
        import torchvision
    except ImportError:
        return {}
    return {"torchvision": getattr(torchvision.ops, name)}
