"""Time of several variants of one call, interleaved, so that what slows the machine slows all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

#: The variant that every other one is compared with.
OURS = "segkernels"
#: A sample shorter than this is repeated within one reading of the clock.
SHORTEST_SAMPLE = 2e-3


def quantile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


@dataclass(frozen=True)
class Spread:
    p20: float
    p50: float
    p80: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        return cls(quantile(values, 0.2), statistics.median(values), quantile(values, 0.8))


def wall(call: Callable[[], object], count: int) -> float:
    """Seconds of ``count`` calls by the host's clock."""
    start = time.perf_counter()
    for _ in range(count):
        call()
    return time.perf_counter() - start


def interleaved(
    calls: dict[str, Callable[[], object]],
    budget: float,
    least_rounds: int = 7,
    clock: Callable[[Callable[[], object], int], float] = wall,
) -> dict[str, list[float]]:
    """Seconds of each call, one sample of each a round, the order turned around every other round.

    Args:
        calls: variant -> call. Each runs twice beforehand, so that every variant finds the allocator and the caches warm.
        budget: seconds for all of it, after the warm-up; at least ``least_rounds`` rounds run whatever they take, or three
            where a round takes more than a second.
        clock: seconds of a number of calls; on a GPU not the host's.
    """
    repeats = {}
    round_seconds = 0.0
    for name, call in calls.items():
        call()
        seconds = clock(call, 1)
        round_seconds += seconds
        repeats[name] = max(1, round(SHORTEST_SAMPLE / max(seconds, 1e-7)))
    least_rounds = min(least_rounds, 3) if round_seconds > 1 else least_rounds
    samples: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls)
    deadline = time.perf_counter() + budget
    rounds = 0
    while rounds < least_rounds or time.perf_counter() < deadline:
        for name in order:
            samples[name].append(clock(calls[name], repeats[name]) / repeats[name])
        order.reverse()
        rounds += 1
    return samples


def ratios(ours: list[float], baseline: list[float]) -> Spread:
    """How many times faster ours is, from samples of the same round."""
    return Spread.of([b / a for a, b in zip(ours, baseline)])
