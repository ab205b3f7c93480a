"""Rows of ``benchmarks/results/<device>.csv``: every number with what it takes to believe it."""

from __future__ import annotations

import csv
import dataclasses
import datetime
import platform
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
FOLDER = Path(__file__).parent / "results"


@dataclass
class Row:
    """One case of one op in one mode and dtype; times in microseconds. Empty speeds: the result was WRONG."""

    date: str
    commit: str
    device: str
    op: str
    case: str
    tier: str
    mode: str
    dtype: str
    threads: int
    allocator: str
    status: str
    p20_us: float | None = None
    p50_us: float | None = None
    p80_us: float | None = None
    gbps: float | None = None
    gflops: float | None = None
    roofline: float | None = None
    peak_mb: float | None = None
    baseline: str = ""
    baseline_p50_us: float | None = None
    baseline_peak_mb: float | None = None
    ratio: float | None = None
    ratio_p20: float | None = None
    ratio_p80: float | None = None
    extra_us: float | None = None
    goal: str = ""
    copy_gbps: float | None = None
    matmul_gflops: float | None = None
    torch: str = ""
    triton: str = ""
    cuda: str = ""
    driver: str = ""
    #: what timed it: wall, events or graph
    clock: str = ""
    #: of a sweep: its axis, the value there, and the elements worked on
    axis: str = ""
    size: float | None = None
    elements: float | None = None


COLUMNS = [field.name for field in dataclasses.fields(Row)]
NUMBERS = {field.name for field in dataclasses.fields(Row) if "float" in str(field.type) or "int" in str(field.type)}


def device_name(device: str = "cpu") -> str:
    """The GPU as CUDA calls it, or the CPU as the kernel does."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"model name\s*:\s*(.+)", text)
    return found.group(1).strip() if found else platform.machine()


def output_of(*command: str) -> str:
    """What a command prints; nothing where it is not there or fails."""
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""


def provenance(device: str = "cpu") -> dict[str, str]:
    """What every row of a run says about where it comes from."""
    changed = output_of("git", "status", "--porcelain", "--", "segkernels", "csrc", "setup.py", "benchmarks/*.py")
    driver = output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") if device == "cuda" else ""
    try:
        from triton import __version__ as triton
    except ImportError:
        triton = ""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "commit": output_of("git", "rev-parse", "--short=12", "HEAD") + ("-dirty" if changed else ""),
        "device": device_name(device),
        "torch": torch.__version__,
        "triton": triton,
        "cuda": torch.version.cuda or "",
        "driver": driver.partition("\n")[0],
    }


def path_of(device: str) -> Path:
    return FOLDER / (re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-") + ".csv")


def files(folder: Path | None = None) -> list[Path]:
    """The results of each device; the table of kernels' resources lies beside them."""
    return sorted(path for path in (folder or FOLDER).glob("*.csv") if path.name != "resources.csv")


def append(rows: list[Row], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = not path.exists()
    if not fresh:
        with path.open(newline="") as file:
            columns = next(csv.reader(file), [])
        if not columns or not set(columns) <= set(COLUMNS):
            raise SystemExit(f"{path}: its columns are not this version's; move it away first")
        if columns != COLUMNS:
            # Written by an earlier version, with fewer columns: they stay empty.
            with path.open(newline="") as file:
                earlier = list(csv.DictReader(file))
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
                writer.writeheader()
                writer.writerows(earlier)
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if fresh:
            writer.writeheader()
        for row in rows:
            values = dataclasses.asdict(row)
            writer.writerow({name: f"{v:.5g}" if isinstance(v, float) else v for name, v in values.items()})


def read(path: Path) -> list[Row]:
    with path.open(newline="") as file:
        return [
            Row(**{name: (float(v) if v else None) if name in NUMBERS else v for name, v in values.items()})
            for values in csv.DictReader(file)
        ]
