"""``python -m benchmarks.kernels``: what each kernel of a call takes of the GPU, as torch's profiler (CUPTI) tells.

Registers, shared memory, block and occupancy of every kernel, its share of the call's time, and of the call the share of the
copy bandwidth measured in the same run.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

COLUMNS = (
    "op", "case", "mode", "dtype", "kernel", "launches", "us", "share_of_time", "registers", "shared_bytes", "block", "grid",
    "occupancy", "copy_share",
)  # fmt: skip


def of_trace(trace: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a kernel of a Chrome trace, those of the longest time first."""
    found: dict[str, dict[str, Any]] = {}
    for event in trace["traceEvents"]:
        if event.get("cat") != "kernel":
            continue
        facts = event["args"]
        row = found.setdefault(
            event["name"],
            {
                "kernel": event["name"],
                "launches": 0,
                "us": 0.0,
                "registers": facts.get("registers per thread"),
                "shared_bytes": facts.get("shared memory"),
                "block": "x".join(map(str, facts.get("block", ()))),
                "grid": "x".join(map(str, facts.get("grid", ()))),
                "occupancy": facts.get("est. achieved occupancy %"),
            },
        )
        row["launches"] += 1
        row["us"] += event["dur"]
    total = sum(row["us"] for row in found.values())
    for row in found.values():
        row["share_of_time"] = row["us"] / total
    return sorted(found.values(), key=lambda row: -row["us"])


def with_bandwidth(rows: list[dict[str, Any]], moved: int, copy_gbps: float) -> list[dict[str, Any]]:
    """The same rows with the share of the copy bandwidth that all kernels of the call reach together."""
    seconds = sum(row["us"] for row in rows) / 1e6
    return [row | {"copy_share": moved / seconds / (copy_gbps * 1e9)} for row in rows]


def profiled(call: Callable[[], object]) -> list[dict[str, Any]]:
    call()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        profile.export_chrome_trace(str(path))
        return of_trace(json.loads(path.read_text()))


def rows(names: Iterable[str], dtype: torch.dtype) -> Iterable[dict[str, Any]]:
    from benchmarks import ceilings, runner

    top = ceilings.measure(dtype, "cuda")
    for plan in runner.plans(list(names), ["fwd", "fwdbwd"], [dtype], device="cuda"):
        if plan.mode in plan.case.overhead_goals:
            continue
        calls, right = runner.prepare(plan.case, plan.mode, dtype, "cuda", ["none"])
        if right:
            start = {"op": plan.op, "case": plan.case.name, "mode": plan.mode, "dtype": plan.dtype_name}
            moved = plan.case.work(dtype.itemsize).bytes[plan.mode]
            for row in with_bandwidth(profiled(calls[runner.OURS]), moved, top.gbps):
                yield start | row


def write(found: Iterable[dict[str, Any]], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for row in found:
            writer.writerow({name: f"{v:.4g}" if isinstance(v, float) else v for name, v in row.items()})


def main() -> None:
    from benchmarks.cases import operators

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--ops", default=",".join(operators()), help="comma-separated; default: all")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--out", type=Path, default=Path("build/kernels.csv"))
    options = parser.parse_args()
    write(rows(options.ops.split(","), getattr(torch, options.dtype)), options.out)


if __name__ == "__main__":
    main()
