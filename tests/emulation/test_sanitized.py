"""The CUDA source under AddressSanitizer and UndefinedBehaviorSanitizer: out-of-bounds accesses of global and shared
memory, misaligned vector accesses, signed overflow. In processes of their own, with the sanitizer's runtime preloaded.

    SEGKERNELS_SANITIZE=1 python -m pytest tests/emulation/test_sanitized.py

Without the variable the operators' own tests are left out, which take minutes under a sanitizer; ``make sanitize`` sets it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from emulation.build_emulated import ROOT, build, library_path

TESTS = ROOT / "tests"
EVERYTHING = os.environ.get("SEGKERNELS_SANITIZE") == "1"


def runtime(name: str) -> str:
    compiler = shutil.which("c++") or "c++"
    return subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    if not Path(runtime("libasan.so")).is_absolute():
        pytest.skip("the compiler has no AddressSanitizer")
    # The operators take minutes to compile; what runs every time is the emulation itself.
    failure = build("sanitized") if EVERYTHING else build("sanitized", ("_emulation_faults",))
    assert failure is None, failure
    return {
        **os.environ,
        # libstdc++ beside it: the sanitizer looks for __cxa_throw when the process starts, and Python has none.
        "LD_PRELOAD": f"{runtime('libasan.so')} {runtime('libstdc++.so')}",
        # Python's own leaks; a fake stack per fiber is of no use here.
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0:abort_on_error=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "SEGKERNELS_EMULATION_VARIANT": "sanitized",
        "SEGKERNELS_EMULATED_LIBRARY": str(library_path("_ops_emulated", "sanitized")) if EVERYTHING else "/none",
        "PYTHONPATH": f"{TESTS}:{ROOT}",
        "OMP_NUM_THREADS": "1",
    }


# Each fault ends its process, and importing torch takes seconds: one process forks for each.
RUN_EACH = """
import os, sys, torch
from emulation.kernels import run
x = torch.randn(64)
run("block_sum", torch.ones(512), 2, 2, 256, seed=1)
for name, size in FAULTS:
    print(f"== {name}", file=sys.stderr, flush=True)
    if os.fork() == 0:
        run(name, x, size)
        os._exit(0)
    print(f"status {os.wait()[1]}", file=sys.stderr, flush=True)
"""

FAULTS = {
    "out_of_bounds_global_write": "heap-buffer-overflow",
    "out_of_bounds_global_read": "heap-buffer-overflow",
    "out_of_bounds_dynamic_shared": "heap-buffer-overflow",
    "out_of_bounds_static_shared": "insufficient space for an object",
    "misaligned_vector": "misaligned address",
    "signed_overflow": "signed integer overflow",
}


@pytest.mark.slow
def test_faults_are_caught(environment):
    code = RUN_EACH.replace("FAULTS", repr([(name, 64) for name in FAULTS]))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    reports = dict(part.split("\n", 1) for part in done.stderr.split("== ")[1:] if "\n" in part)
    for name, message in FAULTS.items():
        report = next(text for key, text in reports.items() if key.strip() == name)
        assert message in report, f"{name}: {report}"
        assert "faults.cu:" in report
        assert "status 0" not in report


NOT_EVERY_RUN = pytest.mark.skipif(not EVERYTHING, reason="SEGKERNELS_SANITIZE=1 runs it")


@pytest.mark.slow
@pytest.mark.parametrize("tests", ["emulation/test_features.py", pytest.param("ops", marks=NOT_EVERY_RUN)])
def test_clean(environment, tests):
    """The emulation's own features and every operator's tests on the tier emulated, without a finding."""
    tier = ["--tier", "emulated"] if tests == "ops" else []
    command = [sys.executable, "-m", "pytest", "-x", "-s", "--tb=short", "-p", "no:cacheprovider", *tier, TESTS / tests]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1200, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "." in done.stdout, "no test ran"
