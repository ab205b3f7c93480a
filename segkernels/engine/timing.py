"""Times of two or more functions side by side in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

_ROUNDS = 5


def interleaved_medians(functions: Mapping[str, Callable[[], Any]], seconds: float) -> dict[str, float]:
    """Calls each function in turn, once to warm up and then for about ``seconds`` and at least five rounds.

    Interleaved, so that a machine that slows down slows all of them down.

    Returns:
        dict: name -> median milliseconds of a call.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < _ROUNDS or time.perf_counter() < end:
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
        rounds += 1
    return {name: 1e3 * statistics.median(values) for name, values in times.items()}
