"""Every Triton kernel compiles for every GPU generation, down to machine code and without spills; needs no GPU.

A module of segkernels/triton yields its kernels from ``compile_cases()`` as ``(kernel, pointers, constants)``: the types of
the pointer arguments and the values of the constexpr ones, by name. Both may name arguments that this kernel does not have;
arguments that neither names are int32.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

import segkernels  # noqa: E402

FOLDER = Path(segkernels.__file__).parent / "triton"
STEMS = sorted(path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("_"))


def cases():
    for stem in STEMS:
        module = importlib.import_module(f"segkernels.triton.{stem}")
        for kernel, pointers, constants in module.compile_cases():
            types = "-".join(dict.fromkeys(pointers[name].strip("*") for name in kernel.arg_names if name in pointers))
            yield pytest.param(kernel, pointers, constants, id=f"{kernel.__name__}-{types}")


@pytest.mark.parametrize("architecture", [80, 90, 100])
@pytest.mark.parametrize(("kernel", "pointers", "constants"), list(cases()))
def test_compiles_without_spills(kernel, pointers, constants, architecture, monkeypatch, capfd):
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    signature = {name: "constexpr" if name in constants else pointers.get(name, "i32") for name in kernel.arg_names}
    # The assembler's own report is the only place that tells spills without a GPU; a cached kernel would not print it.
    monkeypatch.setenv("TRITON_ALWAYS_COMPILE", "1")
    monkeypatch.setenv("TRITON_DUMP_PTXAS_LOG", "1")
    compiled = triton.compile(ASTSource(kernel, signature, constants), target=GPUTarget("cuda", architecture, 32))
    assert len(compiled.asm["cubin"]) > 0
    report = capfd.readouterr().out
    spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", report)
    assert spills, f"no resource report from ptxas: {report!r}"
    assert set(spills) == {"0"}, report


@pytest.mark.parametrize("stem", STEMS)
def test_every_kernel_is_compiled(stem):
    module = importlib.import_module(f"segkernels.triton.{stem}")
    # Kernels are named <what>_kernel or <what>_kernel_<variant>; other jitted functions are compiled inside them.
    kernels = {name for name, value in vars(module).items() if isinstance(value, triton.JITFunction) and "_kernel" in name}
    assert kernels == {kernel.__name__ for kernel, _, _ in module.compile_cases()}
