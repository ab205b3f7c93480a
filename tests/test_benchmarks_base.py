"""``--base COMMIT``: another commit's package in a worktree of its own, and what is said of the two rows."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from rich.console import Console

from benchmarks import base, worker
from benchmarks.cases import case_named
from benchmarks.ceilings import Ceilings
from benchmarks.results import Row
from benchmarks.runner import Plan

ROOT = Path(__file__).parents[1]
FACTS = {"date": "2026-01-01T00:00:00Z", "commit": "abc", "device": "cpu", "torch": "2.13.0", "triton": "", "cuda": ""}


def row(**values) -> Row:
    start = {"op": "max_unpool2d", "case": "16x16", "tier": "cpu", "mode": "fwd", "dtype": "float32", "threads": 2}
    start |= {"allocator": "recycled", "status": "ok", "ratio": 2.0, "ratio_p20": 1.9, "ratio_p80": 2.1, "p50_us": 10.0}
    return Row(**FACTS | start | {"baseline": "eager", "baseline_p50_us": 20.0} | values)


def test_change_is_free_of_the_machines_drift():
    # Twice as slow a machine: our time has doubled, the ratio has not changed.
    assert base.change(row(p50_us=20.0, baseline_p50_us=40.0), row()) == pytest.approx(1.0)
    assert base.change(row(ratio=3.0), row()) == pytest.approx(1.5)
    assert base.change(row(baseline="torchvision", p50_us=5.0), row()) == pytest.approx(2.0), "of two baselines: the times"
    assert base.change(row(status="WRONG", p50_us=None), row()) is None


def test_verdict_is_silent_within_the_spread():
    assert base.verdict(row(ratio=2.2, ratio_p20=2.0, ratio_p80=2.4), row()) == ""
    assert base.verdict(row(ratio=3.0, ratio_p20=2.9, ratio_p80=3.1), row()) == "faster"
    assert base.verdict(row(ratio=1.0, ratio_p20=0.9, ratio_p80=1.1), row()) == "slower"


def test_table_names_what_is_missing(capsys):
    compared = [(row(ratio=1.0, ratio_p20=0.9, ratio_p80=1.1), row()), (row(case="new"), "ImportError: no such operator")]
    base.show(Console(width=150), "HEAD~1", compared)
    printed = capsys.readouterr().out
    assert "against HEAD~1" in printed and "0.5x" in printed and "slower" in printed and "ImportError" in printed


@pytest.mark.slow
def test_rows_come_from_the_other_package(monkeypatch):
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True)
    if shutil.which("git") is None or git.returncode != 0:
        pytest.skip("not a git checkout")
    # Building takes a minute; the libraries of this commit do for a test of everything else.
    libraries = [path for path in (ROOT / "segkernels").glob("*.so")]
    monkeypatch.setattr(base, "build", lambda tree, device: [shutil.copy(path, tree / "segkernels") for path in libraries])
    case = case_named("max_unpool2d", "8x8 overhead")
    options = {"budget": 0.0, "baselines": [], "with_memory": False}
    plan = Plan("max_unpool2d", case, "fwd", torch.float32)
    request = worker.request(plan, Ceilings(10.0, 100.0), FACTS, 1, "default", options)
    with base.worktree("HEAD") as tree:
        # What only the other package has must decide.
        operator = tree / "segkernels" / "ops" / "max_unpool2d.py"
        operator.write_text(
            operator.read_text() + "\nfrom benchmarks import goals\n\ngoals.OK = goals.UNDER = 'of the other package'\n"
        )
        with worker.Worker(dict(os.environ), tree) as other:
            taken = other.take(request)
            missing = other.take(request | {"op": "no_such_operator"})
    assert isinstance(taken, Row) and taken.p50_us > 0
    assert taken.status == "of the other package"
    assert isinstance(missing, str) and "no_such_operator" in missing
    assert not tree.exists()
    listed = subprocess.run(["git", "worktree", "list"], cwd=ROOT, capture_output=True, text=True).stdout
    assert str(tree) not in listed
