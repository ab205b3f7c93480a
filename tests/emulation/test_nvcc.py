"""nvcc compiles every CUDA source for each architecture of the wheel, and no kernel spills registers to memory.

``python -m pytest tests/emulation/test_nvcc.py -s`` prints registers, shared memory, stack and spills of each kernel.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from emulation.build_emulated import FOLDER, ROOT, TORCH_FLOOR
from torch.utils.cpp_extension import include_paths

ARCHITECTURES = (80, 90, 100)
SOURCES = [*sorted((ROOT / "csrc" / "cuda").glob("*.cu")), ROOT / "tests" / "emulation" / "features.cu"]


@functools.cache
def find_nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME") or "/usr/local/cuda"
    return shutil.which("nvcc") or (f"{home}/bin/nvcc" if Path(home, "bin", "nvcc").exists() else None)


def kernel_resources(log: str) -> list[tuple[str, str, dict[str, int]]]:
    """(kernel, architecture, its numbers) from what ``ptxas -v`` prints."""
    found = []
    for block in log.split("Compiling entry function '")[1:]:
        name, architecture = re.match(r"(\w+)' for '(\w+)'", block).groups()
        numbers = {}
        for what, pattern in (
            ("registers", r"Used (\d+) registers"),
            ("shared", r"(\d+) bytes smem"),
            ("stack", r"(\d+) bytes stack frame"),
            ("spill stores", r"(\d+) bytes spill stores"),
            ("spill loads", r"(\d+) bytes spill loads"),
        ):
            match = re.search(pattern, block)
            numbers[what] = int(match.group(1)) if match else 0
        found.append((name, architecture, numbers))
    return found


def readable(name: str) -> str:
    if shutil.which("c++filt") is None:
        return name
    text = subprocess.run(["c++filt", name], capture_output=True, text=True).stdout.strip()
    return re.sub(r"\(anonymous namespace\)::|segkernels::|\(.*\)$|^void ", "", text)


@pytest.mark.slow
@pytest.mark.skipif(find_nvcc() is None, reason="nvcc not found")
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_compiles_without_spills(source):
    folder = FOLDER / "nvcc"
    folder.mkdir(parents=True, exist_ok=True)
    log, depends = folder / f"{source.stem}.log", folder / f"{source.stem}.d"
    if not up_to_date(log, depends):
        command = [find_nvcc(), "-std=c++20", "-O3", "--expt-relaxed-constexpr", "-Xptxas", "-v", "-DUSE_CUDA"]
        command += [f"-DTORCH_TARGET_VERSION={TORCH_FLOOR}", "-DTORCH_STABLE_ONLY", "--threads", "2"]
        command += [flag for a in ARCHITECTURES for flag in ("-gencode", f"arch=compute_{a},code=sm_{a}")]
        command += [flag for path in include_paths() for flag in ("-isystem", path)]
        command += ["-MD", "-MF", str(depends), "-c", str(source), "-o", str(folder / f"{source.stem}.o")]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        log.write_text(done.stdout + done.stderr)
    resources = kernel_resources(log.read_text())
    assert {architecture for _, architecture, _ in resources} == {f"sm_{a}" for a in ARCHITECTURES}
    for name, architecture, numbers in resources:
        print(f"{architecture:<7}{' '.join(f'{what} {n:>5}' for what, n in numbers.items())}  {readable(name)}")
    spilled = [
        (readable(name), a, numbers) for name, a, numbers in resources if numbers["spill stores"] + numbers["spill loads"]
    ]
    assert not spilled


def up_to_date(log: Path, depends: Path) -> bool:
    """Whether nothing that went into the log's compilation is newer; compiling takes ten seconds a file."""
    if not log.exists() or not depends.exists():
        return False
    paths = [Path(p) for p in depends.read_text().split(":", 1)[1].replace("\\\n", " ").split()]
    return all(p.exists() and p.stat().st_mtime <= log.stat().st_mtime for p in paths)


def test_reads_what_ptxas_prints():
    log = """ptxas info    : Compiling entry function '_Z4copyPf' for 'sm_90'
ptxas info    : Function properties for _Z4copyPf
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 4096 bytes smem
"""
    numbers = {"registers": 32, "shared": 4096, "stack": 16, "spill stores": 8, "spill loads": 12}
    assert kernel_resources(log) == [("_Z4copyPf", "sm_90", numbers)]
