"""Every Triton kernel compiles for every GPU generation, down to machine code and without spills; needs no GPU.

A module of segkernels/triton yields its kernels from ``compile_cases()`` as ``(kernel, pointers, constants)``: the types of
the pointer arguments (a tuple of types for a tuple) and the values of the constexpr ones, by name. Both may name arguments
that this kernel does not have; arguments that neither names are int32. Each kernel is compiled for each generation, but
its first case not for the one that its other cases are compiled for, because each takes a second: ``python -m
benchmarks.resources --check`` compiles all for all.
"""

from __future__ import annotations

import importlib
from collections import Counter

import pytest

triton = pytest.importorskip("triton")

from benchmarks import resources  # noqa: E402


def cases():
    for stem in resources.TRITON:
        found = list(resources.triton_cases(stem))
        count = Counter(kernel for kernel, _, _ in found)
        seen = set()
        for kernel, signature, constants in found:
            first = resources.ARCHITECTURES if count[kernel] == 1 else (80, 100)
            name = f"{kernel.__name__}-{resources.pointer_types(signature)}"
            for architecture in (90,) if kernel in seen else first:
                yield pytest.param(stem, kernel, signature, constants, architecture, id=f"{name}-{architecture}")
            seen.add(kernel)


@pytest.mark.parametrize(("stem", "kernel", "signature", "constants", "architecture"), list(cases()))
def test_compiles_without_new_spills(stem, kernel, signature, constants, architecture):
    found = resources.of_triton(stem, kernel, signature, constants, architecture)
    assert found.registers > 0
    assert not resources.new_spills([found], resources.read())


@pytest.mark.parametrize("stem", resources.TRITON)
def test_every_kernel_is_compiled(stem):
    module = importlib.import_module(f"segkernels.triton.{stem}")
    # Kernels are named <what>_kernel or <what>_kernel_<variant>; other jitted functions are compiled inside them.
    kernels = {name for name, value in vars(module).items() if isinstance(value, triton.JITFunction) and "_kernel" in name}
    assert kernels == {kernel.__name__ for kernel, _, _ in module.compile_cases()}
