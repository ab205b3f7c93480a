"""Builders by name, and what they share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

_builders: dict[str, Callable[..., nn.Module]] = {}
Builder = TypeVar("Builder", bound=Callable[..., nn.Module])


def register_model(builder: Builder) -> Builder:
    """Decorator that lists a builder under its function name."""
    _builders[builder.__name__] = builder
    return builder


def list_models() -> list[str]:
    """Names of all models that :func:`get_model` builds, sorted."""
    return sorted(_builders)


def get_model(name: str, **config: Any) -> nn.Module:
    """Builds a model by name: ``get_model("unet", width=32)`` is ``unet(width=32)``.

    Args:
        name: one of :func:`list_models`.
        config: the builder's own keyword arguments.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in _builders:
        raise ValueError(f"name: expected one of {', '.join(list_models())}, got {name!r}")
    return _builders[name](**config)


def check_input(input: torch.Tensor, in_channels: int, smallest: int) -> None:
    """Raises a ValueError unless ``input`` is ``[N, in_channels, H, W]`` with H and W of at least ``smallest``."""
    if input.dim() != 4 or input.shape[1] != in_channels or min(input.shape[2:]) < smallest:
        raise ValueError(
            f"input: expected [N, {in_channels}, H, W] with H and W of at least {smallest}, got {list(input.shape)}"
        )
