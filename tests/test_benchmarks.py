"""The benchmark runner: its gate, its goals and its tables, on rows small enough for a test."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from benchmarks import readme, results, runner
from benchmarks.cases import Case, Work, load
from benchmarks.ceilings import Ceilings
from benchmarks.gate import is_right
from benchmarks.results import Row
from benchmarks.timing import Spread, interleaved, ratios

FACTS = {"date": "2026-01-01T00:00:00Z", "commit": "abc", "device": "cpu", "torch": "2.13.0", "triton": "", "cuda": ""}


def relu_case(ours=F.relu, **rest):
    return Case(
        name="16x16",
        inputs=lambda dtype, device: (torch.randn(16, 16, device=device).to(dtype),),
        ours=ours,
        baselines={"eager": F.relu},
        work=lambda size: Work({"fwd": 512 * size, "fwdbwd": 1280 * size}),
        **rest,
    )


def take(case, mode="fwd"):
    plan = runner.Plan("max_unpool2d", case, mode, torch.float32)
    return runner.take(plan, Ceilings(10.0, 100.0), FACTS, budget=0.05, baselines=[], with_memory=False)


@pytest.mark.parametrize("mode", ["fwd", "fwdbwd"])
def test_row_of_a_right_case(mode):
    row = take(relu_case(), mode)
    assert row.status == "ok"
    assert row.p20_us <= row.p50_us <= row.p80_us
    assert row.ratio_p20 <= row.ratio <= row.ratio_p80
    assert row.gbps == pytest.approx((2048 if mode == "fwd" else 5120) / row.p50_us / 1e3)
    assert row.roofline == pytest.approx(row.gbps / 10)


def test_wrong_result_has_no_speed():
    row = take(relu_case(ours=lambda x: F.relu(x) + 1e-3))
    assert row.status == "WRONG"
    assert row.p50_us is None and row.ratio is None


def test_wrong_gradient_is_wrong():
    class Halved(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return F.relu(x)

        @staticmethod
        def backward(ctx, grad):
            return grad * (ctx.saved_tensors[0] > 0) * 0.5

    case = relu_case(ours=Halved.apply)
    inputs = case.inputs(torch.float32, "cpu")
    assert is_right(case, inputs, None)
    assert not is_right(case, inputs, torch.randn(16, 16))


def test_goals():
    assert take(relu_case(goals={"fwd": 1e6})).status == "under goal"
    assert take(relu_case(overhead_goals={"fwd": 1e6})).status == "ok"
    assert take(relu_case(overhead_goals={"fwd": -1e6})).status == "under goal"


def test_group_goal_is_the_geometric_mean():
    cases, goals = load("conv_transpose2d")
    members = [case for case in cases if case.group == "unet decoder"]
    assert len(members) == 4
    rows = [
        Row(**FACTS | {"op": "conv_transpose2d", "case": case.name, "mode": "fwd", "dtype": "float32", "ratio": ratio},
            tier="cpu", threads=2, allocator="recycled", status="ok")
        for case, ratio in zip(members, (1.0, 1.0, 2.0, 2.0))
    ]  # fmt: skip
    ((goal, mean, holds),) = runner.group_verdicts("conv_transpose2d", rows)
    assert (goal.ratio, holds) == (1.1, True)
    assert mean == pytest.approx(2**0.5)
    assert list(runner.group_verdicts("conv_transpose2d", rows[:3])) == [], "not from a part of the group"


def test_interleaved_and_ratios():
    calls = []
    samples = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, budget=0.0, least_rounds=7)
    assert len(samples["a"]) == len(samples["b"]) == 7
    assert ratios([1.0, 2.0, 4.0], [2.0, 4.0, 8.0]) == Spread(2.0, 2.0, 2.0)
    assert Spread.of([4.0, 1.0, 2.0, 3.0, 5.0, 6.0]) == Spread(2.0, 3.5, 5.0)


def test_results_survive_the_file(tmp_path):
    rows = [take(relu_case()), take(relu_case(ours=F.sigmoid))]
    path = tmp_path / "device.csv"
    results.append(rows, path)
    results.append(rows[:1], path)
    read = results.read(path)
    assert len(read) == 3
    assert read[0].p50_us == pytest.approx(rows[0].p50_us, rel=1e-4)
    assert read[1].status == "WRONG" and read[1].p50_us is None
    path.write_text("other,columns\n")
    with pytest.raises(SystemExit, match="columns"):
        results.append(rows, path)


def test_readme_table_shows_the_latest_row_and_losing_ones(tmp_path):
    row = take(relu_case())
    slow = dataclasses.replace(row, date="2026-02-01T00:00:00Z", ratio=0.5, ratio_p20=0.4, ratio_p80=0.6)
    results.append([row, slow], tmp_path / "device.csv")
    table = readme.rendered(tmp_path)
    assert table.count("`max_unpool2d`") == 1
    assert "**0.5x** (0.4–0.6)" in table
    assert readme.replaced(f"a\n{readme.START}\nold\n{readme.END}\nb", table) == f"a\n{readme.START}\n{table}\n{readme.END}\nb"


def test_readme_is_up_to_date():
    text = readme.README.read_text()
    assert readme.replaced(text, readme.rendered()) == text, "run python -m benchmarks.readme"


@pytest.mark.slow
def test_command_line(tmp_path):
    """The process that pytest runs in is another one: with recycled memory, to the CSV file, with the exit status."""
    out = tmp_path / "rows.csv"
    command = [sys.executable, "-m", "benchmarks", "--ops", "max_unpool2d", "--cases", "8x8", "--quick", "--out", out]
    result = subprocess.run(command, cwd=results.ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    (row,) = results.read(out)
    assert (row.op, row.case, row.allocator) == ("max_unpool2d", "8x8 overhead", "recycled")
    assert row.status != "WRONG"
    assert row.torch == torch.__version__
