"""What the tests of models share: agreement with a peer's model, and what every semantic model promises."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn


def _outputs(model: nn.Module, image: torch.Tensor) -> Mapping[str, torch.Tensor]:
    output = model(image)
    return output if isinstance(output, Mapping) else {"out": output}


def _assert_same_outputs(ours: nn.Module, theirs: nn.Module, image: torch.Tensor) -> torch.Tensor:
    """Within 1e-4 of the largest value, map by map; returns a loss of both models' maps."""
    results, expected = _outputs(ours, image), _outputs(theirs, image)
    assert list(results) == list(expected)
    for key, value in expected.items():
        scale = float(value.detach().abs().max())
        torch.testing.assert_close(results[key], value, rtol=0, atol=1e-4 * scale)
    return sum(value.square().mean() for maps in (results, expected) for value in maps.values())


def assert_parity(ours: nn.Module, theirs: nn.Module, image: torch.Tensor, names: Mapping[str, str] | None = None) -> None:
    """Outputs agree to 1e-4 in float32, in training and in eval, and so does every gradient.

    Gradients are compared in float64, where what differs is the formula: in float32, BatchNorms over a few pixels pass on the
    rounding of one layer to the next a hundredfold. Both models end in float64 and in training mode.

    Args:
        names: from our parameters' names to theirs, where they differ.
    """
    for model in (ours, theirs):
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            if isinstance(module, nn.BatchNorm2d):
                # Evaluation sees the statistics of the training batch; with initial ones deep maps fade and biases prevail.
                module.momentum = 1.0
    with torch.no_grad():
        for training in (True, False):
            _assert_same_outputs(ours.train(training), theirs.train(training), image)
    _assert_same_outputs(ours.double().train(), theirs.double().train(), image.double()).backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        other = expected[names[name] if names else name]
        assert (parameter.grad - other.grad).norm() <= 1e-4 * other.grad.norm() + 1e-12, name


def assert_promises(model: nn.Module, num_classes: int, smallest: int = 1, compile: bool = False) -> None:
    """What every semantic model does: odd sizes, one map for each name, channels_last, autocast, export, bad input.

    Args:
        model: with three input channels; left in eval mode.
        smallest: smallest height and width.
        compile: also under ``torch.compile(fullgraph=True)``, which takes as long as all the rest.
    """
    model.eval()
    image = torch.randn(1, 3, max(smallest, 33), max(smallest, 46))
    with torch.no_grad():
        expected = model(image)
        assert isinstance(expected, OrderedDict)
        for value in expected.values():
            assert value.shape == (1, num_classes, *image.shape[2:]) and value.isfinite().all()
        scale = float(expected["out"].abs().max())
        for size in {(smallest, smallest), (smallest + 6, smallest + 1)}:
            assert model(torch.randn(2, 3, *size))["out"].shape == (2, num_classes, *size)
        others = [torch.export.export(model, (image,), strict=False).module()]
        if compile:
            others.append(torch.compile(model, fullgraph=True, backend="eager"))
        for other in others:
            torch.testing.assert_close(other(image)["out"], expected["out"], rtol=0, atol=1e-5 * scale)
        with torch.autocast("cpu", torch.bfloat16):
            half = model(image)["out"]
        assert half.dtype == torch.bfloat16
        torch.testing.assert_close(half.float(), expected["out"], rtol=0, atol=0.1 * scale)
        model.to(memory_format=torch.channels_last)
        output = model(image.contiguous(memory_format=torch.channels_last))["out"]
        torch.testing.assert_close(output, expected["out"], rtol=0, atol=1e-4 * scale)
        model.to(memory_format=torch.contiguous_format)
    for shape in [(3, 64, 64), (1, 2, 64, 64), (1, 3, 64, smallest - 1)]:
        try:
            model(torch.zeros(shape))
        except ValueError as error:
            assert f"input: expected [N, 3, H, W] with H and W of at least {smallest}, got {list(shape)}" in str(error)
        else:
            raise AssertionError(f"no error for an input of shape {shape}")


def assert_trains(model: nn.Module, num_classes: int, size: tuple[int, int] = (33, 33), lr: float = 0.02) -> None:
    """A few steps on one batch lower the loss, and every parameter has a gradient."""
    model.train()
    image = torch.randn(2, 3, *size)
    target = (image.mean(1) > 0).long() % num_classes
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    losses = []
    for _ in range(3):
        loss = sum(F.cross_entropy(value, target) for value in model(image).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())
    assert losses[-1] < 0.9 * losses[0], losses
