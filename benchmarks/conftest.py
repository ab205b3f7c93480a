"""Says how memory is recycled: it changes every number here, and cannot be changed once a process runs."""

from benchmarks.runner import RECYCLED, allocator


def pytest_report_header() -> str:
    if allocator() == "recycled":
        return "allocator: recycled memory"
    settings = " ".join(f"{name}={value}" for name, value in RECYCLED.items())
    return f"allocator: default, large outputs pay page faults; the published rows are taken with {settings}"
