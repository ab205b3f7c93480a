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
    """Inputs whose ``grad`` positions are leaves with a gradient; floating-point tensors, inside others too, in ``dtype``."""

    def converted(value: Any, leaf: bool) -> Any:
        if isinstance(value, (list, tuple)):
            return type(value)([converted(element, leaf) for element in value])
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            value = value.to(dtype or value.dtype)
        return value.detach().clone(memory_format=torch.preserve_format).requires_grad_() if leaf else value

    return [converted(value, i in grad) for i, value in enumerate(inputs)]


def copied(inputs: Sequence[Any], grad: tuple[int, ...]) -> list[Any]:
    """The same values at other addresses; those of ``grad`` take a gradient."""

    def one(value: Any, leaf: bool) -> Any:
        if isinstance(value, (list, tuple)):
            return type(value)([one(element, leaf) for element in value])
        if not isinstance(value, torch.Tensor):
            return value
        return value.detach().clone(memory_format=torch.preserve_format).requires_grad_(leaf)

    return [one(value, i in grad) for i, value in enumerate(inputs)]


def attempt(call: Callable[[], Any]) -> Any:
    """What the call of a baseline returns; None where it does not know this dtype or device."""
    try:
        return call()
    except (NotImplementedError, RuntimeError, TypeError):
        return None


def channels_last(inputs: Sequence[Any]) -> list[Any]:
    """The same values with every 4-D tensor in channels_last."""

    def converted(value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.dim() == 4:
            return value.detach().contiguous(memory_format=torch.channels_last).requires_grad_(value.requires_grad)
        return value

    return [converted(value) for value in inputs]


def judged(case: Case, values: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """The tensors to compare: the output and each gradient, or all gradients as one."""
    output, *gradients = values
    if case.gradients_as_one and gradients:
        return output, torch.cat([gradient.flatten() for gradient in gradients])
    return values


def largest(values: torch.Tensor) -> torch.Tensor:
    return values.abs().max()


def is_right(case: Case, inputs: Sequence[Any], seed: torch.Tensor | None) -> bool:
    """Ours against the first baseline in float64: error at most twice that baseline's in this dtype, plus a floor.

    A baseline that does not know this dtype is taken to round its result in float64.
    """
    baseline = next(iter(case.baselines.values()))
    run = with_leaves(inputs, case.grad)
    ours = step(case.ours, run, case.grad, seed)()
    theirs = attempt(step(baseline, run, case.grad, seed))
    if case.exact and theirs is not None:
        return all(torch.equal(a, b) for a, b in zip(ours, theirs))
    exact_inputs = with_leaves(inputs, case.grad, torch.float64)
    expected = step(baseline, exact_inputs, case.grad, None if seed is None else seed.double())()
    if theirs is None:
        theirs = tuple(value.to(mine.dtype) for value, mine in zip(expected, ours))
    for a, b, e in zip(*(judged(case, values) for values in (ours, theirs, expected))):
        if not a.is_floating_point():
            # Labels and masks turn over where two values are equal but for rounding.
            wrong, theirs_wrong = ((x != e).sum().item() for x in (a, b))
            if a.shape != e.shape or wrong > 2 * theirs_wrong + a.numel() // 10000:
                return False
            continue
        # One wrong sign of a ReLU changes a few of many gradients of a deep model: those are judged by their norm.
        size = torch.linalg.vector_norm if case.gradients_as_one else largest
        floor = 4 * torch.finfo(a.dtype).eps * size(e).item()
        if a.shape != e.shape or not size(a.double() - e).item() <= 2 * size(b.double() - e).item() + floor:
            return False
    return True
