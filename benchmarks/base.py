"""``--base COMMIT``: the package of another commit, built in a temporary worktree, row by row beside this one.

The cases, baselines and goals are this commit's on both sides: only ``segkernels`` is the other's.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks.results import ROOT, Row
from benchmarks.table import duration


def _run(*command: str, cwd: Path, **environment: str) -> None:
    done = subprocess.run(command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"--base: {' '.join(command[:3])} failed:\n{(done.stdout + done.stderr)[-2000:]}")


def build(tree: Path, device: str) -> None:
    """Its libraries; the CUDA one only where it is asked for, because it takes longer."""
    cuda = "1" if device == "cuda" else "0"
    command = (sys.executable, "setup.py", "-q", "build_ext", "--inplace")
    _run(*command, cwd=tree, SEGKERNELS_REQUIRE_NATIVE="1", SEGKERNELS_CUDA=cuda)


@contextlib.contextmanager
def worktree(commit: str, device: str = "cpu", say: Callable[[str], object] = print) -> Iterator[Path]:
    """A folder with that commit's package, built, and this commit's benchmarks; removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="segkernels-base-"))
    tree = folder / "tree"
    try:
        _run("git", "worktree", "add", "--detach", str(tree), commit, cwd=ROOT)
        say(f"building {commit}")
        build(tree, device)
        shutil.rmtree(tree / "benchmarks", ignore_errors=True)
        shutil.copytree(ROOT / "benchmarks", tree / "benchmarks", ignore=shutil.ignore_patterns("__pycache__", "results"))
        yield tree
    finally:
        subprocess.run(["git", "worktree", "remove", "--force", str(tree)], cwd=ROOT, capture_output=True)
        shutil.rmtree(folder, ignore_errors=True)


def change(row: Row, before: Row) -> float | None:
    """How many times faster than before, with the machine's own drift between the two rows taken out by their baseline."""
    if row.p50_us is None or before.p50_us is None:
        return None
    if row.ratio is None or before.ratio is None or row.baseline != before.baseline:
        return before.p50_us / row.p50_us
    return row.ratio / before.ratio


def show(console, commit: str, compared: Sequence[tuple[Row, Row | str]]) -> None:
    """One line a row: both medians, how many times faster, and whether that is more than the spread of the ratios."""
    from rich.table import Table

    table = Table(title=f"against {commit}", title_justify="left", header_style="bold")
    for name in ("op", "case", "mode"):
        table.add_column(name, no_wrap=True)
    for name in ("before", "now", "faster", ""):
        table.add_column(name, justify="right", no_wrap=True)
    for row, before in compared:
        start = (row.op, row.case, row.mode if row.dtype == "float32" else f"{row.mode} {row.dtype}")
        if isinstance(before, str):
            table.add_row(*start, "", "", "", before[:60])
            continue
        times = change(row, before)
        if times is None:
            table.add_row(*start, before.status, row.status, "", "", style="red" if row.status == "WRONG" else None)
            continue
        table.add_row(*start, duration(before.p50_us), duration(row.p50_us), f"{times:.3g}x", verdict(row, before))
    console.print(table)


def verdict(row: Row, before: Row) -> str:
    """``slower`` or ``faster`` where the ratios of the two rows lie apart from the 20th to the 80th percentile."""
    if row.ratio is None or before.ratio is None:
        return ""
    if row.ratio_p80 < before.ratio_p20:
        return "slower"
    return "faster" if row.ratio_p20 > before.ratio_p80 else ""
