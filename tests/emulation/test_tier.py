"""The tier ``emulated``: there in tests, named for what it is, never chosen on its own, never shipped."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

import pytest
import torch
from emulation.build_emulated import LIBRARIES, ROOT, library_path

import segkernels


def test_library_is_built(emulation_failure):
    assert emulation_failure is None


def test_every_cuda_kernel_is_emulated():
    """Each op that a .cu registers has its tier, and it is registered through the macro that makes this so."""
    table = segkernels.tiers()
    for source in (ROOT / "csrc" / "cuda").glob("*.cu"):
        text = source.read_text()
        assert "SEGKERNELS_CUDA_LIBRARY(" in text and "<<<" not in text, f"{source.name}: see csrc/emulation/README.md"
        for op in re.findall(r'm\.impl\("(\w+)"', text):
            assert table[op]["cpu"]["tiers"]["emulated"] is None
            assert table[op]["cpu"]["chosen"] != "emulated"


def test_tiers_names_it():
    assert "emulated: available (the CUDA source run on the CPU, for tests only)" in str(segkernels.tiers())
    code = "import segkernels; print(segkernels.tiers()['max_unpool2d']['cpu']['tiers']['emulated'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "the CUDA source run on the CPU, for tests only: not loaded", done.stderr


def test_backend_runs_it():
    values, indices = torch.randn(1, 1, 2, 2), torch.tensor([[[[0, 3], [8, 15]]]])
    expected = segkernels.ops.max_unpool2d(values, indices, 2)
    with segkernels.backend("emulated"):
        assert segkernels.tiers()["max_unpool2d"]["cpu"]["chosen"] == "emulated"
        assert torch.equal(segkernels.ops.max_unpool2d(values, indices, 2), expected)
        outside = torch.full_like(indices, 99)
        assert torch.equal(segkernels.ops.max_unpool2d(values, outside, 2), torch.zeros(1, 1, 4, 4))
    with pytest.raises(RuntimeError, match="invalid max index"):
        segkernels.ops.max_unpool2d(values, outside, 2)


def test_lies_outside_the_package():
    path = library_path("_ops_emulated", "plain")
    assert not path.is_relative_to(ROOT / "segkernels")
    assert not list((ROOT / "segkernels").rglob("*emulated*.so"))


@pytest.mark.skipif(shutil.which("readelf") is None, reason="readelf not found")
def test_thread_local_segment_holds_shared_memory_only():
    """The emulation fills that segment with 0xFF between blocks: anything else in it would be destroyed."""
    for name in LIBRARIES:
        path = library_path(name, "plain")
        if not path.exists():
            continue
        symbols = subprocess.run(["readelf", "-sW", path], capture_output=True, text=True, check=True)
        variables = {line.split()[-1] for line in symbols.stdout.splitlines() if " TLS " in line}
        # _ZZ: a variable inside a function, which is where __shared__ stands.
        strangers = {v for v in variables if not v.startswith("_ZZ") and "thread_segment_anchor" not in v}
        assert not strangers, f"{name}: thread-local variables that are not __shared__"
