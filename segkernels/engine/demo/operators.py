"""Each operator on activations of the photograph: its error against float64, and its time beside torch's own op."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from segkernels import losses, ops
from segkernels.engine.demo.photograph import NUM_CLASSES, VOID, Photograph
from segkernels.engine.timing import interleaved_medians
from segkernels.models import UNet

Function = Callable[..., torch.Tensor]

COLUMNS = ("operator", "input", "pass", "error", "torch's error", "ms", "torch's ms", "times faster")


@dataclass(frozen=True)
class Case:
    """An operator, what it replaces, and their common arguments; floating-point ones get gradients."""

    name: str
    ours: Function
    theirs: Function
    inputs: tuple[torch.Tensor, ...]
    differentiable: bool = True


def compare(photograph: Photograph, width: int, seed: int, seconds: float) -> list[dict[str, Any]]:
    """Rows of :data:`COLUMNS`: the largest difference to torch's op in float64, relative to the largest value of that."""
    torch.manual_seed(seed)
    rows = []
    for case in _cases(photograph, width):
        shape = "x".join(map(str, case.inputs[0].shape))
        for backward in (False, True) if case.differentiable else (False,):
            run = _gradients if backward else _forward
            inputs = tuple(t.detach().requires_grad_(backward and t.is_floating_point()) for t in case.inputs)
            exact = run(case.theirs, tuple(_double(t) for t in inputs))
            ours, theirs = (_error(run(function, inputs), exact) for function in (case.ours, case.theirs))
            timed = {"ours": lambda: run(case.ours, inputs), "theirs": lambda: run(case.theirs, inputs)}  # noqa: B023
            ms = interleaved_medians(timed, seconds)
            what = "forward+backward" if backward else "forward"
            values = (case.name, shape, what, ours, theirs, ms["ours"], ms["theirs"], ms["theirs"] / ms["ours"])
            rows.append(dict(zip(COLUMNS, values)))
    return rows


def _cases(photograph: Photograph, width: int) -> Iterator[Case]:
    """Operators at their places in a U-Net of this width with fresh weights."""
    net = UNet(width=width)
    with torch.no_grad():
        features, pooled = net.e1(photograph.image)
        deeper = net.e2.conv(pooled)
        logits = torch.nn.Conv2d(width, NUM_CLASSES, 1)(features)
    coarse = F.interpolate(logits, scale_factor=1 / 8, mode="bilinear")
    size = features.shape[2:]
    _, positions = F.max_pool2d(features, 2, return_indices=True)
    _, offsets = ops.max_pool2d(features, 2, return_indices=True, index_dtype=torch.uint8)
    classes, labels = photograph.classes, logits.argmax(1)
    person = (photograph.person == 1).float()[:, None]

    def theirs_pool(x: torch.Tensor) -> torch.Tensor:
        return F.max_pool2d(x, 2, return_indices=True)[0]

    def theirs_unpool(x: torch.Tensor) -> torch.Tensor:
        return F.max_unpool2d(x, positions, (2, 2), output_size=size)

    yield Case(
        "conv_transpose2d",
        lambda x, w, b: ops.conv_transpose2d(x, w, b, stride=2),
        lambda x, w, b: F.conv_transpose2d(x, w, b, stride=2),
        (deeper, net.d4.up.weight, net.d4.up.bias),
    )
    yield Case("max_pool2d", lambda x: ops.max_pool2d(x, 2, return_indices=True)[0], theirs_pool, (features,))
    yield Case(
        "max_pool2d, uint8 indices",
        lambda x: ops.max_pool2d(x, 2, return_indices=True, index_dtype=torch.uint8)[0],
        theirs_pool,
        (features,),
    )
    yield Case("max_unpool2d", lambda x: ops.max_unpool2d(x, positions, 2, output_size=size), theirs_unpool, (pooled,))
    yield Case(
        "max_unpool2d, uint8 indices",
        lambda x: ops.max_unpool2d(x, offsets, 2, output_size=size),
        theirs_unpool,
        (pooled,),
    )
    yield Case(
        "dice_bce_loss",
        lambda x: losses.dice_bce_loss(x, person),
        lambda x: eager_dice_bce_loss(x, person),
        (logits[:, :1].contiguous(),),
    )

    def confusion(prediction: torch.Tensor) -> torch.Tensor:
        return ops.confusion_matrix(prediction, classes, NUM_CLASSES, ignore_index=VOID)

    def bincount(prediction: torch.Tensor) -> torch.Tensor:
        valid = classes != VOID
        counts = torch.bincount(classes[valid] * NUM_CLASSES + prediction[valid], minlength=NUM_CLASSES**2)
        return counts.view(NUM_CLASSES, NUM_CLASSES)

    def resize(x: torch.Tensor) -> torch.Tensor:
        return F.interpolate(x, size=classes.shape[1:], mode="bilinear")

    yield Case("confusion_matrix, labels", confusion, bincount, (labels,), differentiable=False)
    yield Case("confusion_matrix, logits", confusion, lambda x: bincount(x.argmax(1)), (logits,), differentiable=False)
    yield Case(
        "confusion_matrix, upsampled",
        confusion,
        lambda x: bincount(resize(x).argmax(1)),
        (coarse,),
        differentiable=False,
    )


def eager_dice_bce_loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Dice + BCE as one writes it with torch's ops."""
    target = target.to(logits.dtype)
    p = logits.sigmoid()
    dice = 1 - (2 * (p * target).sum() + 1) / (p.sum() + target.sum() + 1)
    return dice + F.binary_cross_entropy_with_logits(logits, target)


def _double(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().double().requires_grad_(tensor.requires_grad) if tensor.is_floating_point() else tensor


def _forward(function: Function, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    with torch.no_grad():
        return (function(*inputs),)


def _gradients(function: Function, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    output = function(*inputs)
    # A gradient of ones would hide a wrong place: this one differs from element to element.
    slope = torch.arange(output.numel(), device=output.device).remainder(7).to(output.dtype) - 3
    return torch.autograd.grad(output, inputs, slope.view_as(output) if output.dim() else None)


def _error(results: tuple[torch.Tensor, ...], exact: tuple[torch.Tensor, ...]) -> float:
    pairs = list(zip(results, exact))
    return max(((a.double() - b).abs().max() / b.abs().max().clamp(min=1e-30)).item() for a, b in pairs)
