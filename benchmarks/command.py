"""``segkernels bench``: rows of every case, a table, and ``benchmarks/results/<device>.csv``."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import sys
from pathlib import Path

from benchmarks import options as command_line


def plans(options: argparse.Namespace) -> list:
    """The rows to take, sweeps last."""
    import torch

    from benchmarks import runner

    types = [getattr(torch, name) for name in options.dtype]
    found = runner.plans(options.ops, options.mode, types, options.cases, options.device)
    if options.sweeps:
        found += runner.sweep_plans(options.ops, options.mode, options.cases, options.device)
    return [
        plan
        for plan in found
        if not options.baseline or options.baseline == ["compile"] or runner.chosen(plan.case, options.baseline)
    ]


def run(options: argparse.Namespace) -> int:
    import torch
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    import segkernels
    from benchmarks import base, ceilings, results, runner, table, worker

    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: torch finds no GPU here")
    if options.threads:
        torch.set_num_threads(options.threads)
    threads = torch.get_num_threads()
    segkernels.backend(options.tier)
    facts = results.provenance(options.device)
    todo = plans(options)
    if not todo:
        raise SystemExit("no case has this name, mode, device and baseline")
    console = Console()
    # Narrower, the numbers would be cut.
    console.width = max(console.width, 160)
    memory = f"{runner.allocator()} memory, " if options.device == "cpu" else ""
    console.print(f"{facts['device']}, {threads} threads of {os.cpu_count()} CPUs, {memory}torch {facts['torch']}")
    tops = {dtype: ceilings.measure(dtype, options.device) for dtype in dict.fromkeys(plan.dtype for plan in todo)}
    for dtype, top in tops.items():
        console.print(f"{dtype}: copy {top.gbps:.1f} GB/s, matmul {top.gflops:.0f} GFLOP/s")

    rows: list = []
    default_rows: list = []
    compared: list = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with contextlib.ExitStack() as stack:
        default = base_worker = None
        if options.allocator == "both":
            default = stack.enter_context(worker.Worker(without_settings()))
        if options.base:
            tree = stack.enter_context(base.worktree(options.base, console.print))
            base_worker = stack.enter_context(worker.Worker(dict(os.environ), tree))
        progress = stack.enter_context(Progress(*columns, console=console, transient=True))
        task = progress.add_task("", total=len(todo))
        for plan in todo:
            progress.update(task, description=f"{plan.op} {plan.case.name} {plan.mode}")
            settings = {"budget": 0.5 if options.quick else 1.0 if plan.axis else 4.0, "baselines": options.baseline}
            settings["with_memory"] = not options.quick and not plan.axis
            torch.set_num_threads(plan.threads or threads)
            rows.append(runner.take(plan, tops[plan.dtype], facts, **settings))
            request = dict(op=plan.op, case=plan.case.name, mode=plan.mode, dtype=plan.dtype_name, device=plan.device)
            request |= {"threads": threads, "tier": options.tier, "facts": facts, "options": settings | {"with_memory": False}}
            request["ceilings"] = dataclasses.astuple(tops[plan.dtype])
            if default and not plan.axis:
                default_rows.append(default.take(request))
            if base_worker and not plan.axis:
                compared.append((rows[-1], base_worker.take(request)))
            progress.advance(task)

    others = [row for row in default_rows if isinstance(row, results.Row)]
    table.show(console, rows, others)
    if options.base:
        base.show(console, options.base, compared)
    failed = [row for row in rows + others if row.status != "ok"]
    verdicts = [verdict for name in options.ops for verdict in runner.group_verdicts(name, rows)]
    verdicts += runner.sweep_verdicts(rows)
    for verdict in verdicts:
        console.print(verdict.text, style=None if verdict.holds else "red", markup=False, highlight=False)
    if not options.quick or options.out:
        path = Path(options.out) if options.out else results.path_of(facts["device"])
        results.append(rows + others, path)
        console.print(f"appended to {path}")
    for row in failed:
        line = (
            f"{row.status}: {row.op} {row.case} {row.mode} {row.dtype}, {row.allocator} allocator (goal {row.goal or 'none'})"
        )
        console.print(line, style="red", markup=False, highlight=False)
    return 1 if options.check and (failed or not all(verdict.holds for verdict in verdicts)) else 0


def without_settings() -> dict[str, str]:
    """This process's environment with glibc's own way to handle memory."""
    from benchmarks.runner import RECYCLED

    return {name: value for name, value in os.environ.items() if name not in RECYCLED}


def main(argv: list[str] | None = None) -> int:
    """Runs ``segkernels bench`` with these arguments and returns its exit status."""
    argv = sys.argv[1:] if argv is None else argv
    options = command_line.parse(argv)
    from benchmarks.results import ROOT
    from benchmarks.runner import RECYCLED, allocator

    wanted = {} if options.allocator == "default" else RECYCLED
    if options.device == "cpu" and (allocator() == "recycled") != bool(wanted):
        # glibc reads these when a process starts.
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        environment = without_settings() | wanted | {"PYTHONPATH": path}
        os.execve(sys.executable, [sys.executable, "-m", "benchmarks", *argv], environment)
    return run(options)
