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


COLUMNS = [field.name for field in dataclasses.fields(Row)]
NUMBERS = {field.name for field in dataclasses.fields(Row) if "float" in str(field.type) or "int" in str(field.type)}


def device_name() -> str:
    """The CPU as the kernel calls it."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"model name\s*:\s*(.+)", text)
    return found.group(1).strip() if found else platform.machine()


def provenance() -> dict[str, str]:
    def git(*arguments: str) -> str:
        try:
            return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True).stdout.strip()
        except OSError:
            return ""

    changed = git("status", "--porcelain", "--", "segkernels", "csrc", "setup.py", "benchmarks/*.py")
    try:
        from triton import __version__ as triton
    except ImportError:
        triton = ""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "commit": git("rev-parse", "--short=12", "HEAD") + ("-dirty" if changed else ""),
        "device": device_name(),
        "torch": torch.__version__,
        "triton": triton,
        "cuda": torch.version.cuda or "",
    }


def path_of(device: str) -> Path:
    return FOLDER / (re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-") + ".csv")


def append(rows: list[Row], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = not path.exists()
    if not fresh:
        with path.open(newline="") as file:
            columns = next(csv.reader(file), [])
        if columns != COLUMNS:
            raise SystemExit(f"{path}: its columns are not this version's; move it away first")
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
