"""``segkernels bench``: rows of every case, a table, and ``benchmarks/results/<device>.csv``."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path

from benchmarks import options as command_line


def plans(options: argparse.Namespace) -> list:
    """The rows to take, sweeps last."""
    import torch

    from benchmarks import runner

    types = [getattr(torch, name) for name in options.dtype]
    found = []
    if options.sweeps != "only":
        found += runner.plans(options.ops, options.mode, types, options.cases, options.device)
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

    import segkernels
    from benchmarks import ceilings, results, runner

    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: torch finds no GPU here")
    if options.threads:
        torch.set_num_threads(options.threads)
    segkernels.backend(options.tier)
    facts = results.provenance(options.device)
    todo = plans(options)
    if not todo:
        raise SystemExit("no case has this name, mode, device and baseline")
    console = Console(highlight=False, markup=False)
    # Narrower, the numbers would be cut.
    console.width = max(console.width, 160)
    memory = f"{runner.allocator()} memory, " if options.device == "cpu" else ""
    threads = f"{torch.get_num_threads()} threads of {os.cpu_count()} CPUs"
    console.print(f"{facts['device']}, {threads}, {memory}torch {facts['torch']}")
    repeats = 3 if options.quick else 7
    tops = {dtype: ceilings.measure(dtype, options.device, repeats) for dtype in dict.fromkeys(plan.dtype for plan in todo)}
    for dtype, top in tops.items():
        console.print(f"{dtype}: copy {top.gbps:.1f} GB/s, matmul {top.gflops:.0f} GFLOP/s")
    path = Path(options.out) if options.out else None if options.quick else results.path_of(facts["device"])
    rows, others, before = take(options, console, todo, tops, facts, path)
    if path:
        console.print(f"appended to {path}")
    return conclude(options, console, rows, others, before)


def take(options: argparse.Namespace, console, todo: list, tops: dict, facts: dict[str, str], path: Path | None):
    """All rows; those with the default allocator; and, with ``--base``, each row's counterpart, or why it has none."""
    import torch
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from benchmarks import base, results, runner, worker

    threads = torch.get_num_threads()
    rows, others, before = [], [], []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with contextlib.ExitStack() as stack:
        default = base_worker = None
        if options.allocator == "both":
            default = stack.enter_context(worker.Worker(without_settings()))
        if options.base:
            tree = stack.enter_context(base.worktree(options.base, options.device, console.print))
            base_worker = stack.enter_context(worker.Worker(dict(os.environ), tree))
        progress = stack.enter_context(Progress(*columns, console=console, transient=True))
        task = progress.add_task("", total=len(todo))
        for plan in todo:
            progress.update(task, description=f"{plan.op} {plan.case.name} {plan.mode}")
            budget = min(options.seconds, 1.0) if plan.axis else options.seconds
            settings = {"budget": budget, "baselines": options.baseline, "with_memory": not (options.quick or plan.axis)}
            torch.set_num_threads(plan.threads or threads)
            taken = [runner.take(plan, tops[plan.dtype], facts, **settings)]
            request = worker.request(plan, tops[plan.dtype], facts, threads, options.tier, settings | {"with_memory": False})
            if default and not plan.axis:
                other = default.take(request)
                taken += [other] if isinstance(other, results.Row) else []
            if base_worker and not plan.axis:
                before.append((taken[0], base_worker.take(request)))
            if path:
                # Row by row: what is taken stays, whatever ends the run.
                results.append(taken, path)
            rows.append(taken[0])
            others += taken[1:]
            progress.advance(task)
    torch.set_num_threads(threads)
    return rows, others, before


def conclude(options: argparse.Namespace, console, rows: list, others: list, before: list) -> int:
    """Prints tables and verdicts, and returns the exit status."""
    from benchmarks import base, goals, runner, table

    table.show(console, rows, others)
    if options.base:
        base.show(console, options.base, before)
    failed = [row for row in rows + others if row.status != goals.OK]
    verdicts = [verdict for name in options.ops for verdict in runner.group_verdicts(name, rows)]
    verdicts += runner.sweep_verdicts(rows)
    for verdict in verdicts:
        console.print(verdict.text, style=None if verdict.holds else "red")
    for row in failed:
        where = f"{row.op} {row.case} {row.mode} {row.dtype}, {row.allocator} allocator"
        console.print(f"{row.status}: {where} (goal {row.goal or 'none'})", style="red")
    return 1 if options.check and (failed or not all(verdict.holds for verdict in verdicts)) else 0


def without_settings() -> dict[str, str]:
    """This process's environment with glibc's own way to handle memory."""
    from benchmarks.runner import RECYCLED

    return {name: value for name, value in os.environ.items() if name not in RECYCLED}


def main(argv: list[str] | None = None) -> int:
    """Runs ``segkernels bench`` with these arguments and returns its exit status."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["report"]:
        from benchmarks import report

        return report.main(argv[1:])
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
