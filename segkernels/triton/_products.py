"""What kernels around ``tl.dot`` share: types of operands and sums, block sizes and their tuning."""

from __future__ import annotations

import functools
import os

import torch
import triton
import triton.language as tl

#: Small enough for 64-bit offsets and float64 sums without spills.
BLOCKS = {"BLOCK_M": 32, "BLOCK_N": 32, "BLOCK_K": 16}
#: The interpreter's time is the number of its steps, whatever their size.
INTERPRETED_BLOCKS = {"BLOCK_M": 128, "BLOCK_N": 64, "BLOCK_K": 128}


def interpreted():
    return os.environ.get("TRITON_INTERPRET") == "1"


def arithmetic(dtype):
    """Sums in float32, and products of float32 in TF32 where torch's flag for convolutions allows it."""
    tf32 = torch.backends.cudnn.allow_tf32 and dtype == torch.float32
    acc = tl.float64 if dtype == torch.float64 else tl.float32
    # The interpreter multiplies the bits of bfloat16; float32 holds every product of half types exactly.
    operand = acc if interpreted() else getattr(tl, str(dtype).removeprefix("torch."))
    return {"ACC": acc, "OPERAND": operand, "PRECISION": "tf32" if tf32 else "ieee"}


@functools.cache
def _tuned(kernel, keys):
    # BLOCK_K stays what it is: the order of the sums must not depend on a timing.
    configs = [
        triton.Config({"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": BLOCKS["BLOCK_K"]}, num_warps=warps, num_stages=3)
        for m, n, warps in ((32, 32, 4), (64, 32, 4), (64, 64, 8), (128, 64, 8))
    ]
    return triton.autotune(configs, key=list(keys))(kernel)


def launch(kernel, keys, grid, *args, **constants):
    """``grid`` takes the block sizes, which are tuned for each value of the arguments ``keys``.

    In the interpreter, and for float64 with its larger tiles, they are not tuned.
    """
    if interpreted():
        kernel[grid](*args, **constants, **INTERPRETED_BLOCKS)
    elif constants["ACC"] == tl.float64:
        kernel[grid](*args, **constants, **BLOCKS)
    else:
        _tuned(kernel, keys)[grid](*args, **constants)


def compile_types():
    """``(pointer type, sums' pointer type, constants)`` for compile_cases()."""
    for name, dtype in (("fp32", tl.float32), ("fp64", tl.float64), ("bf16", tl.bfloat16)):
        acc = tl.float64 if name == "fp64" else tl.float32
        precision = "tf32" if name == "fp32" else "ieee"
        sums = "*fp64" if name == "fp64" else "*fp32"
        yield f"*{name}", sums, {"ACC": acc, "OPERAND": dtype, "PRECISION": precision, **BLOCKS}
