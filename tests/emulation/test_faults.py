"""Planted faults: the emulation reports each of them, or its schedules disagree, which fails OpTest.test_schedules."""

from __future__ import annotations

import re

import pytest
import torch
from emulation.kernels import marked_line, run
from op_test import EMULATION_SEEDS


@pytest.mark.parametrize(
    ("name", "blocks", "threads"),
    [
        ("missing_barrier", 1, 64),
        ("missing_second_barrier", 1, 64),
        ("missing_syncwarp", 1, 32),
        ("float_atomic_sum", 16, 64),
        ("last_block_wins", 16, 1),
        ("trusts_activemask", 1, 32),
    ],
)
def test_schedules_disagree(name, blocks, threads):
    x = torch.randn(blocks * threads)
    results = [run(name, x, 64, blocks, threads, seed=seed).nan_to_num() for seed in EMULATION_SEEDS]
    assert not all(torch.equal(r, results[0]) for r in results[1:])


@pytest.mark.parametrize("name", ["uninitialised_shared", "missing_copy_wait"])
@pytest.mark.parametrize("seed", EMULATION_SEEDS)
def test_unwritten_shared_memory_is_nan(name, seed):
    assert run(name, torch.randn(64), 64, 3 if name == "uninitialised_shared" else 1, seed=seed).isnan().all()


@pytest.mark.parametrize("seed", EMULATION_SEEDS)
@pytest.mark.parametrize(
    ("name", "blocks", "threads", "message"),
    [
        ("deadlock", 2, 64, "deadlock in block .*: 16 of 64 threads.* wait in __syncthreads.*48 have returned"),
        ("divergent_barriers", 1, 64, "__syncthreads.. in divergent code"),
        ("mask_without_caller", 1, 32, "mask 0xffff does not name the calling lane"),
        ("mask_of_absent_lanes", 1, 64, "deadlock.*__shfl_down_sync at .* with mask 0xffffffff"),
        ("shuffle_from_returned_lane", 1, 64, "reads lane .*, which takes no part"),
        ("different_masks", 1, 32, "different operations|deadlock"),
        ("spin", 1, 32, "spins on an atomic"),
        ("trap", 3, 32, "__trap.*of block .1, 0, 0."),
    ],
)
def test_reported_with_file_and_line(name, blocks, threads, message, seed):
    with pytest.raises(RuntimeError, match=message) as report:
        run(name, torch.randn(64), 64, blocks, threads, seed=seed)
    assert marked_line(name) in str(report.value)
    # The next launch starts from a clean slate.
    assert run("block_sum", torch.ones(512), 2, 2, 256, seed=seed).tolist() == [256.0, 256.0]


def test_write_past_dynamic_shared_memory():
    with pytest.raises(RuntimeError, match="write past the end of 256 bytes of dynamic shared memory, at offset 256"):
        run("out_of_bounds_dynamic_shared", torch.randn(64), 64)


@pytest.mark.parametrize(("blocks", "threads"), [(0, 32), (1, 0), (1, 1025)])
def test_invalid_configuration(blocks, threads):
    with pytest.raises(RuntimeError, match=re.escape("invalid configuration")):
        run("block_sum", torch.ones(64), 2, blocks, threads)
