"""Contenders that take turns, and the tables that say how they did. No torch here."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Spread:
    """Measurements of one thing: the median, and the smallest and largest."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Raises: ValueError: there are none."""
        if not values:
            raise ValueError("no measurements")
        return cls(statistics.median(values), min(values), max(values))

    def text(self, digits: int = 3) -> str:
        """ "13.0 (12.5, 14.1)"."""
        return f"{short(self.median, digits)} ({short(self.least, digits)}, {short(self.most, digits)})"


def short(value: float, digits: int = 3) -> str:
    """So many significant digits, and whole numbers whole: 0.0123, 12.3, 12345, never 1.23e+04."""
    if not math.isfinite(value) or abs(value) < 10 ** (digits - 1):
        return f"{value:.{digits}g}"
    return f"{value:.0f}"


def last_words(error: BaseException) -> str:
    """The first line of what an error says; of one that says nothing (MemoryError) its name."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def by_turns(
    contenders: Mapping[str, Callable[[], T]], rounds: int, said: Callable[[str], None] = lambda text: None
) -> dict[str, list[T]]:
    """What each contender returns (seconds, say) in each round.

    All are asked once in a round, in their order, after a round that warms up and does not count: a change of the
    machine's mood hits all alike.

    Args:
        rounds: at least one.
        said: told after each round how far it is.
    """
    found: dict[str, list[T]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, measure in contenders.items():
            value = measure()
            if number:
                found[name].append(value)
        said(f"round {number} of {rounds}" if number else "warm")
    return found


@dataclass
class Finding:
    """What a measurement found.

    Attributes:
        title: of the thing that was measured, as a heading.
        facts: what was the same for all contenders: {"batch": "64"}.
        columns: of the table; the first is the contender's.
        rows: texts or numbers, one a column.
        data: everything as numbers, for JSON.
        notes: sentences below the table.
    """

    title: str
    columns: Sequence[str]
    rows: list[list[str]]
    facts: dict[str, str] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def markdown(self) -> str:
        """A heading, the facts, the table and the notes."""
        lines = [f"### {self.title}", ""]
        if self.facts:
            lines += ["; ".join(f"{name} {value}" for name, value in self.facts.items()), ""]
        if self.rows:
            lines += [_row(self.columns), "|" + "---|" * len(self.columns), *map(_row, self.rows), ""]
        lines += [line for note in self.notes for line in (note, "")]
        return "\n".join(lines)

    def json(self) -> dict[str, Any]:
        return {"title": self.title, "facts": self.facts, **self.data, "notes": self.notes}

    def text(self) -> str:
        """The same for a terminal, in columns."""
        lines = [self.title]
        lines += [f"  {name}: {value}" for name, value in self.facts.items()]
        table = [list(self.columns), *self.rows]
        widths = [max(len(row[k]) for row in table) for k in range(len(self.columns))]
        for row in table if self.rows else []:
            first, *others = (
                cell.ljust(w) if not k else cell.rjust(w) for k, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
            lines.append("  ".join([first, *others]).rstrip())
        return "\n".join([*lines, *self.notes])


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
