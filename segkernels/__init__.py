"""segkernels: fast, deterministic operators for image segmentation in PyTorch."""

from __future__ import annotations

from segkernels import losses, metrics, models, nn, ops
from segkernels._load import build_info
from segkernels._register import apply_environment, backend, tiers
from segkernels._version import __version__

apply_environment()

__all__ = ["__version__", "backend", "build_info", "losses", "metrics", "models", "nn", "ops", "tiers"]
