"""The goals that all rows of the convolution family share."""

from __future__ import annotations

from typing import Any

from benchmarks.cases import BASELINES_PEAK, MODES, GpuGoal

#: What every row has to reach, unless its case says otherwise.
EVERY_ROW: dict[str, Any] = {
    "memory_goals": {"fwdbwd": BASELINES_PEAK},
    "gpu_goals": {mode: GpuGoal({"best": 0.95}) for mode in MODES},
}
#: A call of no work.
OVERHEAD: dict[str, Any] = {"modes": ("fwd",), "overhead_goals": {"fwd": 15.0}, "memory_goals": {}, "gpu_goals": {}}
