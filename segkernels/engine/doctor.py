"""What runs here, and why each other thing does not."""

from __future__ import annotations

import importlib.metadata
import platform
from pathlib import Path
from typing import Any

import torch

from segkernels._load import build_info
from segkernels._register import TIERS, tiers
from segkernels.engine import memory
from segkernels.engine.console import Console

_PACKAGES = ("torch", "triton", "numpy", "rich", "imgviz", "matplotlib")


def collect() -> dict[str, Any]:
    """Everything that :func:`show` prints, ready for JSON.

    Returns:
        dict: ``versions``, ``build`` (:func:`segkernels.build_info`), ``devices``, ``memory``
        (:func:`segkernels.engine.memory.measure`) and ``operators`` (:func:`segkernels.tiers`).
    """
    build = build_info()
    return {
        "versions": {"segkernels": build["version"], "python": platform.python_version()} | _package_versions(),
        "build": build,
        "devices": _devices(),
        "memory": memory.measure() | {"environment": memory.ENVIRONMENT},
        "operators": tiers(),
    }


def show(found: dict[str, Any], console: Console) -> None:
    """Prints what :func:`collect` returned."""
    build = found["build"]
    console.table("Versions", ("package", "version"), [(k, v or "not installed") for k, v in found["versions"].items()])
    libraries = build["libraries"].items()
    rows = [(name, reason or "loaded") for name, reason in libraries]
    rows += [(key, value or "none") for key, value in build.items() if key not in ("version", "libraries")]
    console.table("Build", ("what", "how"), rows)
    console.table("Devices", ("device", "what"), list(found["devices"].items()))
    _show_operators(found["operators"], console)
    console.print()
    console.print(_memory_advice(found["memory"]))


def _package_versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    # The metadata leaves out which build it is ("+cpu").
    versions["torch"] = torch.__version__
    return versions


def _devices() -> dict[str, str]:
    devices = {"cpu": f"{_cpu_name()}, {torch.get_num_threads()} threads"}
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        devices[f"cuda:{i}"] = (
            f"{properties.name}, sm_{properties.major}{properties.minor}, {properties.total_memory >> 30} GiB"
        )
    if len(devices) == 1:
        built = torch.backends.cuda.is_built()
        devices["cuda"] = "none: " + ("torch finds no GPU" if built else "this torch is built without CUDA")
    return devices


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _show_operators(operators: dict[str, Any], console: Console) -> None:
    """One table per device; a tier that cannot run has the number of its reason, and the reasons follow."""
    numbers: dict[str, int] = {}
    for device, names in TIERS.items():
        rows = []
        for op, devices in operators.items():
            entry = devices[device]
            cells = []
            for tier in names:
                reason = entry["tiers"][tier]
                if reason is not None:
                    cells.append(f"no ({numbers.setdefault(reason, len(numbers) + 1)})")
                else:
                    cells.append("CHOSEN" if tier == entry["chosen"] else "yes")
            rows.append((op, *cells))
        console.table(f"Operators on {device}: the tier that answers, and which others can", ("operator", *names), rows)
    for reason, number in numbers.items():
        console.print(f"  ({number}) {reason}")


def _memory_advice(found: dict[str, Any]) -> str:
    if found["page_faults"] is None:
        return "Memory: this system does not tell a process its page faults."
    new, same = found["new_output_ms"], found["same_output_ms"]
    if not found["page_faults"]:
        return f"Memory: recycled; writing a new 40 MB output takes {new} ms, the same one again {same} ms."
    setting = " ".join(f"{name}={value}" for name, value in found["environment"].items())
    return (
        f"Memory: this process pays page faults for every large output, in every library alike: writing a new 40 MB output "
        f"takes {new} ms, the same one again {same} ms.\n"
        f"With glibc, this setting before the process starts stops it:\n  {setting}"
    )
