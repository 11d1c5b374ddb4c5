"""What a page is made of. How it looks is document.py's and its template's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from dsdmae_cli.page.chart import Chart

State = Literal["running", "done", "stopped", "failed", ""]


@dataclass(frozen=True)
class Cell:
    """Of a table: a text, and where it leads (a path relative to the page)."""

    text: str
    link: str = ""


@dataclass(frozen=True)
class Facts:
    """A few figures that stand out: what it is, the figure, what it is compared with."""

    rows: Sequence[tuple[str, str, str]]
    kind: str = "facts"


@dataclass(frozen=True)
class Text:
    """Paragraphs."""

    lines: Sequence[str]
    quiet: bool = False
    kind: str = "text"


@dataclass(frozen=True)
class Listing:
    """Points below each other."""

    items: Sequence[str]
    quiet: bool = False
    kind: str = "listing"


@dataclass(frozen=True)
class Code:
    """What is typed or copied, to the letter."""

    text: str
    kind: str = "code"


@dataclass(frozen=True)
class Charts:
    """Figures beside each other, as many as the width takes; empty ones are left out.

    Attributes:
        empty: said where there is none to draw yet.
    """

    charts: Sequence[Chart]
    empty: str = ""
    kind: str = "charts"

    @property
    def drawn(self) -> list[Chart]:
        """Those that have something to show."""
        return [chart for chart in self.charts if chart.drawable]


@dataclass(frozen=True)
class Table:
    """Rows of cells.

    Attributes:
        titles: of the columns; empty where they need none.
        words: columns that are words and stand at the left; all others are numbers and stand at the right.
        marks: for each row "best", "gain", "loss", "quiet" or nothing.
        wraps: columns whose cells may break into lines.
    """

    titles: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    words: frozenset[int] = frozenset()
    marks: Sequence[str] = ()
    wraps: frozenset[int] = frozenset()
    kind: str = "table"

    def lines(self) -> list[tuple[str, list[Cell]]]:
        """(mark, cells) of each row."""
        cells = [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in self.rows]
        marks = [*self.marks, *[""] * (len(cells) - len(self.marks))]
        return list(zip(marks, cells, strict=True))


@dataclass(frozen=True)
class Thumb:
    """A picture inside the page: a data: address, its size in pixels, and what is on it."""

    source: str
    width: int
    height: int
    alt: str
    sharp: bool = False


@dataclass(frozen=True)
class Moments:
    """Rows of pictures at several moments, with a slider.

    Attributes:
        still: rows that are the same at all moments.
        moments: (when, rows) in order; rows are (name, picture).
    """

    still: Sequence[tuple[str, Thumb]]
    moments: Sequence[tuple[str, Sequence[tuple[str, Thumb]]]]
    kind: str = "moments"


@dataclass(frozen=True)
class Gallery:
    """Pictures with words below each, which lead to a file beside the page or nowhere."""

    pictures: Sequence[tuple[str, Thumb, str]]
    wide: bool = False
    kind: str = "gallery"


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it.

    Attributes:
        folded: shown when it is asked for.
    """

    title: str
    blocks: Sequence[Block]
    folded: bool = False


Block = Facts | Text | Listing | Code | Charts | Table | Moments | Gallery


@dataclass(frozen=True)
class Page:
    """A page.

    Attributes:
        answer: the one thing to know, below the title.
        state: of what is alive while the page is read; empty = nothing is.
        status: beside the state.
        share: of the way that is done, 0 to 1; None = not said.
        written: seconds since 1970.
        patience: seconds without news after which a page that says "running" says that it may not be.
    """

    title: str
    answer: str = ""
    answers: Sequence[str] = ()
    state: State = ""
    status: str = ""
    share: float | None = None
    written: float = 0.0
    patience: float = 0.0
    refresh: int = 30
    sections: Sequence[Section] = field(default_factory=tuple)
    lead: Sequence[Block] = ()
