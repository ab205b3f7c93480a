"""report.html: what stands in it, and how it looks and filters in a browser, where there is one."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks import report, resources, results
from benchmarks.report import charts
from benchmarks.results import Row

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def row(**values) -> Row:
    start = {"date": "2026-01-01T00:00:00Z", "commit": "abc", "device": "A CPU", "op": "max_pool2d", "case": "4x64x224x224"}
    start |= {"tier": "cpu", "mode": "fwd", "dtype": "float32", "threads": 2, "allocator": "recycled", "status": "ok"}
    start |= {"p20_us": 9.0, "p50_us": 10.0, "p80_us": 11.0, "gbps": 12.0, "gflops": 0.0, "roofline": 0.4, "peak_mb": 37.0}
    start |= {"baseline": "eager", "baseline_p50_us": 60.0, "baseline_peak_mb": 86.0, "ratio": 6.0, "ratio_p20": 5.5}
    return Row(
        **start | {"ratio_p80": 6.5, "goal": "6.0x", "copy_gbps": 30.0, "matmul_gflops": 150.0, "torch": "2.13"} | values
    )


def rows() -> list[Row]:
    """Two devices, losing and wrong rows, arithmetic, a history, the other allocator and a sweep."""
    found = [row(), row(commit="def", date="2026-02-01T00:00:00Z", ratio=7.0, ratio_p20=6.8, ratio_p80=7.3)]
    found += [row(mode="fwdbwd", ratio=0.7, ratio_p20=0.6, ratio_p80=0.8, baseline_p50_us=7.0, status="under goal")]
    found += [row(allocator="default", ratio=2.5), row(op="nms", case="<script>", status="WRONG", p50_us=None, ratio=None)]
    found += [row(op="conv2d", case=f"aspp {i}", gflops=20.0 * i, gbps=9.0, goal="", ratio=3.0) for i in range(1, 5)]
    gpu = {"device": "A GPU", "dtype": "bfloat16", "gflops": 9e4, "gbps": 1500.0, "copy_gbps": 2e3, "matmul_gflops": 6e5}
    found += [row(op="conv2d", case="aspp 1", goal="80% of roofline", ratio=3.0, **gpu)]
    for threads in (1, 2):
        for size in (64, 128, 256):
            sweep = {"axis": "side", "size": size, "elements": size**2, "p50_us": size**2 / 300 / threads, "threads": threads}
            found.append(row(case=f"side {size}", **sweep))
    return found


KERNELS = [resources.Resources("max_pool2d", "cuda", "max_pool2d_fwd_kernel<float, 2>", "sm_90", 40, 0, 0, 0, 8)]


def test_page_needs_nothing_else():
    page = report.page(rows(), KERNELS)
    assert not re.search(r"""(?:src|href)\s*=|@import|url\(|https?://""", page)
    assert "width=device-width" in page and "prefers-color-scheme: dark" in page
    assert "<script>," not in page and "&lt;script&gt;" in page, "names are escaped"


def test_what_the_page_shows():
    page = report.page(rows(), KERNELS)
    assert "<b>7x</b>" in page and "<b>6x</b>" not in page, "the newest row of a case"
    assert "default allocator 2.5x" in page and "goal 6.0x" in page
    assert "WRONG" in page and page.count('class="loss"') == 1
    assert "37 MB <small>to 86 MB" in page
    assert "max_pool2d, growing side" in page and "fwd, 1 thread<" in page and "fwd, 2 threads" in page
    assert "from abc to def" in page
    assert "1 kernels, 1 that spill" in page and "max_pool2d_fwd_kernel&lt;float, 2&gt;" in page
    assert "Convolutions: arithmetic" in page and "Pooling and upsampling: memory" in page
    assert 'data-device="A GPU" data-op="conv2d" data-dtype="bfloat16" data-mode="fwd"' in page
    assert "no rows yet" in report.page([], [])


def test_every_operator_has_a_family():
    from benchmarks.cases import models, operators

    assert {report.family(op) for op in operators()} == set(report.FAMILIES)
    assert {report.family(name) for name in models()} <= {"Models"}


def test_axes():
    axis = charts.Axis.of([3.0, 700.0], 0, 300)
    assert (axis.low, axis.high) == (1.0, 1000.0)
    assert [axis(v) for v in (1.0, 10.0, 1000.0, 1e9)] == pytest.approx([0, 100, 300, 300])
    assert axis.ticks() == [1.0, 10.0, 100.0, 1000.0]
    assert [charts.short(v) for v in (0.5, 1200, 3.4e6, 2e9)] == ["0.5", "1.2k", "3.4M", "2G"]


def test_command_reads_the_folder(tmp_path):
    results.append(rows(), tmp_path / "device.csv")
    resources.write(KERNELS, tmp_path / "resources.csv")
    assert report.main(["--results", str(tmp_path), "--out", str(tmp_path / "report.html")]) == 0
    assert (tmp_path / "report.html").read_text() == report.page(results.read(tmp_path / "device.csv"), KERNELS)


def browse(page: Path, *arguments: str) -> str:
    assert CHROMIUM
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += [f"--user-data-dir={page.parent / 'profile'}", "--virtual-time-budget=2000", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.skipif(CHROMIUM is None, reason="chromium not found")
def test_filter_in_a_browser(tmp_path):
    """Of the page opened at a filter, only what matches it is left, and nothing is wider than a phone."""
    path = tmp_path / "report.html"
    probe = "document.body.dataset.wide = document.documentElement.scrollWidth > innerWidth"
    path.write_text(report.page(rows(), KERNELS).replace("</body>", f"<script>{probe}</script></body>"))
    text = browse(path, "--window-size=390,844", "--dump-dom", f"file://{path}#op=conv2d&dtype=bfloat16")
    assert 'data-wide="false"' in text
    lines = re.findall(r'<div class="row" ([^>]*)>', text)
    shown = [line for line in lines if "hidden" not in line]
    assert len(lines) > len(shown) > 0
    assert all('data-op="conv2d"' in line and 'data-dtype="bfloat16"' in line for line in shown)
    marks = re.findall(r"<g (data-device[^>]*)>", text)
    assert any("display: none" in mark for mark in marks) and any("display: none" not in mark for mark in marks)
