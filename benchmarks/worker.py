"""A second process that takes rows beside the first: with the default allocator, or with the package of another commit.

It reads one request a line and answers with one row a line, as JSON; what it prints otherwise goes to its log.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.results import ROOT, Row


class Worker:
    """Takes rows in a process of its own, started in ``root`` with ``environment``."""

    def __init__(self, environment: dict[str, str], root: Path = ROOT) -> None:
        self._log = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker"],
            cwd=root,
            env=environment | {"PYTHONPATH": str(root)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def take(self, request: dict[str, Any]) -> Row | str:
        """The row, or why there is none."""
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            answer = json.loads(self._process.stdout.readline())
        except (BrokenPipeError, ValueError):
            self._log.seek(0)
            last = self._log.read().strip().splitlines()[-1:]
            raise SystemExit(f"benchmarks.worker ended: {' '.join(last) or 'it printed nothing'}") from None
        return answer["error"] if "error" in answer else Row(**answer)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()
        self._log.close()


def request(plan, top, facts: dict[str, str], threads: int, tier: str, options: dict[str, Any]) -> dict[str, Any]:
    """What a worker needs to take this row."""
    return {
        "op": plan.op,
        "case": plan.case.name,
        "mode": plan.mode,
        "dtype": plan.dtype_name,
        "device": plan.device,
        "threads": threads,
        "tier": tier,
        "facts": facts,
        "ceilings": dataclasses.astuple(top),
        "options": options,
    }


def answer(request: dict[str, Any]) -> dict[str, Any]:
    import torch

    import segkernels
    from benchmarks import runner
    from benchmarks.cases import case_named
    from benchmarks.ceilings import Ceilings

    torch.set_num_threads(request["threads"])
    segkernels.backend(request["tier"])
    try:
        case = case_named(request["op"], request["case"])
        plan = runner.Plan(request["op"], case, request["mode"], getattr(torch, request["dtype"]), request["device"])
        row = runner.take(plan, Ceilings(*request["ceilings"]), request["facts"], **request["options"])
    except Exception as error:  # an operator that this commit does not have, for one
        return {"error": f"{type(error).__name__}: {error}"}
    return dataclasses.asdict(row)


def main() -> None:
    # What libraries print must not lie between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        answers.write(json.dumps(answer(json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
