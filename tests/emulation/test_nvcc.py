"""nvcc compiles every CUDA source for each architecture of the wheel, and no kernel spills registers to memory that the table
in benchmarks/results/resources.csv does not name.

``python -m pytest tests/emulation/test_nvcc.py -s`` prints registers, shared memory, stack and spills of each kernel.
"""

from __future__ import annotations

import dataclasses
import subprocess
from pathlib import Path

import pytest
from emulation.build_emulated import FOLDER, ROOT

from benchmarks import resources

ALL = {f"sm_{architecture}" for architecture in resources.ARCHITECTURES}
SOURCES = [*resources.SOURCES, ROOT / "tests" / "emulation" / "features.cu"]


@pytest.mark.slow
@pytest.mark.skipif(resources.find_nvcc() is None, reason="nvcc not found")
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_compiles_without_new_spills(source):
    found = resources.built(source)
    found = compiled(source) if found is None else found
    assert {one.architecture for one in found} == ALL
    for one in found:
        print(
            f"{one.architecture:<7}{' '.join(f'{what} {getattr(one, what):>5}' for what in resources.PATTERNS)}  {one.kernel}"
        )
    assert not resources.new_spills(found, resources.read())


def compiled(source: Path) -> list[resources.Resources]:
    folder = FOLDER / "nvcc"
    folder.mkdir(parents=True, exist_ok=True)
    log, depends = folder / f"{source.stem}.log", folder / f"{source.stem}.d"
    if not up_to_date(log, depends):
        done = subprocess.run(resources.nvcc_command(source, folder / f"{source.stem}.o"), capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        log.write_text(done.stdout + done.stderr)
    return resources.of_log(source.stem, log.read_text())


def up_to_date(log: Path, depends: Path) -> bool:
    """Whether nothing that went into the log's compilation is newer; compiling takes ten seconds a file."""
    if not log.exists() or not depends.exists():
        return False
    paths = [Path(p) for p in depends.read_text().split(":", 1)[1].replace("\\\n", " ").split()]
    return all(p.exists() and p.stat().st_mtime <= log.stat().st_mtime for p in paths)


def test_reads_what_ptxas_prints(tmp_path):
    log = """ptxas info    : Compiling entry function '_Z4copyPf' for 'sm_90'
ptxas info    : Function properties for _Z4copyPf
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 4096 bytes smem
"""
    (one,) = resources.of_log("copy", log)
    assert (one.kernel, one.architecture) == (resources.readable("_Z4copyPf"), "sm_90")
    assert (one.registers, one.shared, one.stack, one.spill_stores, one.spill_loads) == (32, 4096, 16, 8, 12)
    resources.write([one], tmp_path / "table.csv")
    table = resources.read(tmp_path / "table.csv")
    assert table == [one]
    assert resources.new_spills([one], table) == [] and resources.new_spills([one], []) == [one]
    assert resources.new_spills([dataclasses.replace(one, spill_loads=13)], table), "more than the table has"
