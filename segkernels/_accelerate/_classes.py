"""How one module is replaced: its object stays, its class is exchanged for a subclass whose forward calls our op.

The object, its parameters, buffers, hooks, name, training mode and place in the model (in several places, when shared) stay
what they are because nothing but ``__class__`` changes; optimizers, DDP and EMA copies notice nothing. The new class derives
from the module's own, so isinstance holds, torch's forward is at hand for inputs that the op does not take, and the class to
go back to is known without a note in the instance: copies and pickles can be restored as well.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn

from segkernels import _register

FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
#: Elements of an input below which a call costs more than its work.
SMALL = 4096

_is_compiling = torch.compiler.is_compiling
_functorch_active = torch._C._are_functorch_transforms_active


@functools.cache
def devices(ops: tuple[str, ...]) -> frozenset[str]:
    """Device types on which each of these dispatcher ops has a kernel of ours."""
    table = {
        device: all(_register._default_tier(_register._operators[op], device) in ("cpu", "cuda", "triton") for op in ops)
        for device in _register.DEVICES
    }
    return frozenset(device for device, ready in table.items() if ready)


def why_no_kernel(ops: tuple[str, ...], device: str) -> str:
    """The reasons of ``segkernels.tiers()`` for the first op that has no kernel on this device."""
    for op in ops:
        entry = _register.tiers()[op].get(device)
        if entry is None:
            return f"no kernel of ours on {device}"
        if entry["chosen"] in ("reference", "vendor"):
            tier = "cpu" if device == "cpu" else "cuda"
            return f"no kernel of {op} on {device}: {entry['tiers'][tier] or entry['chosen'] + ' is in front'}"
    return f"no kernel of ours on {device}"


def suits(input: Any, on: frozenset[str]) -> bool:
    """Whether an op of ours takes this input as it is, on a device in ``on``; torch's own code gets what does not suit."""
    return (
        type(input) is torch.Tensor
        and input.dtype in FLOATING
        and input.device.type in on
        and input.numel() >= SMALL
        # Our ops have no batching rules: vmap would call them once per element.
        and (_is_compiling() or not _functorch_active())
    )


class Accelerated:
    """Base of the classes that stand in; ``_accelerated_from`` is the class that :func:`segkernels.restore` brings back."""

    _accelerated_from: type[nn.Module]
    _accelerated_by: type[Accelerated]
    _accelerated_on: frozenset[str]

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The class exists in this process only: copies and pickles build it again from the module's own class.
        cls = type(self)
        if "_accelerated_from" not in vars(cls):
            return super().__reduce_ex__(protocol)
        return _rebuild, (cls._accelerated_from, cls._accelerated_by), super().__reduce_ex__(protocol)[2]


_made: dict[tuple[type, type], type[nn.Module]] = {}


def accelerated_class(original: type[nn.Module], by: type[Accelerated], ops: tuple[str, ...]) -> type[nn.Module]:
    """A class named as ``original`` that is both, ``by`` first; the same one every time."""
    if (original, by) not in _made:
        values = {
            "__module__": by.__module__,
            "__doc__": original.__doc__,
            "_accelerated_from": original,
            "_accelerated_by": by,
            "_accelerated_on": devices(ops),
        }
        _made[original, by] = type(original.__name__, (by, original), values)
    return _made[original, by]


def original_class(module: nn.Module) -> type[nn.Module] | None:
    """The class that this module had before, or None if it is not accelerated."""
    return vars(type(module)).get("_accelerated_from")


def _rebuild(original: type[nn.Module], by: type[Accelerated]) -> nn.Module:
    from segkernels._accelerate._rules import ops_of

    cls = accelerated_class(original, by, ops_of(by))
    return cls.__new__(cls)
