"""The benchmark runner: its gate, its goals and its tables, on rows small enough for a test."""

from __future__ import annotations

import dataclasses
import functools
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from same_results import calls

import segkernels.models
from benchmarks import command, goals, options, readme, results, runner
from benchmarks.cases import BASELINES_PEAK, Case, GpuGoal, Sweep, Work, case_named, load, models, operators, sweeps
from benchmarks.ceilings import Ceilings
from benchmarks.gate import is_right, with_leaves
from benchmarks.models._case import model_case
from benchmarks.models._torch import on_torch
from benchmarks.results import Row
from benchmarks.timing import Spread, interleaved, ratios
from segkernels import cli

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


def test_what_cannot_run_has_a_reason():
    def no_such_type(x):
        raise NotImplementedError("no kernel for this dtype\nand a trace")

    row = take(relu_case(ours=no_such_type))
    assert row.status == "FAILED: NotImplementedError: no kernel for this dtype" and row.p50_us is None


def test_baseline_without_this_dtype_is_left_out():
    def single_only(x):
        if x.dtype == torch.bfloat16:
            raise RuntimeError("not implemented for 'BFloat16'")
        return F.relu(x)

    case = dataclasses.replace(relu_case(), baselines={"peer": single_only, "eager": F.relu})
    calls, right = runner.prepare(case, "fwdbwd", torch.bfloat16, "cpu", [])
    assert right and list(calls) == ["segkernels", "eager"]
    wrong = dataclasses.replace(case, ours=lambda x: F.relu(x) * 1.1)
    assert not runner.prepare(wrong, "fwdbwd", torch.bfloat16, "cpu", [])[1]
    assert list(runner.prepare(case, "fwd", torch.float32, "cpu", [])[0]) == ["segkernels", "peer", "eager"]


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


def test_labels_may_turn_over_where_the_baseline_does():
    inputs = (torch.randn(1000, 3),)
    case = dataclasses.replace(relu_case(), baselines={"eager": lambda x: x.argmax(1)}, ours=lambda x: x.argmax(1), grad=())
    assert is_right(case, inputs, None)
    one_off = dataclasses.replace(case, ours=lambda x: x.argmax(1).index_fill(0, torch.tensor([7]), 9))
    assert not is_right(one_off, inputs, None)


def test_gate_converts_tensors_inside_lists_and_tuples():
    pair = torch.randn(3), torch.randn(3)
    case = relu_case(ours=lambda pair, rest: pair[0] * rest[0][1])
    case = dataclasses.replace(case, baselines={"eager": case.ours}, grad=())
    assert is_right(case, (pair, [pair, (2, 3)]), None)
    image, (values, size) = with_leaves((pair, [pair, (2, 3)]), (), torch.float64)
    assert {tensor.dtype for tensor in (*image, *values)} == {torch.float64} and size == (2, 3)


def test_goals(monkeypatch):
    monkeypatch.setattr(runner, "allocator", lambda: "recycled")
    assert take(relu_case(goals={"fwd": 1e6})).status == "under goal"
    assert take(relu_case(overhead_goals={"fwd": 1e6})).status == "ok"
    assert take(relu_case(overhead_goals={"fwd": -1e6})).status == "under goal"
    # The allocator's page faults count for goals that ask for them, and for those alone.
    monkeypatch.setattr(runner, "allocator", lambda: "default")
    assert take(relu_case(goals={"fwd": 1e6})).status == "ok"
    assert take(relu_case(default_allocator_goals={"fwd": 1e6})).status == "under goal"


def row(**values) -> Row:
    """A row whose numbers stand; ``values`` replace some."""
    start = {"op": "max_unpool2d", "case": "16x16", "tier": "cpu", "mode": "fwd", "dtype": "float32", "threads": 2}
    start |= {"allocator": "recycled", "status": "ok", "ratio": 2.0, "ratio_p20": 1.9, "ratio_p80": 2.1, "extra_us": -9.0}
    return Row(**FACTS | start | {"p50_us": 10.0, "baseline": "eager", "baseline_p50_us": 20.0, "roofline": 0.5} | values)


