"""The tables at the end of a run, one for each op."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from benchmarks.results import Row


def duration(us: float) -> str:
    if us >= 1e6:
        return f"{us / 1e6:.3g} s"
    return f"{us / 1000:.3g} ms" if us >= 1000 else f"{us:.3g} us"


def key(row: Row) -> tuple[str, str, str, str]:
    return row.op, row.case, row.mode, row.dtype


def peaks(row: Row) -> str:
    """Ours, the baseline's, and the ratio where there is something to divide."""
    if row.peak_mb is None:
        return ""
    if row.baseline_peak_mb is None:
        return f"{row.peak_mb:.0f}"
    ratio = f" {row.peak_mb / row.baseline_peak_mb:.2f}x" if row.baseline_peak_mb >= 0.5 else ""
    return f"{row.peak_mb:.0f} / {row.baseline_peak_mb:.0f}{ratio}"


def show(console: Console, rows: list[Row], default_rows: list[Row]) -> None:
    """One table an op; the figures with the default allocator in a column of their own where they were taken."""
    default = {key(row): row for row in default_rows}
    for op in dict.fromkeys(row.op for row in rows):
        mine = [row for row in rows if row.op == op]
        console.print(of(f"{op} ({mine[0].tier})" if mine[0].tier else op, mine, default))


def of(title: str, rows: list[Row], default: dict[tuple[str, str, str, str], Row]) -> Table:
    table = Table(title=title, title_justify="left", header_style="bold")
    for name in ("case", "mode"):
        table.add_column(name, no_wrap=True)
    numbers = ["median", "baseline", "faster", "p20-p80", "GB/s", "GFLOP/s", "roofline", "peak MB", "goal"]
    if default:
        numbers[4:4] = ["default allocator"]
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        mode = row.mode if row.dtype == "float32" else f"{row.mode} {row.dtype}"
        start = (row.case, f"{mode} {row.threads:.0f}t" if row.axis else mode)
        if row.p50_us is None:
            table.add_row(*start, row.status, style="bold red")
            continue
        other = default.get(key(row))
        cells = [duration(row.p50_us), *against_baseline(row)]
        if default:
            cells.append("" if other is None or other.p50_us is None else f"{duration(other.p50_us)} {times(other.ratio)}")
        cells += [
            f"{row.gbps:.1f}",
            f"{row.gflops:.0f}" if row.gflops else "",
            f"{100 * row.roofline:.0f}%",
            peaks(row),
            row.goal,
        ]
        table.add_row(*start, *cells, style="" if row.status == "ok" else "red")
    return table


def times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.3g}x"


def against_baseline(row: Row) -> list[str]:
    if row.ratio is None:
        return ["", "", ""]
    spread = f"{row.ratio_p20:.3g}-{row.ratio_p80:.3g}"
    return [f"{duration(row.baseline_p50_us)} {row.baseline}", times(row.ratio), spread]
