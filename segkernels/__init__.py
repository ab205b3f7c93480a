"""segkernels: fast, deterministic operators for image segmentation in PyTorch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from segkernels import losses, metrics, nn, ops
from segkernels._load import build_info
from segkernels._register import apply_environment, backend, tiers
from segkernels._version import __version__

if TYPE_CHECKING:
    from segkernels import models, onnx
    from segkernels._accelerate import accelerate, accelerated, restore

apply_environment()

__all__ = [
    "__version__",
    "accelerate",
    "accelerated",
    "backend",
    "build_info",
    "losses",
    "metrics",
    "models",
    "nn",
    "onnx",
    "ops",
    "restore",
    "tiers",
]


def __getattr__(name: str) -> Any:
    # Imported at the first use: most programs have one, if any.
    if name in ("accelerate", "accelerated", "restore"):
        from segkernels import _accelerate

        return getattr(_accelerate, name)
    if name in ("models", "onnx"):
        return importlib.import_module(f"segkernels.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
