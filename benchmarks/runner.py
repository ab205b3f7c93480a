"""Takes the rows: prepares a case, lets the gate judge it, times its variants interleaved, and compares with the goal."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

import segkernels
from benchmarks import goals, gpu, memory
from benchmarks.cases import Case, Work, load, sweeps
from benchmarks.ceilings import Ceilings
from benchmarks.gate import attempt, channels_last, copied, first, is_right, step
from benchmarks.results import Row
from benchmarks.timing import OURS, Spread, interleaved, ratios
from segkernels.engine.memory import ENVIRONMENT as RECYCLED

#: A sweep goes on while this many times the bytes it moves are free: the gate holds float64 copies.
SWEEP_MEMORY = 8
#: What an element may take at the largest size of a sweep, to what it takes at the one in the middle.
MOST_GROWTH = 1.5


def allocator() -> str:
    return "recycled" if all(os.environ.get(name) == value for name, value in RECYCLED.items()) else "default"


@dataclass(frozen=True)
class Plan:
    op: str
    case: Case
    mode: str
    dtype: torch.dtype
    device: str = "cpu"
    #: of a sweep
    axis: str = ""
    size: int | None = None
    elements: int | None = None
    threads: int | None = None

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")


def plans(ops: list[str], modes: list[str], dtypes: list[torch.dtype], pattern: str = "", device: str = "cpu") -> list[Plan]:
    return [
        Plan(op, case, mode, dtype, device)
        for op in ops
        for case in load(op)[0]
        for dtype in dtypes
        for mode in case.modes
        if mode in modes and pattern in case.name and device in case.devices
    ]


def sweep_plans(ops: list[str], modes: list[str], pattern: str = "", device: str = "cpu") -> list[Plan]:
    """The cases that grow, as far as memory reaches: in float32, on a CPU on one thread and on two."""
    found = []
    for op in ops:
        for sweep in sweeps(op):
            for threads in (1, 2) if device == "cpu" else (None,):
                for value in sweep.values:
                    case = sweep.case(value)
                    for mode in case.modes:
                        moved = case.work(torch.float32.itemsize).bytes[mode]
                        if mode not in modes or pattern not in case.name or moved * SWEEP_MEMORY > free_memory(device):
                            continue
                        elements = sweep.elements(value) if sweep.elements else moved
                        found.append(Plan(op, case, mode, torch.float32, device, sweep.axis, value, elements, threads))
    return found


def free_memory(device: str) -> int:
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def chosen(case: Case, wanted: list[str]) -> dict[str, Callable[..., Any]]:
    """The baselines asked for, by their first word: ``eager`` is also ``eager channels_last``. None named: all."""
    return {name: call for name, call in case.baselines.items() if not wanted or name.split()[0] in wanted}


def prepare(
    case: Case, mode: str, dtype: torch.dtype, device: str, baselines: list[str], l2: int = 0, judge: bool = True
) -> tuple[dict[str, gpu.Rotation], bool]:
    """The variants' calls on the same fresh inputs, and whether ours gives the right values; not ``judge``: True.

    With a cache of ``l2`` bytes each variant turns over copies of the inputs that it does not hold.
    """
    torch.manual_seed(0)
    inputs = case.inputs(dtype, device)
    seed = None
    if mode == "fwdbwd":
        with torch.no_grad():
            seed = torch.randn_like(first(case.ours(*inputs)))
    right = not judge or is_right(case, inputs, seed)
    functions = {OURS: case.ours, **chosen(case, baselines)}
    wanted_gpu = case.gpu_goals.get(mode) if device == "cuda" and not baselines else None
    if "compile" in baselines or (wanted_gpu and "compile" in wanted_gpu.ratios):
        functions["compile"] = torch.compile(next(iter(case.baselines.values())))
    grad = case.grad if seed is not None else ()
    copies = gpu.copies_for(gpu.size_of(inputs), l2) if l2 else 1
    shared = [copied(inputs, grad) if copies > 1 or grad else list(inputs) for _ in range(copies)]
    seeds = [None if seed is None else seed.clone() for _ in range(copies)]
    calls = {}
    for name, function in functions.items():
        mine, mine_seeds = shared, seeds
        if name in case.channels_last:
            mine = [channels_last(values) for values in shared]
            mine_seeds = channels_last(seeds)
        call = gpu.Rotation([step(function, values, grad, last) for values, last in zip(mine, mine_seeds)])
        if name == OURS or attempt(call) is not None:
            calls[name] = call
    return calls, right


def take(
    plan: Plan, ceilings: Ceilings, facts: dict[str, str], *, budget: float, baselines: list[str], with_memory: bool
) -> Row:
    """One row. What cannot run here, a baseline without this dtype for one, has a reason in place of a speed."""
    case, mode, device = plan.case, plan.mode, plan.device
    tiers = segkernels.tiers().get(plan.op)
    row = Row(
        op=plan.op,
        case=case.name,
        mode=mode,
        dtype=plan.dtype_name,
        tier=tiers[device]["chosen"] if tiers else "",
        threads=torch.get_num_threads(),
        allocator="caching" if device == "cuda" else allocator(),
        status="WRONG",
        goal=goals.text(case, mode, plan.dtype_name, device),
        copy_gbps=ceilings.gbps,
        matmul_gflops=ceilings.gflops,
        axis=plan.axis,
        size=plan.size,
        elements=plan.elements,
        **facts,  # type: ignore[arg-type]
    )
    try:
        _measure(plan, row, ceilings, budget, baselines, with_memory)
    except Exception as error:
        row.status = f"FAILED: {type(error).__name__}: {str(error).partition(chr(10))[0][:160]}"
    return row


def _measure(plan: Plan, row: Row, ceilings: Ceilings, budget: float, baselines: list[str], with_memory: bool) -> None:
    case, mode, device = plan.case, plan.mode, plan.device
    l2 = torch.cuda.get_device_properties(device).L2_cache_size if device == "cuda" else 0
    calls, right = prepare(case, mode, plan.dtype, device, baselines, l2)
    if not right:
        return
    if device == "cuda":
        samples, row.clock = gpu.measure(calls, budget, overhead=mode in case.overhead_goals)
    else:
        samples, row.clock = interleaved(calls, budget), "wall"
    peaks: dict[str, int] = {}
    if with_memory and device == "cuda":
        peaks = {name: gpu.peak_of(call) for name, call in calls.items()}
    elif with_memory:
        peaks = memory.measure(plan.op, case.name, mode, row.dtype, int(row.threads), baselines)
    fill(row, case.work(plan.dtype.itemsize), ceilings, samples, peaks)
    row.status = goals.status(case, row, device, samples)


def fill(row: Row, work: Work, ceilings: Ceilings, samples: dict[str, list[float]], peaks: dict[str, int]) -> None:
    """The numbers of a row from its samples."""
    ours = Spread.of(samples[OURS])
    row.p20_us, row.p50_us, row.p80_us = (1e6 * seconds for seconds in (ours.p20, ours.p50, ours.p80))
    moved, flops = work.bytes[row.mode], work.flops.get(row.mode, 0)
    row.gbps, row.gflops = moved / ours.p50 / 1e9, flops / ours.p50 / 1e9
    row.roofline = ceilings.shortest(moved, flops) / ours.p50
    if peaks:
        row.peak_mb = peaks[OURS] / 2**20
    others = {name: Spread.of(values) for name, values in samples.items() if name != OURS}
    if not others:
        return
    best = min(others, key=lambda name: others[name].p50)
    compared = ratios(samples[OURS], samples[best])
    row.baseline, row.baseline_p50_us = best, 1e6 * others[best].p50
    row.ratio, row.ratio_p20, row.ratio_p80 = compared.p50, compared.p20, compared.p80
    row.extra_us = 1e6 * Spread.of([a - b for a, b in zip(samples[OURS], samples[best])]).p50
    if peaks:
        row.baseline_peak_mb = peaks[best] / 2**20


@dataclass(frozen=True)
class Verdict:
    """On rows taken together."""

    text: str
    value: float
    holds: bool


def group_verdicts(op: str, rows: list[Row]) -> Iterator[Verdict]:
    """Each group goal of an op whose float32 cases all have a row: the geometric mean of the ratios, and whether it holds."""
    cases, wanted = load(op)
    for goal in wanted:
        members = {case.name for case in cases if case.group == goal.group}
        found = {
            r.case: r.ratio for r in rows if r.op == op and r.mode == goal.mode and r.dtype == "float32" and r.case in members
        }
        values = [ratio for ratio in found.values() if ratio is not None]
        if len(values) == len(members):
            mean = math.exp(sum(map(math.log, values)) / len(values))
            holds = mean >= goal.ratio
            text = f"{op}, {goal.group}, {goal.mode}: geometric mean {mean:.2f}x, goal {goal.ratio}x: "
            yield Verdict(text + (goals.OK if holds else goals.UNDER), mean, holds)


def sweep_verdicts(rows: list[Row]) -> Iterator[Verdict]:
    """Of each sweep: how much more time an element takes at the largest size than at the one in the middle."""
    lines: dict[tuple[str, str, str, int], list[Row]] = {}
    for row in rows:
        if row.axis and row.p50_us is not None:
            lines.setdefault((row.op, row.axis, row.mode, int(row.threads)), []).append(row)
    for (op, axis, mode, threads), line in lines.items():
        each = [row.p50_us / row.elements for row in sorted(line, key=lambda row: row.size)]
        growth = each[-1] / each[(len(each) - 1) // 2]
        holds = growth <= MOST_GROWTH
        text = f"{op}, growing {axis}, {mode}, {threads} threads: {growth:.2f}x the time an element at the end, "
        yield Verdict(text + f"goal {MOST_GROWTH}x: " + (goals.OK if holds else goals.UNDER), growth, holds)
