"""``segkernels bench report``: one page from ``benchmarks/results`` that needs nothing else, and the README's table."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path

from benchmarks import readme, resources, results
from benchmarks.report import charts
from benchmarks.results import Row
from benchmarks.table import duration

FOLDER = Path(__file__).parent
# An operator belongs to the first family with a word of its name; the rest are models.
FAMILIES = {
    "Losses and metrics": ("loss", "statistics", "confusion"),
    "Regions and boxes": ("roi", "nms", "box", "paste"),
    "Pooling and upsampling": ("pool", "upsample", "bed_of_nails"),
    "Convolutions": ("conv",),
}


def family(op: str) -> str:
    return next((name for name, words in FAMILIES.items() if any(word in op for word in words)), "Models")


def grouped(rows: Iterable[Row], key: Callable[[Row], str]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def filters(rows: Sequence[Row]) -> str:
    """One choice for each of what rows differ in."""
    parts = []
    for name in ("device", "op", "dtype", "mode"):
        values = sorted({getattr(row, name) for row in rows})
        choices = "".join(f'<option value="{escape(value)}">{escape(value)}</option>' for value in values)
        parts.append(f'<label>{name}<select name="{name}"><option value="">all</option>{choices}</select></label>')
    return f'<nav class="filters">{"".join(parts)}</nav>'


def rooflines(rows: Sequence[Row]) -> str:
    cards = []
    for (device, name), members in _pairs(rows).items():
        # Calls of no work lie at the bottom of every picture and tell nothing.
        large = [row for row in members if row.p50_us and row.gbps and "overhead" not in row.case]
        for part in ([row for row in large if row.gflops], [row for row in large if not row.gflops]):
            if part:
                title = f"{name}: {'arithmetic' if part[0].gflops else 'memory'}"
                cards.append(
                    f'<div class="card" data-group><h3>{title}</h3><p>{escape(device)}</p>{charts.roofline(part)}</div>'
                )
    return "".join(cards)


def _pairs(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    pairs: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        pairs.setdefault((row.device, family(row.op)), []).append(row)
    return dict(sorted(pairs.items()))


def speeds(rows: Sequence[Row], default: dict[tuple[str, ...], Row]) -> str:
    """A bar a row, operators in their families; a wrong row has no bar."""
    parts = []
    several = len({row.device for row in rows}) > 1
    for (device, name), members in _pairs(rows).items():
        title = f"{name}, {escape(device)}" if several else name
        parts.append(f'<div class="family" data-group><h3>{title}</h3>')
        for row in members:
            start = f'<div class="row" {charts.attributes(row)}>{label(row)}'
            if row.ratio is None:
                reason = row.status if row.p50_us is None else f"{duration(row.p50_us)}, no baseline"
                parts.append(f'{start}<span class="bad">{escape(reason)}</span></div>')
                continue
            assert row.p50_us is not None and row.baseline_p50_us is not None
            kind = "value" if row.status == "ok" else "value bad"
            text = f"<b>{row.ratio:.3g}x</b> <small>({row.ratio_p20:.3g}–{row.ratio_p80:.3g})</small> {duration(row.p50_us)} "
            text += f"<small>to {duration(row.baseline_p50_us)} {escape(row.baseline)}"
            text += f", {100 * (row.roofline or 0):.0f}% of roofline"
            other = default.get(identity(row))
            if other is not None and other.ratio is not None:
                text += f"; default allocator {other.ratio:.3g}x"
            text += f"; goal {escape(row.goal)}" if row.goal else ""
            parts.append(f'{start}{charts.ratio_bar(row)}<span class="{kind}">{text}</small></span></div>')
        parts.append("</div>")
    return "".join(parts)


def label(row: Row) -> str:
    dtype = "" if row.dtype == "float32" else f" {row.dtype}"
    return f'<span class="what">{escape(row.op)} <small>{escape(row.case)}, {row.mode}{dtype}</small></span>'


def memory(rows: Sequence[Row]) -> str:
    parts = []
    for row in rows:
        if row.peak_mb is None or max(row.peak_mb, row.baseline_peak_mb or 0.0) < 1:
            continue
        text = f"{row.peak_mb:.0f} MB <small>to {row.baseline_peak_mb or 0:.0f} MB {escape(row.baseline)}</small>"
        bar = charts.memory_bar(row)
        parts.append(f'<div class="row" {charts.attributes(row)}>{label(row)}{bar}<span class="value">{text}</span></div>')
    return "".join(parts)


def histories(rows: Sequence[Row]) -> str:
    """The geometric mean of each operator's float32 ratios at each commit."""
    cards = []
    for op, members in grouped((row for row in rows if row.ratio and row.dtype == "float32"), lambda row: row.op).items():
        for device, mine in grouped(members, lambda row: row.device).items():
            commits = grouped(sorted(mine, key=lambda row: row.date), lambda row: row.commit)
            points = [
                (commit, math.exp(sum(math.log(row.ratio) for row in found if row.ratio) / len(found)))
                for commit, found in commits.items()
            ]
            last = f"{points[-1][1]:.3g}x"
            where = f'data-op="{escape(op)}" data-device="{escape(device)}"'
            cards.append(f'<div class="card" {where}><h3>{escape(op)}: {last}</h3>{charts.history(points)}</div>')
    return "".join(cards)


