"""The GPU side of the benchmarks on a CPU: what stands for torch.cuda here has a clock that the calls themselves advance."""

from __future__ import annotations

import contextlib
import csv
import os
import subprocess
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, kernels

ROOT = Path(__file__).parents[1]


class FakeCuda:
    """A GPU of one stream. ``work(seconds)`` is a kernel; the host waits in ``synchronize``, where it may."""

    def __init__(self) -> None:
        self.now = 0.0
        self.mode = 0
        self.allocated = self.peak = 100
        self.recorded: list[float] | None = None
        cuda = self

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                self.time = cuda.now

            def synchronize(self):
                pass

            def elapsed_time(self, end):
                return 1e3 * (end.time - self.time)

        class CUDAGraph:
            def replay(self):
                assert self.kernels
                cuda.now += sum(self.kernels)

        class Stream:
            def wait_stream(self, other):
                pass

        self.Event, self.CUDAGraph, self.Stream = Event, CUDAGraph, Stream

    def work(self, seconds: float) -> None:
        if self.recorded is not None:
            self.recorded.append(seconds)
        else:
            self.now += seconds

    def synchronize(self) -> None:
        if self.recorded is not None or self.mode == "error":
            raise RuntimeError("called a synchronizing CUDA operation")

    def get_sync_debug_mode(self) -> int:
        return 0

    def set_sync_debug_mode(self, mode) -> None:
        self.mode = mode

    def current_stream(self):
        return self.Stream()

    def stream(self, stream):
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def graph(self, graph):
        self.recorded = graph.kernels = []
        yield
        self.recorded = None

    def memory_allocated(self) -> int:
        return self.allocated

    def reset_peak_memory_stats(self) -> None:
        self.peak = self.allocated

    def max_memory_allocated(self) -> int:
        return self.peak


def rotation(cuda, *seconds):
    return gpu.Rotation([lambda s=s: cuda.work(s) for s in seconds])


def test_copies_are_larger_than_the_cache():
    assert gpu.copies_for(50 * 2**20, 50 * 2**20) == 2
    assert gpu.copies_for(30 * 2**20, 50 * 2**20) == 4
    assert gpu.copies_for(10**9, 50 * 2**20) == 1
    assert gpu.copies_for(0, 50 * 2**20) == gpu.copies_for(8, 50 * 2**20) == gpu.MOST_COPIES
    half = torch.zeros(8, dtype=torch.bfloat16)
    assert gpu.size_of([torch.zeros(3), [half, torch.zeros(2)], 5, (half,)]) == 12 + 16 + 8 + 16


def test_rotation_takes_turns():
    seen: list[int] = []
    call = gpu.Rotation([lambda i=i: seen.append(i) for i in range(3)])
    for _ in range(7):
        call()
    assert seen == [0, 1, 2, 0, 1, 2, 0]


def test_long_calls_are_timed_by_events():
    cuda = FakeCuda()
    calls = {"segkernels": rotation(cuda, 1e-3, 3e-3), "eager": rotation(cuda, 4e-3)}
    samples, clock = gpu.measure(calls, 0.0, cuda=cuda)
    assert clock == "events" and len(samples["eager"]) >= 7
    assert all(time == pytest.approx(4e-3) for time in samples["eager"])
    assert sum(samples["segkernels"]) / len(samples["segkernels"]) == pytest.approx(2e-3, rel=0.2)


def test_short_calls_are_replayed_from_a_graph():
    cuda = FakeCuda()
    calls = {"segkernels": rotation(cuda, 1e-6, 3e-6), "eager": rotation(cuda, 8e-6, 8e-6)}
    samples, clock = gpu.measure(calls, 0.0, cuda=cuda)
    assert clock == "graph"
    assert all(time == pytest.approx(2e-6) for time in samples["segkernels"]), "a turn takes 4 us, a call 2"
    assert all(time == pytest.approx(8e-6) for time in samples["eager"])


