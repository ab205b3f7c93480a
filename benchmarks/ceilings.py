"""What this machine can do at most, measured in the same run as the rows: a large copy and a large matmul."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

COPY_BYTES = 256 * 2**20
MATMUL_SIZE = 2048


@dataclass(frozen=True)
class Ceilings:
    gbps: float
    gflops: float

    def shortest(self, moved: int, flops: int) -> float:
        """The least seconds for this work: the roofline."""
        return max(moved / (self.gbps * 1e9), flops / (self.gflops * 1e9))


def best(call, repeats: int) -> float:
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def measure(dtype: torch.dtype, device: str = "cpu", repeats: int = 7) -> Ceilings:
    source = torch.rand(COPY_BYTES // dtype.itemsize, device=device).to(dtype)
    target = torch.rand(COPY_BYTES // dtype.itemsize, device=device).to(dtype)
    copy = best(lambda: target.copy_(source), repeats)
    a = torch.rand(MATMUL_SIZE, MATMUL_SIZE, device=device).to(dtype)
    b = torch.rand(MATMUL_SIZE, MATMUL_SIZE, device=device).to(dtype)
    product = best(lambda: a @ b, repeats)
    return Ceilings(2 * COPY_BYTES / copy / 1e9, 2 * MATMUL_SIZE**3 / product / 1e9)
