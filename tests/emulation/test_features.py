"""What the emulation of CUDA offers: each feature gives the right values under every schedule."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from emulation.kernels import run

SEEDS = range(6)


def every_schedule(name: str, *args: int | torch.Tensor) -> torch.Tensor:
    results = [run(name, *args, seed=seed) for seed in SEEDS]
    for again in results[1:]:
        assert torch.equal(again, results[0])
    return results[0]


def test_block_sum():
    x = torch.randint(-50, 50, (7 * 256,)).float()
    assert torch.equal(every_schedule("block_sum", x, 7, 7, 256), x.view(7, 256).sum(1))


def test_transpose_through_static_shared_memory():
    x = torch.randn(10, 32, 32)
    assert torch.equal(every_schedule("transpose", x, x.numel(), 3, 256).view_as(x), x.mT)


def test_divergent_shuffles():
    x = torch.randn(64)
    lane = torch.arange(64) % 32
    base = torch.arange(64) - lane
    xor = torch.where(lane < 16, lane ^ 1, lane ^ 6)
    expected = x[base + xor] + (x[base + lane // 8 * 8 + 3] + x[base + (lane - 1).where(lane > 0, lane)])
    assert torch.equal(every_schedule("divergent_shuffles", x, 64), expected)


@pytest.mark.parametrize("positive", [0, 1, 32, 63, 64])
def test_votes(positive):
    x = torch.where(torch.arange(64) < positive, 1.0, -1.0)
    warp = x.view(2, 32) > 0
    some = int(positive > 0) + warp.any(1).int()
    every = int(positive == 64) + warp.all(1).int()
    expected = (positive * 100 + some * 10 + every).repeat_interleave(32).float()
    assert torch.equal(every_schedule("votes", x, 64), expected)


def test_active_lanes():
    total = every_schedule("active_lanes_add", torch.zeros(1), 1, 3, 96).view(torch.int32)
    assert total.item() == 3 * 64


def test_atomics():
    x = torch.randint(0, 100, (5 * 96,)).float()
    result = every_schedule("atomics", x, 7, 5, 96).view(torch.int32)
    assert result[:4].tolist() == torch.bincount(x.long() % 4, minlength=4).tolist()
    assert result[4:5].view(torch.float32).item() == x.max()
    assert result[6] == x.numel()


@pytest.mark.parametrize("size", [4, 256, 1002, 1023 * 4])
def test_pipelined_copy(size):
    x = torch.randint(-9, 9, (size,)).float()
    expected = torch.nn.functional.pad(x, (0, -size % 4)).view(-1, 4).sum(1)
    actual = every_schedule("pipelined_copy", x, size)
    assert torch.equal(actual[: expected.numel()], expected)


@pytest.mark.parametrize(("name", "dtype"), [("product_half", torch.float16), ("product_bfloat16", torch.bfloat16)])
def test_tensor_core_tile_of_half(name, dtype):
    a, b = torch.randn(16, 48), torch.randn(48, 8)
    actual = every_schedule(name, torch.cat([a.flatten(), b.flatten()]), 128, 1, 32).view(16, 8)
    torch.testing.assert_close(actual.double(), a.to(dtype).double() @ b.to(dtype).double(), rtol=1e-5, atol=1e-5)


def test_tensor_core_tile_of_tf32():
    a, b = torch.randn(16, 24), torch.randn(24, 8)

    def rounded(x: torch.Tensor) -> torch.Tensor:
        return ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32).double()

    actual = every_schedule("product_tf32", torch.cat([a.flatten(), b.flatten()]), 128, 1, 32).view(16, 8)
    torch.testing.assert_close(actual.double(), rounded(a) @ rounded(b), rtol=1e-5, atol=1e-5)


def test_many_threads_are_cheap():
    """16,000 threads with barriers take a fraction of a second, so that operators can be tested at real block sizes."""
    import time

    x = torch.zeros(16 * 1024)
    run("block_sum", x, 16, 16, 1024)
    start = time.perf_counter()
    run("block_sum", x, 16, 16, 1024, seed=1)
    assert time.perf_counter() - start < 2


@pytest.mark.slow
def test_ucontext_fibers():
    """The portable switch of stacks, for machines that are not x86-64."""
    if os.environ.get("SEGKERNELS_EMULATION_VARIANT"):
        pytest.skip("already in a variant")
    code = "from emulation.kernels import run; import torch; print(run('block_sum', torch.ones(512), 2, 2, 256, 1).tolist())"
    environment = {**os.environ, "SEGKERNELS_EMULATION_VARIANT": "ucontext", "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == "[256.0, 256.0]", done.stderr
