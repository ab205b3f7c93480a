"""The options of ``segkernels bench``."""

from __future__ import annotations

import argparse

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "fp64": "float64"}
# Examples of what --help shows after the options.
EPILOG = """\
examples:
  segkernels bench --ops roi_align,dice_bce_loss --quick          seconds a row; nothing is written
  segkernels bench --check                                        exit status 1 when a row is WRONG or under its goal
  segkernels bench --ops conv2d --baseline eager,compile --dtype fp32,bf16
  segkernels bench --ops max_pool2d --base HEAD~3 --quick         this commit beside that one, row by row
  segkernels bench report                                         report.html and the README's table from benchmarks/results
"""


def listed(text: str) -> list[str]:
    return [part for part in text.split(",") if part]


def among(known: list[str], what: str):
    """The type of an option that takes some of these names."""

    def parse(text: str) -> list[str]:
        unknown = sorted(set(listed(text)) - set(known))
        if unknown:
            raise argparse.ArgumentTypeError(f"no {what} {', '.join(unknown)}; there are {', '.join(known)}")
        return listed(text)

    return parse


def dtypes(text: str) -> list[str]:
    names = [DTYPES.get(name, name) for name in listed(text)]
    return among(list(DTYPES.values()), "dtype")(",".join(names))


def parser() -> argparse.ArgumentParser:
    from benchmarks.cases import MODES, models, operators

    parser = argparse.ArgumentParser(
        prog="segkernels bench",
        description="Time of every operator and model beside what it replaces, and what it has to reach.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    names = operators() + models()
    add("--ops", type=among(names, "case file"), default=None, metavar="A,B", help="operators and models; default: operators")
    add("--cases", default="", metavar="TEXT", help="only cases whose name contains TEXT")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    add("--dtype", type=dtypes, default=None, metavar="A,B", help="fp32, bf16, fp16, fp64; default: fp32")
    add("--mode", type=among(list(MODES), "mode"), default=list(MODES), metavar="A,B", help="fwd,fwdbwd; default: both")
    add(
        "--baseline",
        type=listed,
        default=[],
        metavar="A,B",
        help="eager, torchvision, smp, ...: of a case's baselines only these, by first word; compile: torch.compile of the "
        "first one, too; default: all of a case's own",
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--quick", action="store_true", help="half a second a row, no peak memory, nothing written without --out"
    )
    length.add_argument("--full", action="store_true", help="everything: models, sweeps, fp32 and bf16")
    add(
        "--sweeps",
        nargs="?",
        const="also",
        choices=("also", "only"),
        help="also, or only, the cases that grow, on 1 and 2 threads: does time per element stay flat?",
    )
    add("--seconds", type=float, default=None, metavar="S", help="time for a row; default: 4, of a sweep 1, on a GPU 0.5")
    add("--threads", type=int, default=None, metavar="N", help="default: torch's choice")
    add("--tier", default="default", help="as segkernels.backend() takes it")
    add(
        "--allocator",
        choices=("both", "recycled", "default"),
        default=None,
        help="recycled: freed memory is handed out again, goals are for this; both (the default, but not with --quick): a "
        "second process takes each row with glibc's own settings",
    )
    add("--base", default=None, metavar="COMMIT", help="build that commit in a temporary worktree and compare row by row")
    add("--out", default=None, metavar="FILE", help="the CSV file to append to; default: benchmarks/results/<device>.csv")
    add("--check", action="store_true", help="exit status 1 when a row is WRONG or under its goal")
    return parser


def parse(argv: list[str]) -> argparse.Namespace:
    from benchmarks.cases import models, operators

    options = parser().parse_args(argv)
    options.ops = options.ops or (operators() + models() if options.full else operators())
    options.dtype = options.dtype or (["float32", "bfloat16"] if options.full or options.device == "cuda" else ["float32"])
    options.sweeps = options.sweeps or ("also" if options.full else None)
    if options.seconds is None:
        options.seconds = 0.5 if options.quick or options.device == "cuda" else 4.0
    if options.device == "cuda":
        options.allocator = "default"
    elif options.allocator is None:
        options.allocator = "recycled" if options.quick else "both"
    return options
