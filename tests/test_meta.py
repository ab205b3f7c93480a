"""Every operator is whole: all its files are there, and all that speaks of its arguments counts them alike."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
from pathlib import Path

import pytest
import torch
from op_test import OpTest

import segkernels
from benchmarks.cases import load
from segkernels import _register

ROOT = Path(segkernels.__file__).parents[1]
STEMS = sorted({op.stem for op in _register._operators.values()})
OPERATORS = _register.operators()


def schema(name: str) -> torch.FunctionSchema:
    return _register._operators[name].overload._schema


def test_class(stem: str) -> type[OpTest]:
    spec = importlib.util.spec_from_file_location(f"meta_{stem}", ROOT / "tests" / "ops" / f"test_{stem}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    classes = [
        value for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, OpTest) and getattr(value, "op", None) == stem
    ]  # fmt: skip
    assert classes, f"tests/ops/test_{stem}.py: no subclass of OpTest with op = {stem!r}"
    return classes[0]


test_class.__test__ = False


def parameters(text: str, function: str) -> int:
    """How many parameters the C++ function of this name has; commas inside brackets and comments do not count."""
    text = re.sub(r"//.*", "", text)
    # The definition, not a call: a type stands before the name.
    start = re.search(rf"[\w>&]\s+{function}\(", text)
    assert start, f"no definition of {function}"
    depth, count, position = 1, 1, start.end()
    while depth:
        character = text[position]
        depth += character in "(<[{"
        depth -= character in ")>]}"
        count += character == "," and depth == 1
        position += 1
    return count


@pytest.mark.parametrize("stem", STEMS)
def test_every_operator_has_its_files(stem):
    for path in (
        f"segkernels/ops/{stem}.py",
        f"segkernels/reference/{stem}.py",
        f"csrc/cpu/{stem}.cpp",
        f"tests/ops/test_{stem}.py",
        f"benchmarks/ops/{stem}.py",
    ):
        assert (ROOT / path).exists(), f"{stem}: {path} is missing"
    assert test_class(stem)
    cases, goals = load(stem)
    assert cases
    assert len({case.name for case in cases}) == len(cases), "two cases of one name"
    assert {goal.group for goal in goals} <= {case.group for case in cases}


@pytest.mark.parametrize("stem", sorted(path.stem for path in (ROOT / "csrc" / "cpu").glob("*.cpp")))
def test_every_kernel_file_is_an_operator(stem):
    assert stem.removesuffix("_backward") in STEMS


@pytest.mark.parametrize("name", OPERATORS)
def test_schema_reference_and_fake_agree_in_arguments(name):
    op = _register._operators[name]
    arguments = [argument.name for argument in schema(name).arguments]
    reference = getattr(importlib.import_module(f"segkernels.reference.{op.stem}"), name)
    assert list(inspect.signature(reference).parameters) == arguments
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"segkernels::{name}", "Meta")
    if importlib.util.find_spec(f"segkernels.triton.{op.stem}"):
        pytest.importorskip("triton")
        kernel = getattr(importlib.import_module(f"segkernels.triton.{op.stem}"), name)
        assert len(inspect.signature(kernel).parameters) == len(arguments)


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("folder", ["cpu", "cuda"])
def test_schema_and_compiled_kernel_agree_in_arguments(name, folder):
    """The stable ABI hands arguments over by position and count, and does not compare them with the schema."""
    stem, suffix = _register._operators[name].stem, "cpp" if folder == "cpu" else "cu"
    # A long backward may have a file of its own.
    paths = [ROOT / "csrc" / folder / f"{stem}{part}.{suffix}" for part in ("", "_backward")]
    text = "".join(path.read_text() for path in paths if path.exists())
    if not text:
        pytest.skip(f"no {folder} tier")
    registered = re.search(rf'm\.impl\("{name}", TORCH_BOX\(&(\w+)\)\)', text)
    assert registered, f"csrc/{folder}/{stem}.{suffix} registers no {name}"
    assert registered.group(1) == f"{name}_{folder}"
    assert parameters(text, registered.group(1)) == len(schema(name).arguments)


def test_every_cuda_source_is_in_one_unit():
    folder = ROOT / "csrc" / "cuda"
    included = [
        name for unit in (folder / "units").glob("*.cu") for name in re.findall(r'#include "../(.+)"', unit.read_text())
    ]
    assert sorted(included) == sorted(path.name for path in folder.glob("*.cu"))


@pytest.mark.parametrize("stem", STEMS)
def test_every_schema_is_called(stem):
    """One forward and backward of the op's first sample calls each of its dispatcher ops."""
    test = test_class(stem)()
    called = {
        overload._schema.name.removeprefix("segkernels::")
        for sample in test.samples("cpu", torch.float32)[:2]
        for overload, _ in test.dispatcher_calls(sample)
    }
    assert called == {name for name in OPERATORS if _register._operators[name].stem == stem}


@pytest.mark.parametrize("name", OPERATORS)
def test_every_absent_tier_has_a_reason(name):
    for device, entry in segkernels.tiers()[name].items():
        assert set(entry["tiers"]) == set(_register.TIERS[device])
        for tier, reason in entry["tiers"].items():
            assert reason is None or len(reason) > 10, f"{name} on {device}, {tier}: {reason!r}"
        assert entry["tiers"][entry["chosen"]] is None, "the chosen one can run"


def test_every_environment_variable_stands_in_the_readme():
    files = [*(ROOT / "segkernels").rglob("*.py"), *(ROOT / "csrc").rglob("*.*"), ROOT / "setup.py", ROOT / "Makefile"]
    pattern = re.compile(r"""(?:environ|getenv|export|ifdef)\W+(?:get\W+|setdefault\W+)?(SEGKERNELS_\w+)""")
    used = {name for path in files for name in pattern.findall(path.read_text(errors="ignore"))}
    assert "SEGKERNELS_BACKEND" in used
    table = set(re.findall(r"`(SEGKERNELS_\w+)`", (ROOT / "README.md").read_text()))
    assert used <= table, f"README.md lacks {sorted(used - table)}"
