"""The command line ``segkernels``, also ``python -m segkernels``."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from segkernels._version import __version__


def _doctor(arguments: argparse.Namespace) -> int:
    from segkernels.engine import console, doctor

    found = doctor.collect()
    if arguments.json:
        print(json.dumps(found, indent=1))
    else:
        doctor.show(found, console.Console())
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    from segkernels.engine import demo

    return demo.run(arguments.output, steps=arguments.steps, seed=arguments.seed, quick=arguments.quick)


def _bench(arguments: Sequence[str]) -> int:
    """Cases, baselines and results stay in the checkout: a wheel would carry them without the peers that they compare with."""
    folders = (Path(__file__).resolve().parents[1], Path.cwd())
    found = [folder for folder in folders if (folder / "benchmarks" / "command.py").exists()]
    if not found:
        print(f"segkernels bench: no benchmarks/ in {folders[0]} or here; run it in a checkout of segkernels", file=sys.stderr)
        return 2
    sys.path.insert(0, str(found[0]))
    return importlib.import_module("benchmarks.command").main(list(arguments))


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {value}")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="segkernels", description="Segmentation operators for PyTorch.")
    parser.add_argument("--version", action="version", version=f"segkernels {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    doctor = commands.add_parser("doctor", help="print what runs here, and why each other thing does not")
    doctor.add_argument("--json", action="store_true", help="print it as JSON")
    doctor.set_defaults(run=_doctor)

    demo = commands.add_parser(
        "demo", help="run the operators on a photograph and train a U-Net on it", description="Fits one photograph."
    )
    demo.add_argument("--output", default="demo", metavar="DIR", help="folder for pictures and report (default: demo)")
    demo.add_argument("--steps", type=_positive, metavar="N", help="training steps (default: 60)")
    demo.add_argument("--seed", type=int, default=0, metavar="N", help="of weights and activations (default: 0)")
    demo.add_argument("--quick", action="store_true", help="few steps of a small network on a small copy: does it run?")
    demo.set_defaults(run=_demo)

    commands.add_parser("bench", help="time the operators beside what they replace; in a checkout", add_help=False)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status."""
    parser = _parser()
    parsed, rest = parser.parse_known_args(arguments)
    if parsed.command == "bench":
        return _bench(rest)
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return parsed.run(parsed)
