"""The pictures of the demo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from segkernels.engine.demo.photograph import Photograph

_PERSON_COLOR = (1.0, 0.25, 0.1)
_OPACITY = 0.55


def overlay(path: Path, photograph: Photograph, logits: torch.Tensor, metrics: dict[str, Any]) -> None:
    """Photograph, truth and prediction side by side."""
    upsampled = F.interpolate(logits, size=photograph.person.shape[1:], mode="bilinear")
    person = metrics["person"]
    panels = {
        "photograph": photograph.rgb,
        "truth: person": _tint(photograph, photograph.person[0] == 1),
        f"prediction: IoU {person['iou']:.3f}, Dice {person['dice']:.3f}": _tint(photograph, upsampled.argmax(1)[0] == 1),
    }
    figure, axes = _figure(1, 3, (15, 4.2))
    for axis, (title, picture) in zip(axes[0], panels.items()):
        axis.imshow(picture)
        axis.set_title(title)
        axis.axis("off")
    figure.savefig(path, dpi=100)


def curves(path: Path, training: dict[str, Any]) -> None:
    """Both losses, and how far they are apart."""
    (ours, theirs) = training["losses"]
    first, second = training["losses"].values()
    figure, axes = _figure(1, 2, (12, 4.2))
    left, right = axes[0]
    steps = range(1, len(first) + 1)
    left.plot(steps, second, linewidth=4, alpha=0.4, label=f"{theirs}: {training['step_ms'][theirs]:.0f} ms a step")
    left.plot(steps, first, linewidth=1.5, label=f"{ours}: {training['step_ms'][ours]:.0f} ms a step")
    left.set(title="Dice + BCE", xlabel="step", ylabel="loss", ylim=(0, None))
    left.legend()
    right.plot(steps, [abs(a - b) for a, b in zip(first, second)])
    right.set(title=f"difference between {ours} and {theirs}", xlabel="step", ylabel="of the losses", yscale="log")
    for axis in (left, right):
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=100)


def _figure(rows: int, columns: int, size: tuple[float, float]) -> Any:
    # Without pyplot: no display is asked for, and no global state is left behind.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _tint(photograph: Photograph, mask: torch.Tensor) -> Any:
    picture = torch.from_numpy(photograph.rgb) / 255
    tinted = (1 - _OPACITY) * picture + _OPACITY * torch.tensor(_PERSON_COLOR)
    return torch.where(mask[..., None], tinted, picture).numpy()
