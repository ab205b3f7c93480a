"""The command line, and what importing the package costs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import segkernels
from segkernels import cli
from segkernels.engine import console, memory

ROOT = Path(__file__).parent.parent


def run(*command: str, **environment: str | None) -> subprocess.CompletedProcess[str]:
    """Runs Python in a process of its own; an environment variable of None is unset."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        timeout=300,
        env={k: v for k, v in (os.environ | {"PYTHONPATH": path} | environment).items() if v is not None},
    )


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    printed = capsys.readouterr().out
    for op, devices in segkernels.tiers().items():
        assert op in printed
        for entry in devices.values():
            for reason in entry["tiers"].values():
                assert reason is None or reason in printed
    assert "CHOSEN" in printed and "Memory:" in printed


def test_doctor_json() -> None:
    done = run("-m", "segkernels", "doctor", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["versions"]["segkernels"] == segkernels.__version__
    assert found["versions"]["torch"] and found["versions"]["numpy"] and "triton" in found["versions"]
    assert found["build"] == json.loads(json.dumps(segkernels.build_info()))
    chosen = {op: {device: entry["chosen"] for device, entry in row.items()} for op, row in found["operators"].items()}
    assert chosen == {op: {device: e["chosen"] for device, e in row.items()} for op, row in segkernels.tiers().items()}
    assert set(found["operators"]["max_unpool2d"]["cpu"]) == {"chosen", "tiers"}
    assert found["devices"]["cpu"]


def test_doctor_without_rich(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert cli.main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "max_unpool2d_backward" in printed and "CHOSEN" in printed and "┃" not in printed


def test_build_info() -> None:
    info = segkernels.build_info()
    assert info["version"] == segkernels.__version__
    assert set(info["libraries"]) >= {"_ops_cpu", "_ops_cuda", "_C"}
    if info["libraries"]["_C"] is None:
        assert "-std=c++20" in info["flags"] and info["torch_floor"] == "2.10" and info["compiler"]
        assert info["simd_level"] in ("x86-64", "x86-64-v3", "x86-64-v4", "baseline")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc")
@pytest.mark.parametrize("setting", ["default", "environment", "recycle"])
def test_page_faults_are_found_and_stopped(setting: str) -> None:
    call = "memory.recycle(); " if setting == "recycle" else ""
    code = f"from segkernels.engine import memory; {call}print(memory.measure()['page_faults'])"
    environment = memory.ENVIRONMENT if setting == "environment" else dict.fromkeys(memory.ENVIRONMENT)
    done = run("-c", code, **environment)
    assert done.stdout.strip() == str(setting == "default"), done.stderr


def test_plain_table_and_progress(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    plain = console.Console()
    plain.table("Title", ("name", "value"), [("[a]", 1.5), ("b", 0.00002)])
    with plain.progress(20, "working") as advance:
        for i in range(20):
            advance(f"at {i}")
    lines = capsys.readouterr().out.splitlines()
    assert lines[:5] == ["", "Title", "name    value", "-------------", "[a]     1.500"]
    assert lines[5] == "b     2.0e-05"
    assert len(lines) == 6 + 10 and lines[-1] == "working: 20/20, at 19"


@pytest.mark.slow
def test_demo_quick(tmp_path: Path) -> None:
    pytest.importorskip("imgviz")
    pytest.importorskip("matplotlib")
    done = run("-m", "segkernels", "demo", "--quick", "--steps", "3", "--output", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert "fits one photograph" in done.stdout
    for name in ("overlay.png", "curves.png"):
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["training"]["steps"] == 3
    ours, theirs = report["training"]["losses"].values()
    assert len(ours) == len(theirs) == 3
    assert ours == pytest.approx(theirs, abs=1e-4)
    assert 0 <= report["metrics"]["person"]["iou"] <= report["metrics"]["person"]["dice"] <= 1
    # Every pixel of the photograph is counted once.
    assert sum(map(sum, report["metrics"]["confusion_matrix"])) == 375 * 500
    assert {"conv_transpose2d", "max_unpool2d", "dice_bce_loss"} <= {row["operator"] for row in report["ops"]}
    for row in report["ops"]:
        assert row["error"] <= 2 * row["torch's error"] + 1e-5, row
    assert report["doctor"]["memory"]["page_faults"] in (False, None)


def test_demo_names_missing_packages(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from segkernels.engine import demo

    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None)
    assert cli.main(["demo", "--output", str(tmp_path)]) == 2
    assert "imgviz and matplotlib: pip install 'segkernels[demo]'" in capsys.readouterr().err


@pytest.mark.parametrize("command", [[], ["nothing"], ["demo", "--steps", "none"], ["demo", "--steps", "0"]])
def test_wrong_usage(command: list[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        cli.main(command)
    assert exit.value.code == 2


def test_import_is_fast_and_leaves_triton_alone() -> None:
    code = (
        "import sys, time; import torch; start = time.process_time(); import segkernels;"
        "print(time.process_time() - start, 'triton' in sys.modules, 'rich' in sys.modules)"
    )
    done = [run("-c", code).stdout.split() for _ in range(3)]
    assert min(float(seconds) for seconds, *_ in done) < 0.3  # of the processor: the machine may be busy
    assert all(flags == ["False", "False"] for _, *flags in done)