def test_memory_goals():
    least = relu_case(memory_goals={"fwd": 3 * 2**20})
    assert goals.status(least, row(peak_mb=3.0, baseline_peak_mb=1.0), "cpu", {}) == "ok"
    assert goals.status(least, row(peak_mb=3.1, baseline_peak_mb=9.0), "cpu", {}) == "under goal"
    assert goals.status(least, row(), "cpu", {}) == "ok", "not taken"
    alike = relu_case(memory_goals={"fwd": BASELINES_PEAK})
    assert goals.status(alike, row(peak_mb=80.0, baseline_peak_mb=80.0), "cpu", {}) == "ok"
    assert goals.status(alike, row(peak_mb=90.0, baseline_peak_mb=80.0), "cpu", {}) == "under goal"
    assert goals.text(least, "fwd", "float32") == "3 MB" and goals.text(alike, "fwd", "float32") == "baseline's peak"


@pytest.mark.parametrize(
    ("goal", "holds"),
    [
        (GpuGoal({"best": 2.0}), True),
        (GpuGoal({"best": 2.1}), False),
        (GpuGoal({"eager": 3.0, "compile": 1.5}), True),
        (GpuGoal({"eager": 3.0, "compile": 2.5}), False),
        (GpuGoal({"smp": 9.0}), True),
        (GpuGoal(roofline=0.5), True),
        (GpuGoal(roofline=0.6), False),
        (GpuGoal(peak=0.05), True),
        (GpuGoal(peak=0.04), False),
        (GpuGoal({"best": 9.0}, dtypes=("bfloat16",)), True),
    ],
)
def test_gpu_goals(goal, holds):
    samples = {"segkernels": [1.0], "eager": [3.0], "compile": [2.0]}
    taken = row(peak_mb=5.0, baseline_peak_mb=100.0)
    assert goals.status(relu_case(gpu_goals={"fwd": goal}), taken, "cuda", samples) == ("ok" if holds else "under goal")
    # Goals of a CPU do not speak of a GPU, nor the other way round.
    assert goals.status(relu_case(goals={"fwd": 9.0}), taken, "cuda", samples) == "ok"
    assert goals.status(relu_case(gpu_goals={"fwd": goal}), taken, "cpu", samples) == "ok"


def test_group_goal_is_the_geometric_mean():
    cases, goals = load("conv_transpose2d")
    members = [case for case in cases if case.group == "unet decoder"]
    assert len(members) == 4
    rows = [
        Row(**FACTS | {"op": "conv_transpose2d", "case": case.name, "mode": "fwd", "dtype": "float32", "ratio": ratio},
            tier="cpu", threads=2, allocator="recycled", status="ok")
        for case, ratio in zip(members, (1.0, 1.0, 2.0, 2.0))
    ]  # fmt: skip
    (verdict,) = runner.group_verdicts("conv_transpose2d", rows)
    assert verdict.holds and "goal 1.1x: ok" in verdict.text
    assert verdict.value == pytest.approx(2**0.5)
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
    # A file of fewer columns, as an earlier version wrote it, gets the new ones, empty.
    table = [line.split(",") for line in path.read_text().splitlines()]
    path.write_text("".join(",".join(cells[:-1]) + "\n" for cells in table))
    results.append(rows[:1], path)
    assert [row.status for row in results.read(path)] == ["ok", "WRONG", "ok", "ok"]
    path.write_text("other,columns\n")
    with pytest.raises(SystemExit, match="columns"):
        results.append(rows, path)


def test_readme_table_shows_the_latest_row_and_losing_ones(tmp_path):
    row = take(relu_case())
    slow = dataclasses.replace(row, date="2026-02-01T00:00:00Z", ratio=0.5, ratio_p20=0.4, ratio_p80=0.6)
    others = [dataclasses.replace(row, op=op) for op in ("unet", "nms")]
    results.append([*others, row, slow], tmp_path / "device.csv")
    table = readme.rendered(tmp_path)
    assert table.index("`max_unpool2d`") < table.index("`nms`") < table.index("`unet`")  # operators, then models
    assert table.count("`max_unpool2d`") == 2  # of the summary and of the one row
    assert "| `max_unpool2d` | fwd | 1 | **0.5x** | 0.5x " in table
    assert "**0.5x** (0.4–0.6)" in table
    assert readme.replaced(f"a\n{readme.START}\nold\n{readme.END}\nb", table) == f"a\n{readme.START}\n{table}\n{readme.END}\nb"


