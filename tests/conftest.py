"""Parametrisation of OpTest, the --tier option, and what every test starts from."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from emulation.build_emulated import build, library_path
from op_test import INTERPRETED, OpTest, available_tiers, set_seed

from segkernels._register import load_emulated

#: Why the emulated library was not built, for the test that says so.
EMULATION_FAILURE = pytest.StashKey[str | None]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--tier", default=None, help="run the op tests on this tier only (triton, emulated, ...)")


def pytest_configure(config: pytest.Config) -> None:
    # The CUDA kernels compiled for the CPU: built from the sources as they stand, or the library that the variable names.
    path = os.environ.get("SEGKERNELS_EMULATED_LIBRARY")
    config.stash[EMULATION_FAILURE] = None if path else build("plain", ("_ops_emulated",))
    library = Path(path) if path else library_path("_ops_emulated", "plain")
    if library.exists():
        load_emulated(library)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--tier"):
        items[:] = [item for item in items if "tier" in getattr(item, "fixturenames", ())]
    if INTERPRETED:
        # It runs one program after the other: twice the same bits prove nothing.
        items[:] = [item for item in items if getattr(item, "originalname", "") != "test_deterministic"]
    # First what takes minutes in one piece: at the end one core would wait for it.
    items.sort(key=lambda item: item.name != "test_op_tests_in_the_interpreter")
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a GPU")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    cls = metafunc.cls
    if cls is None or not issubclass(cls, OpTest) or cls is OpTest:
        return
    names = metafunc.fixturenames
    if "tier" in names:
        pairs = available_tiers(cls.op, only=metafunc.config.getoption("--tier"))
        if metafunc.function is cls.test_schedules:
            pairs = [pair for pair in pairs if pair[1] == "emulated"]
        metafunc.parametrize("tier", pairs, ids=["-".join(pair) for pair in pairs])
    if "dtype" in names:
        dtypes = cls.dtypes
        if INTERPRETED:
            # Minutes otherwise; the kernels are compiled for every dtype, and a GPU runs them in every dtype.
            dtypes = (torch.float32,) if torch.float32 in dtypes else dtypes
        metafunc.parametrize("dtype", dtypes, ids=[str(d).removeprefix("torch.") for d in dtypes])
    if "case" in names:
        metafunc.parametrize("case", [s.name for s in cls().samples("cpu", cls.dtypes[0])])
    if "gradcheck_case" in names:
        metafunc.parametrize("gradcheck_case", cls.gradcheck_samples)


@pytest.fixture
def emulation_failure(request: pytest.FixtureRequest) -> str | None:
    return request.config.stash[EMULATION_FAILURE]


@pytest.fixture(autouse=True)
def _fresh_state() -> None:
    set_seed(0)
    torch.set_num_threads(2)
