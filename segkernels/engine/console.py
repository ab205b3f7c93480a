"""Tables and progress bars: rich's where rich is installed, plain text where it is not."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

# Of output that goes to a file or a pipe.
_WIDTH = 140


class Console:
    """Prints to standard output. Nothing printed is interpreted: ``[N, C]`` stays as it is."""

    def __init__(self) -> None:
        self._rich: Any = None
        with contextlib.suppress(ImportError):
            import rich.console

            width = None if sys.stdout.isatty() else _WIDTH
            self._rich = rich.console.Console(width=width, markup=False, highlight=False, soft_wrap=False)

    def print(self, text: str = "") -> None:
        if self._rich is None:
            print(text, flush=True)
        else:
            self._rich.print(text, soft_wrap=True)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A column whose cells are all numbers is aligned to the right."""
        cells = [[_format(value) for value in row] for row in rows]
        numeric = [bool(rows) and all(isinstance(row[i], (int, float)) for row in rows) for i in range(len(columns))]
        if self._rich is None:
            print("\n".join(["", title, *_plain_table(columns, cells, numeric)]), flush=True)
            return
        import rich.table
        from rich.text import Text

        table = rich.table.Table(title=Text(title, style="bold"), title_justify="left")
        for column, right in zip(columns, numeric):
            table.add_column(Text(column), justify="right" if right else "left", overflow="fold")
        for row in cells:
            table.add_row(*(Text(cell) for cell in row))
        self._rich.print()
        self._rich.print(table)

    @contextlib.contextmanager
    def progress(self, total: int, what: str) -> Iterator[Callable[[str], None]]:
        """Yields a function to call after each of ``total`` steps with a few words on how it stands."""
        if self._rich is None or not self._rich.is_terminal:
            yield self._progress_lines(total, what)
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self._rich) as bar:
            task = bar.add_task(what, total=total)
            yield lambda state: bar.update(task, advance=1, description=f"{what}: {state}")

    def _progress_lines(self, total: int, what: str) -> Callable[[str], None]:
        # Ten lines in all: a log is read afterwards.
        step = 0

        def advance(state: str) -> None:
            nonlocal step
            step += 1
            if step * 10 // total > (step - 1) * 10 // total:
                self.print(f"{what}: {step}/{total}, {state}")

        return advance


def _format(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:.3f}" if abs(value) < 100 else f"{value:.0f}"
    return str(value)


def _plain_table(columns: Sequence[str], cells: Sequence[Sequence[str]], numeric: Sequence[bool]) -> list[str]:
    widths = [max(len(column), *(len(row[i]) for row in cells), 0) for i, column in enumerate(columns)]
    limit = shutil.get_terminal_size((_WIDTH, 24)).columns

    def line(row: Sequence[str]) -> str:
        parts = (cell.rjust(width) if right else cell.ljust(width) for cell, width, right in zip(row, widths, numeric))
        return "  ".join(parts).rstrip()

    rule = "-" * min(limit, sum(widths) + 2 * (len(widths) - 1))
    return [line(columns), rule, *(line(row) for row in cells)]
