"""The tables at the end of a run, one for each op."""

from __future__ import annotations

from rich.table import Table

from benchmarks.results import Row


def duration(us: float) -> str:
    if us >= 1e6:
        return f"{us / 1e6:.3g} s"
    return f"{us / 1000:.3g} ms" if us >= 1000 else f"{us:.3g} us"


def of(op: str, rows: list[Row]) -> Table:
    table = Table(title=op, title_justify="left", header_style="bold")
    for name in ("case", "mode"):
        table.add_column(name, no_wrap=True)
    for name in ("median", "baseline", "faster", "p20-p80", "GB/s", "GFLOP/s", "roofline", "peak MB", "goal"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        start = (row.case, row.mode if row.dtype == "float32" else f"{row.mode} {row.dtype}")
        if row.p50_us is None:
            table.add_row(*start, row.status, style="bold red")
            continue
        peak = "" if row.peak_mb is None else f"{row.peak_mb:.0f} / {row.baseline_peak_mb:.0f}"
        table.add_row(
            *start,
            duration(row.p50_us),
            f"{duration(row.baseline_p50_us)} {row.baseline}",
            f"{row.ratio:.3g}x",
            f"{row.ratio_p20:.3g}-{row.ratio_p80:.3g}",
            f"{row.gbps:.1f}",
            f"{row.gflops:.0f}" if row.gflops else "",
            f"{100 * row.roofline:.0f}%",
            peak,
            row.goal,
            style="" if row.status == "ok" else "red",
        )
    return table
