"""What a case file in ``benchmarks/ops`` declares, and how case files are found.

A case file is named as its operator and holds ``CASES``, a list of :class:`Case`; goals over several cases stand in
``GROUP_GOALS``. It declares only: shapes, work, calls and goals. The runner does the timing.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

#: Forward under no_grad; forward and backward.
MODES = ("fwd", "fwdbwd")


@dataclass(frozen=True)
class Work:
    """What an ideal implementation moves and computes, per mode: bytes and floating-point operations."""

    bytes: dict[str, int]
    flops: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """One shape of one operator: ``ours(*inputs)`` against each of ``baselines``, called alike."""

    name: str
    #: ``inputs(dtype, device)``: fresh random values, never zeros
    inputs: Callable[[torch.dtype, str], Sequence[Any]]
    ours: Callable[..., Any]
    baselines: dict[str, Callable[..., Any]]
    #: ``work(dtype's size in bytes)``
    work: Callable[[int], Work]
    modes: tuple[str, ...] = MODES
    #: positions of the inputs that take a gradient
    grad: tuple[int, ...] = (0,)
    #: mode -> least ratio of the best baseline's time to ours (float32)
    goals: dict[str, float] = field(default_factory=dict)
    #: mode -> most microseconds over the best baseline, for calls whose work is nothing
    overhead_goals: dict[str, float] = field(default_factory=dict)
    #: name under which GROUP_GOALS of the file speaks of this case
    group: str | None = None
    #: results are moved or counted, not computed: equal, not close
    exact: bool = False


@dataclass(frozen=True)
class GroupGoal:
    """The geometric mean of the ratios of a group's cases."""

    group: str
    mode: str
    ratio: float


FOLDER = Path(__file__).parent / "ops"


def operators() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("_"))


def load(op: str) -> tuple[list[Case], list[GroupGoal]]:
    module = importlib.import_module(f"benchmarks.ops.{op}")
    return module.CASES, getattr(module, "GROUP_GOALS", [])