def test_readme_is_up_to_date():
    text = readme.README.read_text()
    assert readme.replaced(text, readme.rendered()) == text, "run python -m benchmarks.readme"


def test_options():
    parsed = options.parse(["--dtype", "bf16,fp32", "--mode", "fwd", "--ops", "nms"])
    assert (parsed.dtype, parsed.mode, parsed.ops, parsed.allocator) == (["bfloat16", "float32"], ["fwd"], ["nms"], "both")
    assert options.parse(["--quick"]).allocator == "recycled"
    assert options.parse(["--sweeps", "only"]).sweeps == "only" and options.parse([]).sweeps is None
    assert options.parse(["--full"]).sweeps == "also" and options.parse(["--full"]).dtype == ["float32", "bfloat16"]
    for wrong in (["--ops", "nmss"], ["--dtype", "int8"], ["--mode", "bwd"], ["--quick", "--full"]):
        with pytest.raises(SystemExit):
            options.parse(wrong)


def test_baselines_by_their_first_word():
    case = dataclasses.replace(relu_case(), baselines={"eager": F.relu, "eager channels_last": F.relu, "smp": F.relu})
    assert list(runner.chosen(case, [])) == ["eager", "eager channels_last", "smp"]
    assert list(runner.chosen(case, ["eager"])) == ["eager", "eager channels_last"]
    assert list(runner.chosen(case, ["smp", "compile"])) == ["smp"]


def test_channels_last_baseline_gets_its_layout():
    seen = []

    def baseline(x):
        seen.append(x.is_contiguous(memory_format=torch.channels_last))
        return F.relu(x)

    case = relu_case(channels_last=("nhwc",))
    case = dataclasses.replace(case, baselines={"nhwc": baseline}, inputs=lambda d, _: (torch.randn(2, 3, 4, 4, dtype=d),))
    calls, right = runner.prepare(case, "fwdbwd", torch.float32, "cpu", [])
    seen.clear()
    output, gradient = calls["nhwc"]()
    assert right and seen == [True]
    assert torch.equal(output, calls["segkernels"]()[0]) and torch.equal(gradient, calls["segkernels"]()[1])


