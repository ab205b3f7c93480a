"""The correctness gate: a row that is wrong has no speed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.cases import Case


def first(value: Any) -> torch.Tensor:
    return value[0] if isinstance(value, (tuple, list)) else value


def step(function: Callable[..., Any], inputs: Sequence[Any], grad: tuple[int, ...], seed: torch.Tensor | None):
    """The call a row times: the forward pass alone, or with the gradients of ``inputs[grad]``."""
    if seed is None:

        def forward() -> tuple[torch.Tensor, ...]:
            with torch.no_grad():
                return (first(function(*inputs)),)

        return forward
    leaves = [leaf for i in grad for leaf in (inputs[i] if isinstance(inputs[i], list) else [inputs[i]])]

    def forward_and_backward() -> tuple[torch.Tensor, ...]:
        output = first(function(*inputs))
        return output.detach(), *torch.autograd.grad(output, leaves, seed)

    return forward_and_backward


def with_leaves(inputs: Sequence[Any], grad: tuple[int, ...], dtype: torch.dtype | None = None) -> list[Any]:
    """Inputs whose ``grad`` positions are leaves that take a gradient; floating-point tensors, in lists too, in ``dtype``."""

    def converted(value: Any, leaf: bool) -> Any:
        if isinstance(value, list):
            return [converted(element, leaf) for element in value]
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            value = value.to(dtype or value.dtype)
        return value.detach().clone(memory_format=torch.preserve_format).requires_grad_() if leaf else value

    return [converted(value, i in grad) for i, value in enumerate(inputs)]


def is_right(case: Case, inputs: Sequence[Any], seed: torch.Tensor | None) -> bool:
    """Ours against the first baseline in float64: error at most twice that baseline's in this dtype, plus a floor."""
    baseline = next(iter(case.baselines.values()))
    run = with_leaves(inputs, case.grad)
    ours = step(case.ours, run, case.grad, seed)()
    theirs = step(baseline, run, case.grad, seed)()
    if case.exact:
        return all(torch.equal(a, b) for a, b in zip(ours, theirs))
    exact_inputs = with_leaves(inputs, case.grad, torch.float64)
    expected = step(baseline, exact_inputs, case.grad, None if seed is None else seed.double())()
    for a, b, e in zip(ours, theirs, expected):
        floor = 4 * torch.finfo(a.dtype).eps * e.abs().max().item()
        allowed = 2 * (b.double() - e).abs().max().item() + floor
        if a.shape != e.shape or not (a.double() - e).abs().max().item() <= allowed:
            return False
    return True
