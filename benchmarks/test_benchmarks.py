"""The cases under pytest-benchmark: ``pytest benchmarks/ --benchmark-only``, one group a case, one line a variant."""

from __future__ import annotations

import pytest
import torch

from benchmarks.cases import operators
from benchmarks.runner import OURS, Plan, plans, prepare

VARIANTS = [
    pytest.param(plan, variant, id=f"{plan.op}-{plan.case.name}-{plan.mode}-{variant}")
    for plan in plans(operators(), ["fwd", "fwdbwd"], [torch.float32])
    for variant in (OURS, *plan.case.baselines)
]


@pytest.mark.parametrize(("plan", "variant"), VARIANTS)
def test_speed(benchmark, plan: Plan, variant: str) -> None:
    calls, right = prepare(plan.case, plan.mode, plan.dtype, "cpu", [])
    assert right, "WRONG: a row that is wrong has no speed"
    benchmark.group = f"{plan.op} {plan.case.name} {plan.mode}"
    benchmark(calls[variant])