def test_command_line_of_the_package(monkeypatch, capsys):
    """``segkernels bench`` hands its arguments on, and without the checkout says in one line what it needs."""
    seen = []
    monkeypatch.setattr(command, "main", lambda argv: seen.append(argv) or 3)
    assert cli.main(["bench", "--ops", "nms", "--quick"]) == 3
    assert seen == [["--ops", "nms", "--quick"]]
    monkeypatch.setattr(cli, "__file__", "/nowhere/segkernels/cli.py")
    monkeypatch.chdir("/")
    assert cli.main(["bench"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.slow
def test_command_line(tmp_path):
    """The process that pytest runs in is another one: with recycled memory, and beside it one with the default allocator."""
    out = tmp_path / "rows.csv"
    start = [sys.executable, "-m", "segkernels", "bench", "--ops", "max_unpool2d", "--cases", "8x8", "--quick", "--out", out]
    result = subprocess.run(
        [*start, "--allocator", "both", "--threads", "1"], cwd=results.ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    recycled, default = results.read(out)
    assert (recycled.op, recycled.case, recycled.allocator) == ("max_unpool2d", "8x8 overhead", "recycled")
    assert (default.op, default.case, default.allocator) == ("max_unpool2d", "8x8 overhead", "default")
    assert recycled.status != "WRONG" and default.status != "WRONG"
    assert recycled.torch == torch.__version__ and "default allocator" in result.stdout


@pytest.mark.parametrize(("check", "expected"), [(True, 1), (False, 0)])
def test_check_fails_under_a_goal(check, expected, tmp_path, monkeypatch, capsys):
    case = relu_case(overhead_goals={"fwd": -1e6}, modes=("fwd",))
    monkeypatch.setattr(command, "plans", lambda parsed: [runner.Plan("max_unpool2d", case, "fwd", torch.float32)])
    monkeypatch.setattr("benchmarks.ceilings.measure", lambda dtype, device, repeats: Ceilings(10.0, 100.0))
    arguments = ["--ops", "max_unpool2d", "--quick", "--out", str(tmp_path / "rows.csv")]
    assert command.run(options.parse(arguments + ["--check"] * check)) == expected
    printed = capsys.readouterr().out
    assert "under goal: max_unpool2d 16x16" in printed and "roofline" in printed


def grown(size: int) -> Case:
    inputs = lambda dtype, device: (torch.randn(size, device=device).to(dtype),)  # noqa: E731
    return dataclasses.replace(relu_case(modes=("fwd",)), name=f"grown {size}", inputs=inputs)


def test_sweep_plans_and_verdicts(monkeypatch):
    sweep = Sweep("length", (10, 100, 1000), grown, elements=lambda n: n)
    monkeypatch.setattr(runner, "sweeps", lambda op: [sweep])
    plans = runner.sweep_plans(["max_unpool2d"], ["fwd", "fwdbwd"])
    expected = [(threads, n, n, "length") for threads in (1, 2) for n in (10, 100, 1000)]
    assert [(p.threads, p.size, p.elements, p.axis) for p in plans] == expected
    monkeypatch.setattr(runner, "free_memory", lambda device: 0)
    assert runner.sweep_plans(["max_unpool2d"], ["fwd"]) == [], "as far as memory reaches"

    def line(*times):
        return [row(axis="length", size=n, elements=n, p50_us=t) for n, t in zip((10, 100, 1000), times)]

    (flat,) = runner.sweep_verdicts(line(5.0, 10.0, 140.0))
    (steep,) = runner.sweep_verdicts(line(1.0, 10.0, 160.0))
    assert flat.holds and flat.value == pytest.approx(1.4)
    assert not steep.holds and "growing length" in steep.text
    assert list(runner.sweep_verdicts([row()])) == [], "not of a sweep"


@pytest.mark.parametrize("name", [*operators(), *models()])
def test_case_files(name):
    """Names are unique, also among the cases that grow, and every case is found by its name; each has work in its modes."""
    cases = load(name)[0] + [sweep.case(value) for sweep in sweeps(name) for value in sweep.values]
    assert len({case.name for case in cases}) == len(cases)
    for case in cases:
        assert case_named(name, case.name).name == case.name
        goals = (case.goals, case.overhead_goals, case.memory_goals, case.default_allocator_goals, case.gpu_goals)
        assert {mode for goal in goals for mode in goal} <= set(case.modes), f"{case.name}: a goal of a mode that is not taken"
        if name in operators():
            assert set(case.modes) <= set(case.work(4).bytes)


def test_every_model_has_a_row():
    rows = {word for name in models() for word in [name, *(case.name.split()[0] for case in load(name)[0])]}
    assert set(segkernels.models.list_models()) <= rows


def test_network_on_torch(monkeypatch):
    """The same parameters give the same results without any of our operators."""
    monkeypatch.setattr("segkernels.models.xception.MIDDLE", 1)
    build = functools.partial(segkernels.models.deeplabv3plus_xception, num_classes=2)
    torch.manual_seed(0)
    network = build().eval()
    plain = on_torch(build).eval()
    plain.load_state_dict(network.state_dict())
    image = torch.randn(1, 3, 33, 33)
    with torch.no_grad():
        assert calls(network, image) and not calls(plain, image)
        torch.testing.assert_close(plain(image)["out"], network(image)["out"], rtol=1e-4, atol=1e-6)


def test_model_case():
    """The network with its values handed in is the network; in training mode where a gradient is asked for."""

    def inner():
        return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.BatchNorm2d(4))

    case = model_case("small", inner, {"torch.nn": inner}, (2, 3, 8, 8))
    assert case.work(4).flops["fwd"] == 2 * 2 * 4 * 64 * 27
    image, parameters, buffers = case.inputs(torch.float32, "cpu")
    with torch.no_grad():
        evaluated = case.ours(image, parameters, buffers)
    trained = case.ours(image, parameters, buffers)
    assert not torch.equal(evaluated, trained)
    assert trained.mean().abs() < 1e-5, "normalised by the batch"
    calls, right = runner.prepare(case, "fwdbwd", torch.float32, "cpu", [])
    assert right and len(calls["torch.nn"]()) == 1 + 4
    wrong = dataclasses.replace(case, ours=lambda *inputs: case.ours(*inputs) * 1.01)
    assert not runner.prepare(wrong, "fwdbwd", torch.float32, "cpu", [])[1]
