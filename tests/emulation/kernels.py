"""Loads faults.cu and features.cu, compiled for the CPU, as ``torch.ops.segkernels_faults``."""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path

import torch
from emulation.build_emulated import build, library_path
from torch.library import Library

FOLDER = Path(__file__).parent


@functools.cache
def _library(variant: str) -> Library:
    failure = build(variant, ("_emulation_faults",))
    assert failure is None, failure
    torch.ops.load_library(str(library_path("_emulation_faults", variant)))
    library = Library("segkernels_faults", "DEF")
    for source in FOLDER.glob("*.cu"):
        for name in re.findall(r"SEGKERNELS_TEST_KERNEL\(m, (\w+)", source.read_text()):
            library.define(f"{name}(Tensor input, int size, int blocks, int threads) -> Tensor")
    return library


def run(name: str, input: torch.Tensor, size: int, blocks: int = 1, threads: int = 64, seed: int = 0) -> torch.Tensor:
    """One launch of a test kernel under one schedule."""
    _library(os.environ.get("SEGKERNELS_EMULATION_VARIANT", "plain"))
    before = os.environ.get("SEGKERNELS_EMULATION_SEED")
    os.environ["SEGKERNELS_EMULATION_SEED"] = str(seed)
    try:
        return getattr(torch.ops.segkernels_faults, name)(input, size, blocks, threads)
    finally:
        if before is None:
            del os.environ["SEGKERNELS_EMULATION_SEED"]
        else:
            os.environ["SEGKERNELS_EMULATION_SEED"] = before


def marked_line(name: str) -> str:
    """``faults.cu:<line>`` of the comment ``// <name>``."""
    lines = (FOLDER / "faults.cu").read_text().splitlines()
    (number,) = (i for i, line in enumerate(lines, 1) if line.endswith(f"  // {name}"))
    return f"faults.cu:{number}"
