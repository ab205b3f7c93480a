"""``python -m benchmarks.resources``: registers, shared memory, stack and spills of every GPU kernel, without a GPU.

nvcc compiles ``csrc/cuda/units/*.cu`` and Triton the kernels of ``segkernels/triton`` for each architecture; both hand on what
the assembler says. ``benchmarks/results/resources.csv`` is the table that stands; ``--check`` fails on a spill that it lacks.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import functools
import importlib
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "benchmarks" / "results" / "resources.csv"
SOURCES = sorted((ROOT / "csrc" / "cuda" / "units").glob("*.cu"))
TRITON = sorted(path.stem for path in (ROOT / "segkernels" / "triton").glob("*.py") if not path.stem.startswith("_"))
ARCHITECTURES = (80, 90, 100)
# As setup.py builds the package.
TORCH_FLOOR = "0x020a000000000000"
# What ptxas -v prints of a kernel.
PATTERNS = {
    "registers": r"Used (\d+) registers",
    "shared": r"(\d+) bytes smem",
    "stack": r"(\d+) bytes stack frame",
    "spill_stores": r"(\d+) bytes spill stores",
    "spill_loads": r"(\d+) bytes spill loads",
}


@dataclass(frozen=True)
class Resources:
    """Of one kernel on one architecture; bytes, except for registers of a thread. ``op`` names the source: an operator of
    Triton, a unit of CUDA."""

    op: str
    tier: str
    kernel: str
    architecture: str
    registers: int
    shared: int
    stack: int
    spill_stores: int
    spill_loads: int

    @property
    def spills(self) -> int:
        return self.spill_stores + self.spill_loads

    @property
    def key(self) -> tuple[str, str, str, str]:
        return self.op, self.tier, self.kernel, self.architecture


@functools.cache
def find_nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME") or "/usr/local/cuda"
    return shutil.which("nvcc") or (f"{home}/bin/nvcc" if Path(home, "bin", "nvcc").exists() else None)


def readable(name: str) -> str:
    """The name as the source has it, with its template arguments."""
    if shutil.which("c++filt") is None:
        return name
    text = subprocess.run(["c++filt", name], capture_output=True, text=True).stdout.strip()
    return re.sub(r"\(anonymous namespace\)::|segkernels::|\(.*\)$|^void ", "", text)


def numbers(text: str) -> dict[str, int]:
    found = {what: re.search(pattern, text) for what, pattern in PATTERNS.items()}
    return {what: int(match.group(1)) if match else 0 for what, match in found.items()}


def of_log(op: str, log: str) -> list[Resources]:
    """The kernels in what ``nvcc -Xptxas -v`` prints."""
    found = []
    for block in log.split("Compiling entry function '")[1:]:
        match = re.match(r"(\w+)' for '(\w+)'", block)
        assert match, block[:200]
        found.append(Resources(op, "cuda", readable(match.group(1)), match.group(2), **numbers(block)))
    return found


def nvcc_command(source: Path, target: Path, architectures: Sequence[int] = ARCHITECTURES) -> list[str]:
    """Compiles to ``target`` and writes the files that it read to a make rule beside it."""
    from torch.utils.cpp_extension import include_paths

    command = [find_nvcc() or "nvcc", "-std=c++20", "-O3", "--expt-relaxed-constexpr", "-Xptxas", "-v", "-DUSE_CUDA"]
    command += [f"-DTORCH_TARGET_VERSION={TORCH_FLOOR}", "-DTORCH_STABLE_ONLY", "--threads", "2"]
    command += [flag for a in architectures for flag in ("-gencode", f"arch=compute_{min(architectures)},code=sm_{a}")]
    command += [flag for path in include_paths() for flag in ("-isystem", path)]
    return [*command, "-MD", "-MF", str(target.with_suffix(".d")), "-c", str(source), "-o", str(target)]


def built(source: Path, architectures: Sequence[int] = ARCHITECTURES) -> list[Resources] | None:
    """What the library's own compilation said, if it was for these architectures and no source changed since."""
    newest = max(path.stat().st_mtime for folder in ("common", "cuda") for path in (ROOT / "csrc" / folder).rglob("*"))
    for log in ROOT.glob(f"build/temp.*/csrc/cuda/units/{source.stem}.nvcc.log"):
        if log.stat().st_mtime < newest:
            continue
        found = of_log(source.stem, log.read_text())
        if {one.architecture for one in found} == {f"sm_{one}" for one in architectures}:
            return found
    return None


