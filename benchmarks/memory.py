"""Peak memory of one call on the CPU.

Taken in a process of its own with glibc told to map every large block by itself and to give it back when it is freed, so
that the peak of the resident set tells what was alive at once, whoever allocated it: torch's allocator, oneDNN's scratch
and the kernels' own. torch's profiler sees only the first of them.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_TOP_PAD_": "0"}
UNSET = ("MALLOC_MMAP_MAX_",)


def resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def peak_of(call) -> int:
    """Bytes over the resting state at the worst moment of ``call()``."""
    call()  # libraries, thread pools and kernels that are compiled at the first call
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    resting = resident("VmRSS:")
    result = call()
    peak = resident("VmHWM:")
    del result
    return max(0, peak - resting)


def measure(op: str, case: str, mode: str, dtype: str, threads: int, baselines: list[str]) -> dict[str, int]:
    """Variant -> peak bytes; empty where this system does not tell."""
    request = json.dumps([op, case, mode, dtype, threads, baselines])
    environment = {name: value for name, value in os.environ.items() if name not in UNSET} | ENVIRONMENT
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", request], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    return json.loads(result.stdout.splitlines()[-1]) if result.returncode == 0 else {}


def main() -> None:
    import torch

    from benchmarks.cases import case_named
    from benchmarks.runner import prepare

    op, name, mode, dtype, threads, baselines = json.loads(sys.argv[1])
    torch.set_num_threads(threads)
    case = case_named(op, name)
    calls = prepare(case, mode, getattr(torch, dtype), "cpu", baselines, judge=False)[0]
    print(json.dumps({variant: peak_of(call) for variant, call in calls.items()}))


if __name__ == "__main__":
    main()
