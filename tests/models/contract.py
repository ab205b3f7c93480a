"""What every semantic model is tested for."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import nn


def without_dropout(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def check_training(model: nn.Module, shape: tuple[int, ...], steps: int = 6, lr: float = 1e-3) -> None:
    """A few steps on one batch lower the loss, and every parameter that learns has a gradient."""
    torch.manual_seed(0)
    without_dropout(model).train()
    # Halves: what a network of stride 32 can tell apart.
    target = torch.zeros(shape[0], *shape[2:], dtype=torch.int64)
    target[..., shape[3] // 2 :] = 1
    input = torch.randn(shape) + target[:, None]
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=lr)
    losses = []
    for _ in range(steps):
        loss = sum(F.cross_entropy(logits, target) for logits in model(input).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    missing = [k for k, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.isfinite().all())]
    assert not missing, missing
    assert losses[-1] < 0.9 * losses[0], losses


def check_export(model: nn.Module, input: torch.Tensor) -> None:
    model.eval()
    exported = torch.export.export(model, (input,)).module()
    _assert_same(exported(input), model(input), 1e-4)


def check_compile(model: nn.Module, input: torch.Tensor) -> None:
    model.eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        _assert_same(compiled(input), model(input), 1e-4)


def check_channels_last(model: nn.Module, input: torch.Tensor) -> None:
    model.eval()
    with torch.no_grad():
        expected = model(input)
        model.to(memory_format=torch.channels_last)
        _assert_same(model(input.contiguous(memory_format=torch.channels_last)), expected, 1e-3)
    model.to(memory_format=torch.contiguous_format)


def check_autocast(model: nn.Module, input: torch.Tensor, tolerance: float = 0.1) -> None:
    """bfloat16 in the forward pass, float32 parameters and gradients."""
    model.eval()
    expected = model(input)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(input)
    for key, value in output.items():
        assert value.dtype == torch.bfloat16, key
        # In the mean: poolings choose another of two close values here and there.
        assert (value.float() - expected[key]).norm() < tolerance * expected[key].norm(), key
    output["out"].float().square().mean().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients and all(g.dtype == torch.float32 and g.isfinite().all() for g in gradients)


def check_all(build: Callable[[], nn.Module], input: torch.Tensor, checks: Iterable[Callable] | None = None) -> None:
    torch.manual_seed(0)
    for check in checks or (check_export, check_channels_last, check_autocast):
        check(build(), input)


def _assert_same(output: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float) -> None:
    assert list(output) == list(expected)
    for key, value in expected.items():
        assert value.std() > 0, f"{key} is constant: compares nothing"
        torch.testing.assert_close(output[key], value, rtol=0, atol=tolerance * float(value.detach().abs().max()))
