"""The page of many pictures that were restored: each before and after, what was found, what failed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from dsdmae_cli.data.base import Refused
from dsdmae_cli.errors import DsdmaeError, RunFailed
from dsdmae_cli.page import PAGE
from dsdmae_cli.page.blocks import Block, Gallery, Listing, Page, Section, Table, Text, Thumb
from dsdmae_cli.page.document import is_ours, places, write
from dsdmae_cli.page.thumbs import thumb
from dsdmae_cli.pictures.contact_sheet import Panel, drawn, to_rgb, with_magnified
from dsdmae_cli.pictures.outcome import Done, Outcome
from dsdmae_cli.report import duration, number_of

# Pictures that are shown; all are in the table.
_MOST = 24
_WIDTH, _BYTES = 480, 45_000


class RestoredPage:
    """Collects what is shown, and writes report.html into the folder of the results.

    Args:
        folder: where the results go; None = there is to be no page.
        warn: is told what kept it from being written: the pictures are what counts.
    """

    def __init__(self, folder: Path | None, warn: Callable[[str], None]) -> None:
        self.folder, self.warn = folder, warn
        self.shown: list[Block] = []
        self.unchanged = 0

    def add(self, done: Done, panels: Sequence[Panel]) -> None:
        """A picture that was restored: whole, and a part of it magnified; of one that stayed as it was, the number."""
        if not done.changed:
            self.unchanged += 1
        elif self.folder is not None and len(self.shown) < 2 * _MOST:
            try:
                self.shown += _shown(done, panels)
            except (DsdmaeError, Refused, OSError, ValueError) as error:
                self.warn(f"{done.source} is not shown on the page {PAGE}: {error}")

    def write(self, outcome: Outcome) -> None:
        """Write the page, if anything was restored; a file of that name which is none of ours stays."""
        if self.folder is None or not outcome.done:
            return
        try:
            path = self.folder / PAGE
            if not path.exists() or is_ours(path):
                write(self._page(outcome, self.folder), path, places(self.folder, "OUT"))
        except (OSError, RunFailed, ValueError) as error:
            self.warn(f"the page {PAGE} could not be written: {error}")

    def _page(self, outcome: Outcome, folder: Path) -> Page:
        done = [one for one in outcome.done if isinstance(one, Done)]
        table = [(Path(one.output or one.source).name, f"{one.words()}, {one.seconds:.1f} s") for one in done]
        columns = frozenset({0, 1})
        every = Table(["picture", "what was done"], table, columns, wraps=frozenset({1}))
        sections = [Section("Every picture", [every])]
        if self.shown:
            sections.insert(0, Section("Before and after", self.shown))
        if outcome.failed:
            sections.append(Section("Failed", [Listing([str(failure) for failure in outcome.failed])]))
        were = "was" if len(outcome.done) == 1 else "were"
        answer = f"{number_of(len(outcome.done), 'picture')} {were} {outcome.verb} in {duration(outcome.seconds)}"
        if self.unchanged:
            answer += f", {self.unchanged} of them unchanged"
        answer += f"; {len(outcome.failed)} failed." if outcome.failed else "."
        weights = outcome.about.get("weights", {}).get("origin", "")
        by = [f"By {weights}."] if weights else []
        return Page(f"{folder.name}: pictures {outcome.verb}", answer, by, sections=sections)


def _shown(done: Done, panels: Sequence[Panel]) -> list[Block]:
    name = Path(done.source).name
    whole, *magnified = with_magnified(panels, whole=True)
    pictures = [(panel.caption, _whole(panel, name), "") for panel in whole]
    pictures += [(panel.caption, _magnified(panel, name), "") for row in magnified for panel in row]
    return [Text([f"{name}: {done.words()}"]), Gallery(pictures, wide=True)]


def _whole(panel: Panel, name: str) -> Thumb:
    """A picture, of the same size on the page whatever its noise leaves of its pixels."""
    picture = drawn(panel)
    width = min(_WIDTH, picture.width)
    small = thumb(picture, f"{name}: {panel.caption}", width=width, most=_BYTES)
    return replace(small, width=width, height=round(picture.height * width / picture.width))


def _magnified(panel: Panel, name: str) -> Thumb:
    """A part of a picture, pixel by pixel; the page enlarges it."""
    part = thumb(to_rgb(panel.picture), f"{name}: {panel.caption}", width=_WIDTH, most=_BYTES, sharp=True)
    factor = panel.factor or 1
    return replace(part, width=part.width * factor, height=part.height * factor)
