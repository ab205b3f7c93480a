"""What :func:`segkernels.accelerate` did: one entry a module."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Entry:
    """One module: ``after`` is what its forward runs on now, None if it was kept, and ``reason`` says why."""

    path: str
    before: str
    after: str | None
    reason: str | None = None


@dataclass
class Report:
    """The modules of the kinds that segkernels knows; prints as a table, one line for all modules with one fate.

    Attributes:
        model: the model that was accelerated: the one given, or its copy for ``inplace=False``.
        entries: one for each such module, in the model's order; a module in several places is under its first name.
        others: number of modules of other kinds.
    """

    model: nn.Module = field(repr=False)
    entries: list[Entry]
    others: int = 0

    @property
    def replaced(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.after is not None]

    @property
    def kept(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.after is None]

    def __getitem__(self, path: str) -> Entry:
        """The entry of the module of this name in the model."""
        for entry in self.entries:
            if entry.path == path:
                return entry
        raise KeyError(path)

    def __len__(self) -> int:
        return len(self.entries)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for example for JSON: ``replaced`` and ``kept`` counts, ``others``, and the ``entries``."""
        entries = [asdict(entry) for entry in self.entries]
        return {"replaced": len(self.replaced), "kept": len(self.kept), "others": self.others, "entries": entries}

    def rows(self) -> list[tuple[str, str, str, int, str]]:
        """``(before, after, reason, modules, first path)``, replaced ones first."""
        fates: Counter[tuple[str, str, str]] = Counter()
        first: dict[tuple[str, str, str], str] = {}
        for entry in [*self.replaced, *self.kept]:
            fate = entry.before, entry.after or "kept", entry.reason or ""
            fates[fate] += 1
            first.setdefault(fate, entry.path or "(the model)")
        return [(*fate, count, first[fate]) for fate, count in fates.items()]

    def summary(self) -> str:
        return f"{len(self.replaced)} modules replaced, {len(self.kept)} kept, {self.others} of other kinds"

    def __str__(self) -> str:
        columns = ("before", "after", "why", "modules", "first")
        rows = [tuple(str(value) for value in row) for row in (columns, *self.rows())]
        widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
        lines = ["  ".join(value.ljust(width) for value, width in zip(row, widths)).rstrip() for row in rows]
        return "\n".join([*lines, self.summary()])

    def __rich__(self) -> Any:
        from rich.table import Table
        from rich.text import Text

        table = Table(title=Text(self.summary()), title_justify="left")
        for column in ("before", "after", "why"):
            table.add_column(column, overflow="fold")
        table.add_column("modules", justify="right")
        table.add_column("first", overflow="fold")
        for row in self.rows():
            style = "green" if row[1] != "kept" else "dim"
            table.add_row(*(Text(str(value), style=style) for value in row))
        return table

    def print(self) -> None:
        """Prints the table, rich's where rich is installed."""
        try:
            from rich.console import Console
        except ImportError:
            print(self)
        else:
            Console().print(self)
