"""What a case file in ``benchmarks/ops`` or ``benchmarks/models`` declares, and how case files are found.

A case file is named as its operator or model and holds ``CASES``, a list of :class:`Case`; goals over several cases stand
in ``GROUP_GOALS``, cases that grow in ``SWEEPS``. It declares only: shapes, work, calls and goals. The runner does the timing.
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
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
class GpuGoal:
    """What a row on a GPU has to reach, in one of ``dtypes``."""

    #: baseline, or "best" of them -> least ratio of its time to ours; a baseline that was not run asks for nothing
    ratios: dict[str, float] = field(default_factory=dict)
    #: least share of the roofline
    roofline: float = 0.0
    #: most share of the best baseline's peak memory
    peak: float | None = None
    dtypes: tuple[str, ...] = ("float32", "bfloat16", "float16")


HALF = ("bfloat16", "float16")
#: As a memory goal: at most what the best baseline takes.
BASELINES_PEAK = -1


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
    #: mode -> most bytes of peak memory (float32, CPU), or BASELINES_PEAK
    memory_goals: dict[str, int] = field(default_factory=dict)
    #: mode -> least share of the roofline (float32, CPU)
    roofline_goals: dict[str, float] = field(default_factory=dict)
    #: mode -> least ratio with the default allocator, whose page faults count (float32)
    default_allocator_goals: dict[str, float] = field(default_factory=dict)
    #: mode -> what a GPU row has to reach
    gpu_goals: dict[str, GpuGoal] = field(default_factory=dict)
    #: name under which GROUP_GOALS of the file speaks of this case
    group: str | None = None
    #: results are moved or counted, not computed: equal, not close
    exact: bool = False
    #: baselines that get their images, weights and gradients in channels_last
    channels_last: tuple[str, ...] = ()
    #: judge all gradients as one vector: in a deep model those that should be zero are noise
    gradients_as_one: bool = False
    #: where the case is taken
    devices: tuple[str, ...] = ("cpu", "cuda")


@dataclass(frozen=True)
class Sweep:
    """Cases that grow along one axis; the time per element is to stay flat."""

    axis: str
    values: tuple[int, ...]
    case: Callable[[int], Case]
    #: value -> elements worked on; default: the bytes of the case's work
    elements: Callable[[int], int] | None = None


@dataclass(frozen=True)
class GroupGoal:
    """The geometric mean of the ratios of a group's cases."""

    group: str
    mode: str
    ratio: float


ROOT = Path(__file__).parent


def _stems(kind: str) -> list[str]:
    return sorted(path.stem for path in (ROOT / kind).glob("*.py") if not path.stem.startswith("_"))


def operators() -> list[str]:
    return _stems("ops")


def models() -> list[str]:
    return _stems("models")


def module(name: str) -> ModuleType:
    """The case file of an operator or a model."""
    return importlib.import_module(f"benchmarks.{'models' if name in models() else 'ops'}.{name}")


def load(name: str) -> tuple[list[Case], list[GroupGoal]]:
    return module(name).CASES, getattr(module(name), "GROUP_GOALS", [])


def sweeps(name: str) -> list[Sweep]:
    return getattr(module(name), "SWEEPS", [])


def case_named(name: str, case: str) -> Case:
    """The case of this name, also one of a sweep."""
    grown = (sweep.case(value) for sweep in sweeps(name) for value in sweep.values)
    return next(found for found in itertools.chain(load(name)[0], grown) if found.name == case)
