"""Time and peak memory on a GPU.

CUDA events time, not the host's clock. Every call takes the next of several copies of its inputs, together larger than the
L2 cache, so that no row reads from the cache what a model would read from memory. Calls too short for the host to
keep the GPU busy are captured in one CUDA graph and replayed, all variants of a row or none. Calls of no work, whose row
asks for the overhead, are timed as a user sees them: by the host's clock.

``cuda`` is ``torch.cuda`` or, in tests, what stands for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from benchmarks.timing import interleaved, wall

Call = Callable[[], object]

#: Of all copies of the inputs together.
L2_MULTIPLE = 2
MOST_COPIES = 64
#: A call shorter than this is replayed from a graph: launching it takes the host about as long.
SMALL = 100e-6


def size_of(inputs: Iterable[Any]) -> int:
    """Bytes of the tensors, also of those in lists."""
    return sum(
        value.numel() * value.element_size() if isinstance(value, torch.Tensor) else size_of(value)
        for value in inputs
        if isinstance(value, (torch.Tensor, list, tuple))
    )


def copies_for(size: int, l2: int) -> int:
    """How many copies of inputs of this many bytes are larger than the cache."""
    return max(1, min(MOST_COPIES, -(-L2_MULTIPLE * l2 // max(size, 1))))


class Rotation:
    """A call that runs the next of several calls each time."""

    def __init__(self, calls: list[Call]) -> None:
        self.calls = calls
        self._next = 0

    def __call__(self) -> object:
        call = self.calls[self._next]
        self._next = (self._next + 1) % len(self.calls)
        return call()


def events(call: Call, count: int, cuda: Any = torch.cuda) -> float:
    """Seconds of ``count`` calls on the GPU."""
    start, end = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
    start.record()
    for _ in range(count):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def host(call: Call, count: int, cuda: Any = torch.cuda) -> float:
    """Seconds of ``count`` calls as the host sees them, with the wait for the last one."""

    def all_of_them() -> None:
        for _ in range(count):
            call()
        cuda.synchronize()

    cuda.synchronize()
    return wall(all_of_them, 1)


def waits(call: Call, cuda: Any = torch.cuda) -> bool:
    """Whether the call makes the host wait for the GPU: it cannot be captured then."""
    mode = cuda.get_sync_debug_mode()
    cuda.set_sync_debug_mode("error")
    try:
        call()
    except RuntimeError:
        return True
    finally:
        cuda.set_sync_debug_mode(mode)
    return False


def captured(call: Rotation, cuda: Any = torch.cuda) -> Call:
    """One graph of a whole turn of the rotation."""
    side = cuda.Stream()
    side.wait_stream(cuda.current_stream())
    with cuda.stream(side):
        for _ in call.calls:
            call()
    cuda.current_stream().wait_stream(side)
    graph = cuda.CUDAGraph()
    with cuda.graph(graph):
        for _ in call.calls:
            call()
    return graph.replay


def measure(
    calls: dict[str, Rotation], budget: float, overhead: bool = False, cuda: Any = torch.cuda
) -> tuple[dict[str, list[float]], str]:
    """Seconds of each call, one sample of each a round, and what timed them: ``wall``, ``events`` or ``graph``."""
    if overhead:
        return interleaved(calls, budget, clock=lambda call, count: host(call, count, cuda)), "wall"

    def clock(call: Call, count: int) -> float:
        return events(call, count, cuda)

    for call in calls.values():
        call()  # compiles and tunes
    small = min(clock(call, 10) / 10 for call in calls.values()) < SMALL
    if not small or any(waits(call, cuda) for call in calls.values()):
        return interleaved(calls, budget, clock=clock), "events"
    turns = {name: captured(call, cuda) for name, call in calls.items()}
    samples = interleaved(turns, budget, clock=clock)
    return {name: [t / len(calls[name].calls) for t in values] for name, values in samples.items()}, "graph"


def peak_of(call: Call, cuda: Any = torch.cuda) -> int:
    """Bytes over the resting state at the worst moment of ``call()``, as torch's allocator counts them."""
    call()
    cuda.synchronize()
    resting = cuda.memory_allocated()
    cuda.reset_peak_memory_stats()
    result = call()
    cuda.synchronize()
    peak = cuda.max_memory_allocated()
    del result
    return max(0, peak - resting)