def of_cuda(source: Path, architectures: Sequence[int] = ARCHITECTURES) -> list[Resources]:
    if (found := built(source, architectures)) is not None:
        return found
    with tempfile.TemporaryDirectory() as folder:
        command = nvcc_command(source, Path(folder, f"{source.stem}.o"), architectures)
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(done.stdout + done.stderr)
    return of_log(source.stem, done.stdout + done.stderr)


def triton_cases(stem: str) -> Iterator[tuple[Any, dict[str, str], dict[str, Any]]]:
    """Kernel, signature and constants of each case that a Triton module compiles."""
    for kernel, pointers, constants in importlib.import_module(f"segkernels.triton.{stem}").compile_cases():
        constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
        yield kernel, {n: "constexpr" if n in constants else pointers.get(n, "i32") for n in kernel.arg_names}, constants


def pointer_types(signature: dict[str, Any]) -> str:
    """What the pointers of a signature point to; several of one argument are a tuple."""
    types = (t for one in signature.values() for t in (one if isinstance(one, tuple) else (one,)))
    return "-".join(dict.fromkeys(t.strip("*") for t in types if t.startswith("*")))


def of_triton(op: str, kernel: Any, signature: dict[str, str], constants: dict[str, Any], architecture: int) -> Resources:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    # The assembler's own report is the only place that tells spills without a GPU; a cached kernel would not print it.
    wanted = {"TRITON_ALWAYS_COMPILE": "1", "TRITON_DUMP_PTXAS_LOG": "1"}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    report = io.StringIO()
    try:
        with contextlib.redirect_stdout(report):
            compiled = triton.compile(ASTSource(kernel, signature, constants), target=GPUTarget("cuda", architecture, 32))
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    log = report.getvalue()
    if not compiled.asm["cubin"] or "bytes spill" not in log:
        raise RuntimeError(f"no resource report from ptxas: {log!r}")
    types = pointer_types(signature)
    values = ",".join(f"{name}={getattr(value, '__name__', value)}" for name, value in constants.items())
    name = f"{kernel.__name__}<{types}> {values}".strip()
    # What a launch asks for: the assembler does not see dynamic shared memory.
    return Resources(op, "triton", name, f"sm_{architecture}", **numbers(log) | {"shared": compiled.metadata.shared})


def write(found: Iterable[Resources], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Resources)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(one) for one in sorted(found, key=lambda one: one.key))


def read(path: Path = TABLE) -> list[Resources]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [Resources(**{n: int(v) if n in PATTERNS else v for n, v in row.items()}) for row in csv.DictReader(file)]  # type: ignore[arg-type]


def new_spills(found: Iterable[Resources], table: Iterable[Resources]) -> list[Resources]:
    """The kernels that spill more bytes than the table says of them; of one that is not there, any."""
    known = {one.key: one.spills for one in table}
    return [one for one in found if one.spills > known.get(one.key, 0)]


def collect(architectures: Sequence[int]) -> Iterator[Resources]:
    for source in SOURCES if find_nvcc() else []:
        print(source.stem, flush=True)
        yield from of_cuda(source, architectures)
    for stem in TRITON:
        print(f"{stem} (triton)", flush=True)
        for case in triton_cases(stem):
            yield from (of_triton(stem, *case, architecture) for architecture in architectures)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--archs", default=";".join(map(str, ARCHITECTURES)), help="as in SEGKERNELS_CUDA_ARCHS")
    parser.add_argument("--out", type=Path, default=TABLE)
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 on a new spill")
    options = parser.parse_args()
    table = read()
    found = list(collect([int(part) for part in options.archs.split(";")]))
    spilled = new_spills(found, table)
    for one in spilled:
        print(f"new spill: {one}")
    if not options.check:
        write(found, options.out)
        print(f"{len(found)} kernels in {options.out}")
    return 1 if spilled else 0


if __name__ == "__main__":
    sys.exit(main())
