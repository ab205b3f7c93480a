"""The cases under pytest-benchmark: ``pytest benchmarks/ --benchmark-only``, a group a case, a line a tier and baseline."""

from __future__ import annotations

import pytest
import torch

import segkernels
from benchmarks.cases import operators
from benchmarks.runner import OURS, Plan, plans, prepare

TIERS = segkernels.tiers()


def variants(plan: Plan) -> list[str]:
    """Each tier that can run, and each baseline."""
    tiers = TIERS[plan.op][plan.device]["tiers"]
    return [f"tier {name}" for name, reason in tiers.items() if reason is None] + list(plan.case.baselines)


VARIANTS = [
    pytest.param(plan, variant, id=f"{plan.op}-{plan.case.name}-{plan.mode}-{variant}")
    for plan in plans(operators(), ["fwd", "fwdbwd"], [torch.float32])
    for variant in variants(plan)
]


@pytest.mark.parametrize(("plan", "variant"), VARIANTS)
def test_speed(benchmark, plan: Plan, variant: str) -> None:
    tier = variant.removeprefix("tier ")
    with segkernels.backend("default" if tier == variant else tier):
        calls, right = prepare(plan.case, plan.mode, plan.dtype, plan.device, [])
        assert right, "WRONG: a row that is wrong has no speed"
        benchmark.group = f"{plan.op} {plan.case.name} {plan.mode}"
        benchmark(calls[variant if tier == variant else OURS])
