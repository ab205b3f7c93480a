"""``python -m benchmarks``: rows of every case, a table, and ``benchmarks/results/<device>.csv``."""

from __future__ import annotations

import argparse
import os
import sys


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    from benchmarks.cases import MODES, operators

    def listed(text: str) -> list[str]:
        return [part for part in text.split(",") if part]

    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--ops", type=listed, default=operators(), help="comma-separated; default: all")
    parser.add_argument("--cases", default="", metavar="TEXT", help="only cases whose name contains TEXT")
    parser.add_argument("--mode", type=listed, default=list(MODES), help="fwd,fwdbwd")
    parser.add_argument("--dtype", type=listed, default=["float32"], help="float32,bfloat16,float16,float64")
    parser.add_argument(
        "--baseline", type=listed, default=[], help="names of a case's baselines, and compile; default: its own"
    )
    parser.add_argument("--threads", type=int, default=None, help="default: torch's choice")
    parser.add_argument("--tier", default="default", help="as segkernels.backend() takes it")
    parser.add_argument(
        "--allocator",
        choices=("recycled", "default"),
        default="recycled",
        help="recycled: freed memory is handed out again (goals)",
    )
    parser.add_argument("--quick", action="store_true", help="half a second a row, no peak memory, nothing appended")
    parser.add_argument("--out", default=None, help="the CSV file to append to; default: benchmarks/results/<device>.csv")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a row is WRONG or under its goal")
    return parser.parse_args(argv)


def run(options: argparse.Namespace) -> int:
    from pathlib import Path

    import torch
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    import segkernels
    from benchmarks import ceilings, results, runner, table
    from benchmarks.cases import operators

    unknown = sorted(set(options.ops) - set(operators()))
    if unknown:
        raise SystemExit(f"--ops: no case file for {', '.join(unknown)}; there are {', '.join(operators())}")
    dtypes = [getattr(torch, name) for name in options.dtype]
    if options.threads:
        torch.set_num_threads(options.threads)
    segkernels.backend(options.tier)
    facts = results.provenance()
    todo = runner.plans(options.ops, options.mode, dtypes, options.cases)
    console = Console()
    # Narrower, the numbers would be cut.
    console.width = max(console.width, 150)
    console.print(f"{facts['device']}, {torch.get_num_threads()} threads, {runner.allocator()} memory, torch {facts['torch']}")
    tops = {dtype: ceilings.measure(dtype) for dtype in dtypes}
    for dtype, top in tops.items():
        console.print(f"{dtype}: copy {top.gbps:.1f} GB/s, matmul {top.gflops:.0f} GFLOP/s")
    rows = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=len(todo))
        for plan in todo:
            progress.update(task, description=f"{plan.op} {plan.case.name} {plan.mode}")
            rows.append(
                runner.take(
                    plan,
                    tops[plan.dtype],
                    facts,
                    budget=0.5 if options.quick else 4.0,
                    baselines=options.baseline,
                    with_memory=not options.quick,
                )
            )
            progress.advance(task)
    for op in options.ops:
        tier = segkernels.tiers()[op]["cpu"]["chosen"]
        console.print(table.of(f"{op} ({tier})", [row for row in rows if row.op == op]))
    failed = [row for row in rows if row.status != "ok"]
    groups = [(op, *verdict) for op in options.ops for verdict in runner.group_verdicts(op, rows)]
    for op, goal, mean, holds in groups:
        verdict = "ok" if holds else "under goal"
        console.print(f"{op}, {goal.group}, {goal.mode}: geometric mean {mean:.2f}x, goal {goal.ratio}x: {verdict}")
    if not options.quick or options.out:
        path = Path(options.out) if options.out else results.path_of(facts["device"])
        results.append(rows, path)
        console.print(f"appended to {path}")
    for row in failed:
        console.print(f"{row.status}: {row.op} {row.case} {row.mode} {row.dtype} (goal {row.goal})", style="red")
    return 1 if options.check and (failed or not all(holds for *_, holds in groups)) else 0


def main() -> int:
    options = arguments()
    from benchmarks import runner

    wanted = runner.RECYCLED if options.allocator == "recycled" else {}
    if options.allocator != runner.allocator():
        # glibc reads these when a process starts.
        environment = {name: value for name, value in os.environ.items() if name not in runner.RECYCLED} | wanted
        os.execve(sys.executable, [sys.executable, "-m", "benchmarks", *sys.argv[1:]], environment)
    return run(options)


if __name__ == "__main__":
    sys.exit(main())
