"""What the build hands out: symbols within the stable ABI, a wheel that stands alone, and an install without a compiler."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "segkernels"
# What torch promises to keep (the shim's C functions), and the runtimes of C, C++, the dynamic linker and threads.
STABLE = re.compile(r"aoti_torch_\w+|torch_\w+")
RUNTIME = re.compile(
    r"_ITM_\w+|__gmon_start__|__tls_get_addr|_Unwind_\w+|__cxa_\w+|__gxx_personality_v0"  # compiler and linker
    r"|(?:std::|operator (?:new|delete)|VTT for std::|vtable for (?:std|__cxxabiv1)::|typeinfo for std::).*"  # C++
)
TORCH_CXX = re.compile(r"\b(?:at|c10|torch|caffe2)::")

pytestmark = pytest.mark.skipif(sys.platform != "linux" or not shutil.which("nm"), reason="needs nm")


def libraries() -> list[str]:
    return [name for name in ("_ops_cpu", "_ops_cuda") if (PACKAGE / f"{name}.so").exists()]


def undefined_symbols(library: Path) -> list[tuple[str, str, str]]:
    """(kind, demangled name, version) of each undefined symbol; the kind is U, or w for one that may stay undefined."""
    output = subprocess.run(["nm", "-D", "-C", "--undefined-only", library], capture_output=True, text=True, check=True)
    symbols = []
    for line in output.stdout.splitlines():
        kind, _, name = line.strip().partition(" ")
        name, _, version = name.partition("@")
        symbols.append((kind, name, version.lstrip("@")))
    return symbols


@pytest.mark.parametrize("name", libraries())
def test_no_symbol_outside_the_stable_abi(name):
    symbols = undefined_symbols(PACKAGE / f"{name}.so")
    assert any(STABLE.fullmatch(symbol) for _, symbol, _ in symbols), "nothing of torch's: the pattern is wrong"
    foreign = []
    for _, symbol, version in symbols:
        # glibc, libgcc and libm version theirs; an unversioned name has to be known.
        runtime = version.startswith(("GLIBC_", "GCC_", "GLIBCXX_", "CXXABI_")) or RUNTIME.fullmatch(symbol)
        if TORCH_CXX.search(symbol) or not (STABLE.fullmatch(symbol) or runtime):
            foreign.append(symbol)
    assert foreign == []


@pytest.mark.parametrize("name", libraries())
def test_no_python_symbol(name):
    python = [symbol for _, symbol, _ in undefined_symbols(PACKAGE / f"{name}.so") if re.match(r"_?Py", symbol)]
    assert python == []


@pytest.mark.parametrize("name", libraries())
def test_exports_nothing_of_its_own(name):
    """Hidden visibility: two libraries built from one source cannot take each other's functions."""
    output = subprocess.run(["nm", "-D", "-C", "--defined-only", PACKAGE / f"{name}.so"], capture_output=True, text=True)
    ours = [line for line in output.stdout.splitlines() if "segkernels::" in line]
    assert ours == []


def new_environment(folder: Path) -> Path:
    """An environment with this one's torch but without the checkout; its interpreter."""
    venv.create(folder, with_pip=False)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    # A plain path: .pth files in that folder, and with them the editable install of this checkout, are not followed.
    (packages / "inherited.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin" / "python"


def run_away(python: Path, code: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("SEGKERNELS_", "PYTHON"))}
    return subprocess.run(
        [python, "-W", "always", "-c", code], cwd=folder, env={**clean, **environment}, capture_output=True, text=True
    )


@pytest.mark.slow
def test_wheel_works_away_from_the_checkout(tmp_path):
    # In the tree, so that objects of the normal build are used again; leftovers of older versions must not be.
    for old in (ROOT / "build").glob("lib*"):
        shutil.rmtree(old)
    pip = [sys.executable, "-m", "pip", "-q"]
    subprocess.run(
        [*pip, "wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", tmp_path, ROOT], check=True, capture_output=True
    )
    (wheel,) = tmp_path.glob("segkernels-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        native = {Path(name).name.split(".")[0] for name in names if name.endswith(".so")}
    assert {"_ops_cpu", "_C"} <= native <= {"_ops_cpu", "_ops_cuda", "_C"}, "no test builds in a wheel"
    assert len([name for name in names if "/_C." in name]) == 1, "one Python's helpers"
    assert not [name for name in names if not name.startswith(("segkernels/", "segkernels-"))]
    assert "segkernels/_build_report.json" in names
    assert "segkernels/py.typed" in names

    python = new_environment(tmp_path / "environment")
    subprocess.run([*pip, f"--python={python}", "install", "--no-deps", wheel], check=True, capture_output=True)
    code = """
import sys, torch, segkernels
from pathlib import Path
assert Path(segkernels.__file__).is_relative_to(sys.prefix), segkernels.__file__
assert segkernels.tiers()["max_unpool2d"]["cpu"]["chosen"] == "cpu", segkernels.tiers()
values, indices = torch.nn.functional.max_pool2d(torch.randn(2, 3, 8, 8), 2, return_indices=True)
expected = torch.nn.functional.max_unpool2d(values, indices, 2)
assert torch.equal(segkernels.ops.max_unpool2d(values, indices, 2), expected)
print("worked")
"""
    result = run_away(python, code, tmp_path)
    assert result.stdout.strip() == "worked", result.stderr


@pytest.mark.slow
def test_without_a_compiler_the_reference_answers(tmp_path):
    tree = tmp_path / "tree"
    ignore = shutil.ignore_patterns("*.so", "__pycache__", "_build_report.json")
    for name in ("segkernels", "csrc"):
        shutil.copytree(ROOT / name, tree / name, ignore=ignore)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    environment = {**os.environ, "CXX": "/nonexistent", "CC": "/nonexistent", "SEGKERNELS_CUDA": "0"}
    environment.pop("SEGKERNELS_REQUIRE_NATIVE", None)
    pip = [sys.executable, "-m", "pip", "-q"]
    built = subprocess.run(
        [*pip, "wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", tmp_path, tree],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("segkernels-*.whl")
    python = new_environment(tmp_path / "environment")
    subprocess.run([*pip, f"--python={python}", "install", "--no-deps", wheel], check=True, capture_output=True)
    code = """
import torch, segkernels
entry = segkernels.tiers()["max_unpool2d"]["cpu"]
assert entry["chosen"] == "reference", entry
print(entry["tiers"]["cpu"])
values, indices = torch.nn.functional.max_pool2d(torch.randn(2, 3, 8, 8), 2, return_indices=True)
expected = torch.nn.functional.max_unpool2d(values, indices, 2)
assert torch.equal(segkernels.ops.max_unpool2d(values, indices, 2), expected)
"""
    result = run_away(python, code, tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("library not built:")
    assert "/nonexistent" in result.stdout, "the reason names what is missing"
    assert "no CPU kernels" in result.stderr and "reference tier answers" in result.stderr


def test_torch_floor_is_the_same_everywhere():
    """pyproject.toml's requirement and the ABI target in setup.py."""
    declared = re.search(r'dependencies = \["torch>=(\d+)\.(\d+)"', (ROOT / "pyproject.toml").read_text())
    target = re.search(r"TORCH_FLOOR = \((\d+), (\d+)\)", (ROOT / "setup.py").read_text())
    assert declared.groups() == target.groups()
    assert tuple(map(int, torch.__version__.split(".")[:2])) >= tuple(map(int, declared.groups()))
