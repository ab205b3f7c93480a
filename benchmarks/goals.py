"""What a row has to reach, and whether it does. A goal speaks of float32 on a CPU; those of a GPU name their dtypes."""

from __future__ import annotations

import math

from benchmarks.cases import BASELINES_PEAK, Case, GpuGoal
from benchmarks.results import Row
from benchmarks.timing import OURS, ratios

OK, UNDER = "ok", "under goal"
MIB = 2**20


def gpu_goal(case: Case, mode: str, dtype: str) -> GpuGoal:
    goal = case.gpu_goals.get(mode, GpuGoal())
    return goal if dtype in goal.dtypes else GpuGoal()


def text(case: Case, mode: str, dtype: str, device: str = "cpu") -> str:
    """The goals of a row in words; empty where it has none."""
    parts = []
    if device == "cuda":
        goal = gpu_goal(case, mode, dtype)
        parts += [f"{ratio}x" + ("" if name == "best" else f" {name}") for name, ratio in goal.ratios.items()]
        parts += [f"{100 * goal.roofline:.0f}% of roofline"] if goal.roofline else []
        parts += [f"{100 * goal.peak:.0f}% of peak"] if goal.peak is not None else []
    elif dtype == "float32":
        parts += [f"{case.goals[mode]}x"] if mode in case.goals else []
        parts += [f"{case.default_allocator_goals[mode]}x default allocator"] if mode in case.default_allocator_goals else []
        parts += [f"{100 * case.roofline_goals[mode]:.0f}% of roofline"] if mode in case.roofline_goals else []
        if mode in case.memory_goals:
            limit = case.memory_goals[mode]
            parts += ["baseline's peak" if limit == BASELINES_PEAK else f"{limit / MIB:.0f} MB"]
    if dtype == "float32" and mode in case.overhead_goals:
        parts += [f"+{case.overhead_goals[mode]} us"]
    return " ".join(parts)


def status(case: Case, row: Row, device: str, samples: dict[str, list[float]]) -> str:
    """``ok`` or ``under goal`` for a row whose numbers stand."""
    if device == "cuda":
        holds = _gpu_holds(gpu_goal(case, row.mode, row.dtype), row, samples)
    else:
        holds = row.dtype != "float32" or _cpu_holds(case, row)
    if row.dtype == "float32" and row.extra_us is not None:
        holds &= row.extra_us <= case.overhead_goals.get(row.mode, math.inf)
    return OK if holds else UNDER


def _cpu_holds(case: Case, row: Row) -> bool:
    goals = case.default_allocator_goals if row.allocator == "default" else case.goals
    fast = row.ratio is None or row.ratio >= goals.get(row.mode, 0.0)
    fast &= row.allocator == "default" or (row.roofline or 0.0) >= case.roofline_goals.get(row.mode, 0.0)
    limit = case.memory_goals.get(row.mode)
    if limit is None or row.peak_mb is None:
        return fast
    if limit != BASELINES_PEAK:
        return fast and row.peak_mb * MIB <= limit
    # The peak of the resident set is counted in pages and swings by a few blocks of the allocator.
    return fast and (row.baseline_peak_mb is None or row.peak_mb <= 1.02 * row.baseline_peak_mb + 0.5)


def _gpu_holds(goal: GpuGoal, row: Row, samples: dict[str, list[float]]) -> bool:
    found = {name: ratios(samples[OURS], values).p50 for name, values in samples.items() if name != OURS}
    if row.ratio is not None:
        found["best"] = row.ratio
    fast = all(found.get(name, math.inf) >= ratio for name, ratio in goal.ratios.items())
    near = (row.roofline or 0.0) >= goal.roofline
    if goal.peak is None or row.peak_mb is None or row.baseline_peak_mb is None:
        return fast and near
    return fast and near and row.peak_mb <= goal.peak * row.baseline_peak_mb
