"""Loads the native libraries. Nothing here raises: a library that cannot be loaded is a reason, read by ``tiers()``."""

from __future__ import annotations

import importlib
import json
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from segkernels._version import __version__

_PACKAGE = Path(__file__).parent
_LIBRARIES = {"cpu": "_ops_cpu", "cuda": "_ops_cuda"}


def build_report() -> dict[str, Any]:
    """What ``setup.py`` built and why it left the rest out; empty when it never ran here."""
    try:
        return json.loads((_PACKAGE / "_build_report.json").read_text())
    except (OSError, ValueError):
        return {}


def load_library(tier: str) -> str | None:
    """Loads the library of one native tier; returns why it could not, or None."""
    if tier == "cuda" and not torch.backends.cuda.is_built():
        return "this torch is built without CUDA"
    path = _PACKAGE / f"{_LIBRARIES[tier]}.so"
    if not path.exists():
        why = build_report().get(tier, {}).get("reason", f"{path.name} does not exist")
        return f"library not built: {why}"
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return f"library does not load: {error}"
    return None


def load_helpers() -> tuple[ModuleType | None, str | None]:
    """The pybind11 module ``segkernels._C`` and, when it is missing, why."""
    try:
        return importlib.import_module("segkernels._C"), None
    except ImportError as error:
        return None, str(error)


def _load_default_libraries() -> dict[str, str | None]:
    reasons = {tier: load_library(tier) for tier in ("cpu", "cuda")}
    if reasons["cpu"] is not None:
        warnings.warn(
            f"segkernels: no CPU kernels ({reasons['cpu']}); the reference tier answers, which is slow",
            RuntimeWarning,
            stacklevel=3,
        )
    if reasons["cuda"] is not None and torch.cuda.is_available():
        warnings.warn(
            f"segkernels: no CUDA kernels ({reasons['cuda']}); Triton or the reference tier answers",
            RuntimeWarning,
            stacklevel=3,
        )
    return reasons


#: Tier name -> why its library is not loaded (None when it is).
library_reasons: dict[str, str | None] = _load_default_libraries()
helpers, helpers_reason = load_helpers()


def build_info() -> dict[str, Any]:
    """How the installed native libraries were built.

    Returns:
        dict: ``version`` of segkernels; ``libraries``: library -> None, or why it is not loaded; and, where the compiled
        helpers are there, ``compiler``, ``flags``, ``torch_floor`` (the oldest torch this build loads in), ``torch_build``,
        ``nvcc``, ``cuda_archs`` and ``simd_level`` (the instruction set that the CPU kernels use here).
    """
    info: dict[str, Any] = {
        "version": __version__,
        "libraries": {_LIBRARIES[tier]: reason for tier, reason in library_reasons.items()} | {"_C": helpers_reason},
    }
    if helpers is not None:
        info |= helpers.build_info()
        info["simd_level"] = helpers.simd_level()
    return info
