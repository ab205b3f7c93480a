"""What loss modules share."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from segkernels.losses._statistics import check_names
from segkernels.ops._loss_arguments import Weights

_BUFFERS = ("class_weights", "pos_weight")


def as_buffer(weights: Weights | None) -> torch.Tensor | None:
    return None if weights is None else torch.as_tensor(weights, dtype=torch.float32)


class FunctionLoss(nn.Module):
    """A loss function as a module: the constructor takes what the function takes after (input, target).

    Weights are buffers, as in torch's losses: they move with the module.
    """

    function: Callable[..., torch.Tensor]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        bound = _signature(type(self)).bind(*args, **kwargs)
        bound.apply_defaults()
        options = bound.arguments
        check_names(options.get("reduction", "mean"), options.get("style", "lecture"))
        self.names = tuple(options)
        for name, value in options.items():
            if name in _BUFFERS:
                self.register_buffer(name, as_buffer(value))
            else:
                setattr(self, name, value)

    def __init_subclass__(cls) -> None:
        cls.__signature__ = _signature(cls)  # type: ignore[attr-defined]

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return type(self).function(input, target, **{name: getattr(self, name) for name in self.names})

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in self.names if name not in _BUFFERS)


def _signature(cls: type[FunctionLoss]) -> inspect.Signature:
    signature = inspect.signature(cls.function)
    return signature.replace(parameters=list(signature.parameters.values())[2:])
