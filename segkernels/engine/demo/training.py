"""The same U-Net twice, side by side: on this package's operators and on torch's own."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from segkernels.engine.console import Console
from segkernels.engine.demo.operators import eager_dice_bce_loss
from segkernels.engine.demo.photograph import VOID, Photograph
from segkernels.losses import DiceBCELoss
from segkernels.metrics import ConfusionMatrix
from segkernels.models import UNet

OURS, THEIRS = "segkernels", "torch.nn"


@dataclass(frozen=True)
class Recipe:
    """What is trained and how."""

    steps: int
    seed: int
    width: int  # channels of the first block
    size: tuple[int, int]  # of the copy of the photograph that is trained on
    learning_rate: float = 2e-3


class Contender:
    """A network, its loss and its optimiser, and what its steps gave and took."""

    def __init__(self, recipe: Recipe, layers: Any, loss: Callable[..., torch.Tensor]) -> None:
        torch.manual_seed(recipe.seed)
        self.net = UNet(width=recipe.width, layers=layers)
        self.loss = loss
        rate = recipe.learning_rate
        # Adam steps by the sign of a tiny gradient: with its default eps, rounding alone would part the two networks.
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=rate, eps=1e-4)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, rate, total_steps=recipe.steps, pct_start=0.2)
        self.losses: list[float] = []
        self.milliseconds: list[float] = []

    def step(self, image: torch.Tensor, target: torch.Tensor) -> None:
        start = time.perf_counter()
        loss = self.loss(self.net(image)["out"], target)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        self.losses.append(loss.item())
        self.milliseconds.append(1e3 * (time.perf_counter() - start))


def train(photograph: Photograph, recipe: Recipe, console: Console) -> dict[str, Contender]:
    """Trains both, a step of one after a step of the other, so that their times compare."""
    import segkernels.nn

    image, target = photograph.resized(*recipe.size)
    contenders = {
        OURS: Contender(recipe, segkernels.nn, DiceBCELoss(ignore_index=VOID)),
        THEIRS: Contender(recipe, nn, eager_dice_bce_loss),
    }
    with console.progress(recipe.steps, "training") as advance:
        for _ in range(recipe.steps):
            for contender in contenders.values():
                contender.step(image, target)
            advance("loss " + ", ".join(f"{name} {contender.losses[-1]:.4f}" for name, contender in contenders.items()))
    return contenders


def report(contenders: dict[str, Contender], recipe: Recipe) -> dict[str, Any]:
    """Both loss curves, how far they part, and what a step costs."""
    ours, theirs = contenders[OURS].losses, contenders[THEIRS].losses
    parameters = sum(p.numel() for p in contenders[OURS].net.parameters())
    return {
        "steps": recipe.steps,
        "seed": recipe.seed,
        "width": recipe.width,
        "parameters": parameters,
        "size": list(recipe.size),
        "losses": {name: contender.losses for name, contender in contenders.items()},
        "first_loss_difference": abs(ours[0] - theirs[0]),
        "largest_loss_difference": max(abs(a - b) for a, b in zip(ours, theirs)),
        # The first steps also pay for memory and threads.
        "step_ms": {name: statistics.median(c.milliseconds[min(3, recipe.steps - 1) :]) for name, c in contenders.items()},
    }


def logits(contender: Contender, photograph: Photograph, recipe: Recipe) -> torch.Tensor:
    """``[1, 2, h, w]`` at the size trained on: the rest and the person."""
    image, _ = photograph.resized(*recipe.size)
    contender.net.eval()
    with torch.no_grad():
        person = contender.net(image)["out"]
    return torch.cat([torch.zeros_like(person), person], dim=1)


def evaluate(logits: torch.Tensor, photograph: Photograph) -> dict[str, Any]:
    """Metrics at the photograph's own size; the logits are upsampled while they are counted."""
    matrix = ConfusionMatrix(2, ignore_index=VOID)
    matrix.update(logits, photograph.person)
    names = ("iou", "dice", "precision", "recall", "f1")
    columns = {name: getattr(matrix, name)() for name in names}
    per_class = {
        label: {name: float(values[i]) for name, values in columns.items()} for i, label in enumerate(("rest", "person"))
    }
    return per_class | {
        "pixel_accuracy": float(matrix.pixel_accuracy()),
        "mean_accuracy": float(matrix.mean_accuracy()),
        "mean_iou": float(matrix.mean_iou()),
        "confusion_matrix": matrix.matrix.tolist(),
    }
