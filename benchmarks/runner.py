"""Takes the rows: prepares a case, lets the gate judge it, times its variants interleaved, and compares with the goal."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

import segkernels
from benchmarks import memory
from benchmarks.cases import Case, GroupGoal, load
from benchmarks.ceilings import Ceilings
from benchmarks.gate import first, is_right, step, with_leaves
from benchmarks.results import Row
from benchmarks.timing import Spread, interleaved, ratios
from segkernels.engine.memory import ENVIRONMENT as RECYCLED

OURS = "segkernels"


def allocator() -> str:
    return "recycled" if all(os.environ.get(name) == value for name, value in RECYCLED.items()) else "default"


@dataclass(frozen=True)
class Plan:
    op: str
    case: Case
    mode: str
    dtype: torch.dtype


def plans(ops: list[str], modes: list[str], dtypes: list[torch.dtype], pattern: str = "") -> list[Plan]:
    return [
        Plan(op, case, mode, dtype)
        for op in ops
        for case in load(op)[0]
        for dtype in dtypes
        for mode in case.modes
        if mode in modes and pattern in case.name
    ]


def prepare(
    case: Case, mode: str, dtype: torch.dtype, device: str, baselines: list[str]
) -> tuple[dict[str, Callable[[], Any]], bool]:
    """The variants' calls on the same fresh inputs, and whether ours gives the right values."""
    torch.manual_seed(0)
    inputs = case.inputs(dtype, device)
    seed = None
    if mode == "fwdbwd":
        with torch.no_grad():
            seed = torch.randn_like(first(case.ours(*inputs)))
    right = is_right(case, inputs, seed)
    functions = {OURS: case.ours, **{name: f for name, f in case.baselines.items() if name in baselines or not baselines}}
    if "compile" in baselines:
        functions["compile"] = torch.compile(next(iter(case.baselines.values())))
    shared = with_leaves(inputs, case.grad) if seed is not None else list(inputs)
    return {name: step(function, shared, case.grad, seed) for name, function in functions.items()}, right


def goal_text(case: Case, mode: str, dtype: torch.dtype) -> str:
    if dtype != torch.float32:
        return ""
    parts = [f"{case.goals[mode]}x"] if mode in case.goals else []
    parts += [f"+{case.overhead_goals[mode]} us"] if mode in case.overhead_goals else []
    return " ".join(parts)


def status(case: Case, mode: str, dtype: torch.dtype, ratio: float, extra_us: float) -> str:
    if dtype != torch.float32:
        return "ok"
    slow = ratio < case.goals.get(mode, 0.0) or extra_us > case.overhead_goals.get(mode, math.inf)
    return "under goal" if slow else "ok"


def take(
    plan: Plan, ceilings: Ceilings, facts: dict[str, str], *, budget: float, baselines: list[str], with_memory: bool
) -> Row:
    """One row."""
    case, mode = plan.case, plan.mode
    dtype = str(plan.dtype).removeprefix("torch.")
    row = Row(
        op=plan.op,
        case=case.name,
        mode=mode,
        dtype=dtype,
        tier=segkernels.tiers()[plan.op]["cpu"]["chosen"],
        threads=torch.get_num_threads(),
        allocator=allocator(),
        status="WRONG",
        goal=goal_text(case, mode, plan.dtype),
        copy_gbps=ceilings.gbps,
        matmul_gflops=ceilings.gflops,
        **facts,  # type: ignore[arg-type]
    )
    calls, right = prepare(case, mode, plan.dtype, "cpu", baselines)
    if not right:
        return row
    samples = interleaved(calls, budget)
    ours = Spread.of(samples[OURS])
    row.p20_us, row.p50_us, row.p80_us = (1e6 * seconds for seconds in (ours.p20, ours.p50, ours.p80))
    work = case.work(plan.dtype.itemsize)
    moved, flops = work.bytes[mode], work.flops.get(mode, 0)
    row.gbps, row.gflops = moved / ours.p50 / 1e9, flops / ours.p50 / 1e9
    row.roofline = ceilings.shortest(moved, flops) / ours.p50
    others = {name: Spread.of(values) for name, values in samples.items() if name != OURS}
    best = min(others, key=lambda name: others[name].p50)
    compared = ratios(samples[OURS], samples[best])
    row.baseline, row.baseline_p50_us = best, 1e6 * others[best].p50
    row.ratio, row.ratio_p20, row.ratio_p80 = compared.p50, compared.p20, compared.p80
    row.extra_us = 1e6 * Spread.of([a - b for a, b in zip(samples[OURS], samples[best])]).p50
    row.status = status(case, mode, plan.dtype, row.ratio, row.extra_us)
    if with_memory:
        peaks = memory.measure(plan.op, case.name, mode, dtype, row.threads, baselines)
        if peaks:
            row.peak_mb, row.baseline_peak_mb = peaks[OURS] / 2**20, peaks[best] / 2**20
    return row


def group_verdicts(op: str, rows: list[Row]) -> Iterator[tuple[GroupGoal, float, bool]]:
    """Each group goal of an op whose float32 cases all have a row: the goal, the geometric mean, and whether it holds."""
    cases, goals = load(op)
    for goal in goals:
        members = {case.name for case in cases if case.group == goal.group}
        found = {
            r.case: r.ratio for r in rows if r.op == op and r.mode == goal.mode and r.dtype == "float32" and r.case in members
        }
        values = [ratio for ratio in found.values() if ratio is not None]
        if len(values) == len(members):
            mean = math.exp(sum(map(math.log, values)) / len(values))
            yield goal, mean, mean >= goal.ratio
