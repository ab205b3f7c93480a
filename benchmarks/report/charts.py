"""SVG pictures of rows, drawn with no library so that the page needs none. Colours are the page's CSS variables."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape

from benchmarks.results import Row

WIDTH, HEIGHT = 420, 260
LEFT, RIGHT, TOP, BOTTOM = 50, 12, 12, 40
#: The bars of ratios reach from this to its inverse times eight.
LOWEST = 0.25
HIGHEST = 64.0


def attributes(row: Row) -> str:
    """What the page's filter reads."""
    values = {"device": row.device, "op": row.op, "dtype": row.dtype, "mode": row.mode}
    return " ".join(f'data-{name}="{escape(value)}"' for name, value in values.items())


def short(value: float) -> str:
    """1200000 as 1.2M."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


@dataclass
class Axis:
    """A logarithmic axis from ``low`` to ``high``, over pixels ``start`` to ``end``."""

    low: float
    high: float
    start: float
    end: float

    @classmethod
    def of(cls, values: Iterable[float], start: float, end: float) -> Axis:
        """Whole powers of ten around the values."""
        found = [value for value in values if value > 0] or [1.0]
        low, high = math.floor(math.log10(min(found))), math.ceil(math.log10(max(found)) + 1e-9)
        return cls(10.0**low, 10.0 ** max(high, low + 1), start, end)

    def __call__(self, value: float) -> float:
        share = math.log(min(max(value, self.low), self.high) / self.low) / math.log(self.high / self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        first, last = round(math.log10(self.low)), round(math.log10(self.high))
        step = max(1, (last - first + 4) // 5)
        return [10.0**power for power in range(first, last + 1, step)]


def plot(x: Axis, y: Axis, x_label: str, y_label: str, body: Iterable[str]) -> str:
    """A frame with a grid and labels around the marks."""
    parts = [f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(y_label)}">']
    foot = HEIGHT - BOTTOM + 14
    for tick in x.ticks():
        parts.append(f'<path class="grid" d="M{x(tick):.1f} {TOP}V{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text class="tick" x="{x(tick):.1f}" y="{foot}" text-anchor="middle">{short(tick)}</text>')
    for tick in y.ticks():
        parts.append(f'<path class="grid" d="M{LEFT} {y(tick):.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 5}" y="{y(tick) + 4:.1f}" text-anchor="end">{short(tick)}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="axis" x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>')
    height = (TOP + HEIGHT - BOTTOM) / 2
    rotated = f'transform="rotate(-90 12 {height})"'
    parts.append(f'<text class="axis" x="12" y="{height}" text-anchor="middle" {rotated}>{escape(y_label)}</text>')
    return "".join([*parts, *body, "</svg>"])


def frame(xs: Iterable[float], ys: Iterable[float]) -> tuple[Axis, Axis]:
    return Axis.of(xs, LEFT, WIDTH - RIGHT), Axis.of(ys, HEIGHT - BOTTOM, TOP)


def roofline(rows: Sequence[Row]) -> str:
    """What each row reaches of what the machine can do: over FLOPs a byte, or over bytes for rows that compute nothing."""
    if any(row.gflops for row in rows):
        rows = [row for row in rows if row.gflops]
        return _roofline(
            rows,
            lambda row: row.gflops / row.gbps,
            lambda row: row.gflops,
            lambda row, x: min(x * row.copy_gbps, row.matmul_gflops),
            ("FLOP a byte", "GFLOP/s"),
        )
    return _roofline(
        rows,
        lambda row: row.gbps * row.p50_us * 1e3,
        lambda row: row.gbps,
        lambda row, x: row.copy_gbps,
        ("bytes moved", "GB/s"),
    )


def _roofline(
    rows: Sequence[Row],
    intensity: Callable[[Row], float],
    reached: Callable[[Row], float],
    ceiling: Callable[[Row, float], float],
    labels: tuple[str, str],
) -> str:
    tops = {row.dtype: row for row in rows if row.copy_gbps and row.matmul_gflops}
    xs = [intensity(row) for row in rows]
    ys = [reached(row) for row in rows] + [ceiling(row, intensity(row)) for row in rows]
    x, y = frame(xs, [value for value in ys if value > max(ys) / 1e5])
    body = []
    for dtype, top in tops.items():
        at = [x.low * (x.high / x.low) ** (i / 60) for i in range(61)]
        line = " ".join(f"{x(v):.1f},{y(ceiling(top, v)):.1f}" for v in at)
        body.append(f'<polyline class="roof" data-dtype="{dtype}" points="{line}"><title>{dtype}</title></polyline>')
    for row in rows:
        left, up = x(intensity(row)), y(reached(row))
        title = f"{row.op} {row.case} {row.mode} {row.dtype}: {reached(row):.3g} {labels[1]}, {100 * (row.roofline or 0):.0f}%"
        marks = ""
        if row.baseline_p50_us and row.p50_us:
            down = y(reached(row) * row.p50_us / row.baseline_p50_us)
            marks = f'<path class="pair" d="M{left:.1f} {up:.1f}V{down:.1f}"/>'
            marks += f'<circle class="theirs" cx="{left:.1f}" cy="{down:.1f}" r="3"/>'
        marks += f'<circle class="ours" cx="{left:.1f}" cy="{up:.1f}" r="4"/>'
        body.append(f"<g {attributes(row)}>{marks}<title>{escape(title)}</title></g>")
    return plot(x, y, *labels, body)


def ratio_bar(row: Row) -> str:
    """From 1 to the ratio on a logarithmic scale, with the spread and the goal."""
    assert row.ratio is not None and row.ratio_p20 is not None and row.ratio_p80 is not None
    axis = Axis(LOWEST, HIGHEST, 0, 200)
    one, end = axis(1.0), axis(row.ratio)
    kind = "win" if row.ratio >= 1 else "loss"
    parts = [f'<svg class="bar" viewBox="0 0 200 14" preserveAspectRatio="none" role="img" aria-label="{row.ratio:.3g}x">']
    parts.append(f'<rect class="{kind}" x="{min(one, end):.1f}" y="2" width="{max(abs(end - one), 0.8):.1f}" height="10"/>')
    parts.append(f'<path class="spread" d="M{axis(row.ratio_p20):.1f} 7H{axis(row.ratio_p80):.1f}"/>')
    goal = goal_ratio(row)
    if goal is not None:
        parts.append(f'<path class="goal" d="M{axis(goal):.1f} 0V14"><title>goal {goal:g}x</title></path>')
    parts.append(f'<path class="one" d="M{one:.1f} 0V14"/></svg>')
    return "".join(parts)


def goal_ratio(row: Row) -> float | None:
    """The goal's ratio to the best baseline, where the row has one."""
    first = row.goal.split(" ")[0]
    return float(first[:-1]) if first.endswith("x") and row.allocator != "default" else None


