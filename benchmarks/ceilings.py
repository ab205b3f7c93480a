"""What this machine can do at most, measured in the same run as the rows: a large copy and a large matmul."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks import gpu
from benchmarks.timing import wall

COPY_BYTES = 256 * 2**20
MATMUL_SIZE = 2048


@dataclass(frozen=True)
class Ceilings:
    gbps: float
    gflops: float

    def shortest(self, moved: int, flops: int) -> float:
        """The least seconds for this work: the roofline."""
        return max(moved / (self.gbps * 1e9), flops / (self.gflops * 1e9))


def best(call: Callable[[], object], repeats: int, clock: Callable[[Callable[[], object], int], float]) -> float:
    call()
    return min(clock(call, 1) for _ in range(repeats))


def measure(dtype: torch.dtype, device: str = "cpu", repeats: int = 7) -> Ceilings:
    """A copy that no cache holds and a matmul that fills the machine; on a GPU both are larger and events time them."""
    clock = gpu.events if device == "cuda" else wall
    scale = 4 if device == "cuda" else 1
    source = torch.rand(scale * COPY_BYTES // dtype.itemsize, device=device).to(dtype)
    target = torch.rand(scale * COPY_BYTES // dtype.itemsize, device=device).to(dtype)
    copy = best(lambda: target.copy_(source), repeats, clock)
    size = scale * MATMUL_SIZE
    a = torch.rand(size, size, device=device).to(dtype)
    b = torch.rand(size, size, device=device).to(dtype)
    product = best(lambda: a @ b, repeats, clock)
    return Ceilings(2 * scale * COPY_BYTES / copy / 1e9, 2 * size**3 / product / 1e9)
