"""segkernels: fast, deterministic operators for image segmentation in PyTorch."""

from __future__ import annotations

from segkernels import metrics, ops
from segkernels._register import apply_environment, backend, tiers
from segkernels._version import __version__

apply_environment()

__all__ = ["__version__", "backend", "metrics", "ops", "tiers"]