def memory_bar(row: Row) -> str:
    """Both peaks, to the scale of the larger one."""
    ours, theirs = row.peak_mb or 0.0, row.baseline_peak_mb or 0.0
    scale = 200 / max(ours, theirs, 1e-9)
    return (
        '<svg class="bar" viewBox="0 0 200 14" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="mine" x="0" y="1" width="{ours * scale:.1f}" height="6"/>'
        f'<rect class="base" x="0" y="8" width="{theirs * scale:.1f}" height="5"/></svg>'
    )


def lines(curves: dict[str, list[tuple[float, float]]], x_label: str, y_label: str) -> str:
    """Several named curves over logarithmic axes."""
    points = [point for curve in curves.values() for point in curve]
    x, y = frame([point[0] for point in points], [point[1] for point in points])
    body = []
    for i, (name, curve) in enumerate(curves.items()):
        path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in curve)
        dots = "".join(f'<circle class="dot c{i % 4}" cx="{x(a):.1f}" cy="{y(b):.1f}" r="3"/>' for a, b in curve)
        body.append(f'<g><polyline class="curve c{i % 4}" points="{path}"/>{dots}<title>{escape(name)}</title></g>')
    names = "".join(f'<span class="c{i % 4}">● {escape(name)}</span>' for i, name in enumerate(curves))
    return plot(x, y, x_label, y_label, body) + f'<div class="keys">{names}</div>'


def history(points: Sequence[tuple[str, float]]) -> str:
    """The mean ratio at each commit, from left to right, over a line at 1."""
    values = [value for _, value in points]
    y = Axis(min(0.8, *values, *values) / 1.1, max(1.25, *values, *values) * 1.1, 62, 6)
    step = 240 / max(1, len(points) - 1)
    at = [(10 + i * step if len(points) > 1 else 130, y(value)) for i, value in enumerate(values)]
    path = " ".join(f"{a:.1f},{b:.1f}" for a, b in at)
    dots = "".join(
        f'<circle class="dot c0" cx="{a:.1f}" cy="{b:.1f}" r="3.5"><title>{escape(commit)}: {value:.3g}x</title></circle>'
        for (a, b), (commit, value) in zip(at, points)
    )
    label = f"from {points[0][0]} to {points[-1][0]}" if len(points) > 1 else points[0][0]
    return (
        f'<svg class="history" viewBox="0 0 260 84" role="img" aria-label="{escape(label)}">'
        f'<path class="one" d="M4 {y(1.0):.1f}H256"/><polyline class="curve c0" points="{path}"/>{dots}'
        f'<text class="tick" x="10" y="80">{escape(label)}</text></svg>'
    )
