"""What the tests of accelerate() share: which of our ops run, and whether two models give the same results and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from segkernels._accelerate import _classes

needs_kernels = pytest.mark.skipif(not _classes.devices(("conv2d",)), reason="the CPU library is not built")


class Calls(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "segkernels":
            self.names.add(func.name().split("::")[1])
        return func(*args, **(kwargs or {}))


def calls(function, *inputs) -> set[str]:
    """Names of our ops that run."""
    with Calls() as recorded:
        function(*inputs)
    return recorded.names


def results(function, *inputs) -> list[torch.Tensor]:
    """Outputs, and the gradients of inputs and parameters."""
    leaves = [_leaf(value) for value in inputs]
    if isinstance(function, nn.Module):
        function.zero_grad()
    torch.manual_seed(0)  # dropout, and the samplers of detectors
    outputs = tensors(function(*leaves))
    torch.autograd.backward(outputs, [torch.ones_like(o) if o.dim() == 0 else o.detach().cos() for o in outputs])
    grads = [leaf.grad for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.grad is not None]
    if isinstance(function, nn.Module):
        grads += [p.grad for p in function.parameters() if p.grad is not None]
    return [*(o.detach() for o in outputs), *grads]


def assert_equal_results(ours, theirs, *inputs, rtol=1e-4) -> None:
    assert_equal(results(ours, *inputs), results(theirs, *inputs), rtol)


def assert_equal(a: list[torch.Tensor], b: list[torch.Tensor], rtol: float) -> None:
    """Relative to the largest value of each tensor; what is rounding noise beside the other gradients is not compared."""
    assert len(a) == len(b) and len(a) > 1
    noise = 1e-6 * max(float(t.abs().max()) for t in b if t.numel())
    for x, y in zip(a, b):
        assert x.dtype == y.dtype and x.shape == y.shape
        torch.testing.assert_close(x, y, rtol=0, atol=rtol * float(y.abs().max()) + noise if y.numel() else 0)


def _leaf(value: Any) -> Any:
    floating = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.detach().clone().requires_grad_() if floating else value


def tensors(output: Any) -> list[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        return [output]
    values = output.values() if isinstance(output, dict) else output
    return [tensor for value in values for tensor in tensors(value)]
