"""Weights: a file, its keys, and the model they are for."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from torch import nn

#: A state dict saved with ``torch.save(model.state_dict(), path)``.
Weights = str | os.PathLike[str]


def read_state_dict(path: Weights) -> dict[str, torch.Tensor]:
    """A state dict from a file, on the CPU; ``weights_only``, so that the file cannot run code."""
    return torch.load(path, map_location="cpu", weights_only=True)


def load_weights(model: nn.Module, weights: Weights | None, progress: bool = True) -> None:
    """Loads a state dict strictly into a model; None leaves the model as it was initialised."""
    if weights is not None:
        model.load_state_dict(read_state_dict(weights))


def load_backbone(
    backbone: nn.Module, weights: Weights | None, progress: bool = True, head: tuple[str, ...] = ("fc.",)
) -> None:
    """Loads a classifier's state dict into its encoder, which has all of its keys but those of its ``head``."""
    if weights is None:
        return
    state: Mapping[str, torch.Tensor] = read_state_dict(weights)
    backbone.load_state_dict({key: value for key, value in state.items() if not key.startswith(head)})
