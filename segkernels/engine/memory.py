"""Page faults: what glibc's allocator costs every library alike, and how to stop paying.

By default each block of more than 32 MB is mapped afresh and given back when it is freed, so that every large output of an
operator pays about 0.25 ms a megabyte in page faults, which hides the operator. With the settings below the process keeps
its memory and hands it out again, as GPU allocators do.
"""

from __future__ import annotations

import ctypes
import statistics
import sys
import time
from typing import Any

import torch

#: Set before the process starts, this stops the page faults (glibc).
ENVIRONMENT = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "34359738368",
    "MALLOC_TOP_PAD_": "268435456",
}
# The same as parameters of mallopt(3); a trim threshold of -1 never trims.
_MALLOPT = ((-4, 0), (-1, -1), (-2, 268435456))

# More than glibc ever keeps by default (32 MB); 10240 small pages or 20 huge ones.
_PROBE_BYTES = 40 << 20
_PROBE_FAULTS = 10
# Also a process that recycles faults at first: the pieces that alignment cuts off fill the seven places of glibc's
# per-thread cache before whole blocks come back.
_WARMUP, _ROUNDS = 9, 3


def _faults() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def measure() -> dict[str, Any]:
    """Writes a 40 MB output several times over and counts what the system had to map.

    Returns:
        dict: ``page_faults``: whether every large output of this process pays them, None where the system does not tell;
        ``faults``: how many per output; ``new_output_ms`` and ``same_output_ms``: filling a new one, and the same again.
    """
    if sys.platform == "win32":
        return {"page_faults": None, "faults": None, "new_output_ms": None, "same_output_ms": None}
    rounds = []
    for _ in range(_WARMUP + _ROUNDS):
        before, start = _faults(), time.perf_counter()
        output = torch.empty(_PROBE_BYTES, dtype=torch.uint8).fill_(1)
        faults, middle = _faults() - before, time.perf_counter()
        output.fill_(2)
        rounds.append((faults, 1e3 * (middle - start), 1e3 * (time.perf_counter() - middle)))
        del output
    faults, new, same = (statistics.median(column) for column in zip(*rounds[_WARMUP:]))
    return {
        "page_faults": faults > _PROBE_FAULTS,
        "faults": faults,
        "new_output_ms": round(new, 2),
        "same_output_ms": round(same, 2),
    }


def recycle() -> bool:
    """Makes this process keep its memory from here on, as :data:`ENVIRONMENT` does from its start; False without glibc."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return all(mallopt(parameter, value) == 1 for parameter, value in _MALLOPT)