def test_calls_that_wait_for_the_gpu_are_not_captured():
    cuda = FakeCuda()

    def waiting():
        cuda.work(1e-6)
        cuda.synchronize()

    calls = {"segkernels": rotation(cuda, 1e-6), "torchvision": gpu.Rotation([waiting])}
    assert gpu.waits(waiting, cuda) and not gpu.waits(calls["segkernels"], cuda)
    assert cuda.mode == 0, "put back"
    assert gpu.measure(calls, 0.0, cuda=cuda)[1] == "events"


def test_overhead_is_the_hosts_time():
    cuda = FakeCuda()
    samples, clock = gpu.measure({"segkernels": rotation(cuda, 1.0)}, 0.0, overhead=True, cuda=cuda)
    assert clock == "wall" and max(samples["segkernels"]) < 0.5


def test_peak_over_the_resting_state():
    cuda = FakeCuda()

    def call():
        cuda.peak = max(cuda.peak, cuda.allocated + 700)

    assert gpu.peak_of(call, cuda) == 700


def test_kernels_of_a_trace(tmp_path):
    def event(name, us, **rest):
        facts = {"registers per thread": 32, "shared memory": 4096, "block": [256, 1, 1], "grid": [7, 1, 1]}
        return {"cat": "kernel", "name": name, "dur": us, "args": facts | {"est. achieved occupancy %": 75}} | rest

    trace = {"traceEvents": [event("a", 10.0), event("b", 60.0), event("a", 30.0), {"cat": "cpu_op", "name": "c"}]}
    rows = kernels.with_bandwidth(kernels.of_trace(trace), moved=10**8, copy_gbps=2000.0)
    assert [(r["kernel"], r["launches"], r["us"], r["share_of_time"]) for r in rows] == [("b", 1, 60, 0.6), ("a", 2, 40, 0.4)]
    assert rows[0]["registers"] == 32 and rows[0]["occupancy"] == 75 and rows[0]["block"] == "256x1x1"
    assert rows[0]["copy_share"] == pytest.approx(0.5), "100 MB in 100 us are 1000 GB/s"
    kernels.write([{"op": "nms", "case": "1", "mode": "fwd", "dtype": "float32"} | row for row in rows], tmp_path / "k.csv")
    assert [row["kernel"] for row in csv.DictReader((tmp_path / "k.csv").open())] == ["b", "a"]


def test_script_of_a_gpu_machine(tmp_path):
    """Every step runs, one that fails does not stop the next, and one archive holds all logs."""
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    stubs = {
        "nvidia-smi": 'case "$*" in *noheader*) echo 9.0;; *) echo "name, driver"; echo "stub, 1";; esac',
        "compute-sanitizer": 'echo "sanitizer $2"; [ "$2" != racecheck ]',
        "python-stub": 'echo "$SEGKERNELS_CUDA_ARCHS $*"',
    }
    for name, text in stubs.items():
        (bin_folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (bin_folder / name).chmod(0o755)
    environment = os.environ | {
        "PATH": f"{bin_folder}:{os.environ['PATH']}",
        "PYTHON": "python-stub",
        "OUT": str(tmp_path / "o"),
    }
    environment.pop("SEGKERNELS_CUDA_ARCHS", None)
    command = ["bash", ROOT / "benchmarks" / "gpu.sh", tmp_path / "logs"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout + done.stderr
    summary = (tmp_path / "logs" / "summary.txt").read_text()
    steps = ("build", "doctor", "tests", "memcheck", "racecheck", "bench", "kernels", "resources")
    assert [line.split()[1].rstrip(":") for line in summary.splitlines()] == list(steps)
    assert summary.count("FAILED") == 1 and "racecheck: FAILED with 1" in summary
    assert (tmp_path / "logs" / "build.log").read_text().startswith("90 setup.py")
    listing = subprocess.run(["tar", "-tzf", tmp_path / "o" / "segkernels-gpu.tar.gz"], capture_output=True, text=True).stdout
    assert "./summary.txt" in listing and "./kernels.log" in listing and "./device.csv" in listing