def sweeps(rows: Sequence[Row]) -> str:
    cards = []
    found = [row for row in rows if row.axis and row.p50_us and row.elements and row.size]
    for (device, op, axis), members in _sweeps(found).items():
        curves: dict[str, list[tuple[float, float]]] = {}
        for row in sorted(members, key=lambda row: row.size or 0):
            assert row.p50_us and row.elements and row.size
            threads = "" if row.clock in ("events", "graph") else f", {row.threads:.0f} thread{'s' if row.threads > 1 else ''}"
            curves.setdefault(f"{row.mode}{threads}", []).append((row.size, 1e3 * row.p50_us / row.elements))
        where = f'data-op="{escape(op)}" data-device="{escape(device)}"'
        picture = charts.lines(curves, axis, "ns an element")
        cards.append(f'<div class="card" {where}><h3>{escape(op)}, growing {escape(axis)}</h3>{picture}</div>')
    return "".join(cards)


def _sweeps(rows: Sequence[Row]) -> dict[tuple[str, str, str], list[Row]]:
    found: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row.device, row.op, row.axis), []).append(row)
    return found


def kernels(table: Sequence[resources.Resources]) -> str:
    parts = []
    columns = ("kernel", "tier", "architecture", "registers", "shared", "stack", "spills")
    head = "".join(f"<th>{name}</th>" for name in columns)
    for op in dict.fromkeys(one.op for one in table):
        mine = [one for one in table if one.op == op]
        lines = ["".join(f"<td>{escape(str(getattr(one, name)))}</td>" for name in columns) for one in mine]
        body = "".join(f"<tr>{line}</tr>" for line in lines)
        summary = f"{escape(op)}: {len(mine)} kernels, {sum(one.spills > 0 for one in mine)} that spill"
        inside = f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'
        parts.append(f'<details data-op="{escape(op)}"><summary>{summary}</summary>{inside}</details>')
    return "".join(parts)


def identity(row: Row) -> tuple[str, ...]:
    """What a row and the one of the other allocator have in common."""
    return row.device, row.op, row.case, row.mode, row.dtype, row.tier, str(row.threads)


def page(rows: Sequence[Row], table: Sequence[resources.Resources]) -> str:
    """The whole page."""
    newest = readme.latest(list(rows))
    usual = [row for row in newest if not row.axis and row.allocator != "default"]
    every = [row for row in rows if not row.axis and row.allocator != "default"]
    default = {identity(row): row for row in newest if row.allocator == "default"}
    versions = "; ".join(dict.fromkeys(f"{row.device}, torch {row.torch}, {row.threads:.0f} threads" for row in usual))
    days = sorted(row.date[:10] for row in usual)

    def swatch(color: str) -> str:
        return f'<span class="swatch" style="background:var(--{color})"></span>'

    sections = [
        (
            "Time against the best baseline",
            f"{swatch('win')} faster, {swatch('loss')} slower, on a logarithmic scale around 1x; the line is the spread from "
            f"the 20th to the 80th percentile of rounds, {swatch('goal')} the goal. Red text: under its goal, or WRONG.",
            speeds(usual, default),
        ),
        (
            "Share of what the machine can do",
            f"{swatch('ours')} segkernels, {swatch('theirs')} the best baseline; dashed: copy bandwidth and matmul, "
            "measured in the same run. Small tensors that stay in a cache can lie above it.",
            f'<div class="cards">{rooflines(usual)}</div>',
        ),
        ("Peak memory", f"{swatch('ours')} segkernels, {swatch('theirs')} the baseline.", memory(usual)),
        (
            "How cost grows",
            "Time an element: flat means that a larger input costs no more than its size.",
            f'<div class="cards">{sweeps(newest)}</div>',
        ),
        (
            "History",
            "The mean ratio to the best baseline, commit by commit; the line is 1x.",
            f'<div class="cards small">{histories(every)}</div>',
        ),
        (
            "Kernels on a GPU",
            "As the assembler reports them: bytes, and registers of a thread.",
            kernels(table),
        ),
    ]
    body = "".join(
        f"<section><h2>{title}</h2><p>{text}</p>{content}</section>"
        for title, text, content in sections
        if content.replace('<div class="cards">', "").replace('<div class="cards small">', "").replace("</div>", "")
    )
    span = " to ".join(dict.fromkeys((days[0], days[-1]))) if days else "no rows yet"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><title>segkernels: speed</title>'
        f"<style>{(FOLDER / 'page.css').read_text()}</style></head><body><h1>segkernels: speed</h1>"
        f"<p>{escape(versions)}. Taken {span} by <code>segkernels bench</code>.</p>{filters(usual)}{body}"
        f"<script>{(FOLDER / 'page.js').read_text()}</script></body></html>\n"
    )


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="segkernels bench report", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("report.html"), help="default: report.html")
    parser.add_argument("--results", type=Path, default=results.FOLDER, metavar="DIR", help="default: benchmarks/results")
    options = parser.parse_args(argv)
    rows = [row for path in results.files(options.results) for row in results.read(path)]
    options.out.write_text(page(rows, resources.read(options.results / "resources.csv")))
    print(f"wrote {options.out}")
    if options.results == results.FOLDER:
        readme.main([])
    return 0
