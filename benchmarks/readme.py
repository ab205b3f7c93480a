"""Writes the README's table of numbers from ``benchmarks/results/*.csv`` and from nothing else.

``python -m benchmarks.readme`` rewrites what stands between the markers; ``--check`` only says whether it is up to date.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

from benchmarks import results
from benchmarks.cases import models
from benchmarks.results import Row
from benchmarks.table import duration, key, times

README = results.ROOT / "README.md"
START, END = "<!-- benchmarks:start -->", "<!-- benchmarks:end -->"
EMPTY = "No rows yet: `make bench` takes them and writes this table."


def latest(rows: list[Row]) -> list[Row]:
    """The newest row of each case, in the order of the file."""
    newest: dict[tuple[str, ...], Row] = {}
    for row in rows:
        key = (row.device, row.op, row.case, row.mode, row.dtype, row.allocator, row.tier, f"{row.threads}")
        if key not in newest or row.date >= newest[key].date:
            newest[key] = row
    return list(newest.values())


def summary(rows: list[Row]) -> list[str]:
    """An op and mode a line: the geometric mean of its rows' ratios, and the worst and the best; overheads only below."""
    lines = ["| op | mode | rows | faster | worst | best |", "|---|---|---:|---:|---:|---:|"]
    for op, mode in dict.fromkeys((row.op, row.mode) for row in rows):
        timed = [row for row in rows if (row.op, row.mode) == (op, mode) and row.ratio is not None]
        # A call's overhead on an 8x8 map is no speed.
        timed = [row for row in timed if "overhead" not in row.case] or timed
        if not timed:
            continue
        ratios = [row.ratio for row in timed if row.ratio is not None]
        worst, best = min(timed, key=lambda row: row.ratio or 0), max(timed, key=lambda row: row.ratio or 0)
        ends = " | ".join(f"{times(row.ratio)} {row.case}" for row in (worst, best))
        lines.append(f"| `{op}` | {mode} | {len(timed)} | **{times(statistics.geometric_mean(ratios))}** | {ends} |")
    return lines


def markdown(rows: list[Row]) -> str:
    """One device's rows, losing ones too, folded away below a line an op: operators by name, then models.

    Sweeps stand in the report alone.
    """
    whole = models()
    rows = sorted((row for row in latest(rows) if not row.axis), key=lambda row: (row.op in whole, row.op))
    usual = [row for row in rows if row.allocator != "default"] or rows
    default = {(*key(row), row.tier, row.threads): row for row in rows if row.allocator == "default"}
    any_row = usual[0]
    commits = ", ".join(dict.fromkeys(row.commit for row in usual))
    lines = [
        f"{any_row.device}, {any_row.threads:.0f} threads, torch {any_row.torch}, commit {commits}. Medians of interleaved "
        "runs; “faster” is the ratio to the best baseline with the 20th and 80th percentile of the rounds, "
        "“roofline” the share of what this machine can do for the same work (copy and matmul measured in the same run)"
        + (", “default” the ratio with glibc's default allocator." if default else "."),
        "",
        *summary(usual),
        "",
        "<details><summary>Every row</summary>",
        "",
        "| op | case | mode | segkernels | baseline | faster |" + (" default |" if default else "") + " roofline | peak MB |",
        "|---|---|---|---:|---:|---:|" + ("---:|" if default else "") + "---:|---:|",
    ]
    for row in usual:
        mode = " ".join([row.mode, *([row.dtype] if row.dtype != "float32" else [])])
        mode += f" ({row.threads:.0f} threads)" if row.threads != any_row.threads else ""
        start = f"| `{row.op}` | {row.case} | {mode} | "
        if row.p50_us is None or row.ratio is None or row.baseline_p50_us is None:
            time = row.status if row.p50_us is None else duration(row.p50_us)
            lines.append(f"{start}{time} | | |{' |' if default else ''} | |")
            continue
        other = default.get((*key(row), row.tier, row.threads))
        cells = [duration(row.p50_us), f"{duration(row.baseline_p50_us)} {row.baseline}"]
        cells += [f"**{row.ratio:.3g}x** ({row.ratio_p20:.3g}–{row.ratio_p80:.3g})"]
        cells += [times(other.ratio) if other else ""] if default else []
        cells += [f"{100 * (row.roofline or 0):.0f}%"]
        cells += ["" if row.peak_mb is None else f"{row.peak_mb:.0f} / {row.baseline_peak_mb or 0:.0f}"]
        lines.append(start + " | ".join(cells) + " |")
    return "\n".join([*lines, "", "</details>"])


def rendered(folder: Path = results.FOLDER) -> str:
    devices = [markdown(results.read(path)) for path in results.files(folder)]
    return "\n\n".join(devices) or EMPTY


def replaced(text: str, table: str) -> str:
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise SystemExit(f"{README}: the markers {START} and {END} are missing")
    return f"{before}{START}\n{table}\n{END}{after}"


def main(argv: list[str]) -> int:
    text = README.read_text()
    new = replaced(text, rendered())
    if "--check" in argv:
        if new != text:
            print("README.md: its table is not the one of benchmarks/results; run python -m benchmarks.readme")
        return int(new != text)
    README.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
