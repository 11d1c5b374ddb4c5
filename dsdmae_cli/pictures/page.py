"""The page of many pictures that were restored: each before and after, what was found, what failed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from dsdmae_cli.errors import RunFailed
from dsdmae_cli.page import PAGE
from dsdmae_cli.page.blocks import Gallery, Listing, Page, Section, Table, Thumb
from dsdmae_cli.page.document import is_ours, places, write
from dsdmae_cli.page.thumbs import thumb
from dsdmae_cli.pictures.contact_sheet import Panel, to_rgb
from dsdmae_cli.pictures.outcome import Outcome
from dsdmae_cli.report import duration

# Pictures that are shown; all are in the table.
_MOST = 24
_WIDTH, _BYTES = 480, 30_000


class RestoredPage:
    """Collects what is shown, and writes report.html into the folder of the results.

    Args:
        folder: where the results go; None = there is to be no page.
        warn: is told what kept it from being written: the pictures are what counts.
    """

    def __init__(self, folder: Path | None, warn: Callable[[str], None]) -> None:
        self.folder, self.warn = folder, warn
        self.shown: list[tuple[str, Thumb, str]] = []

    def add(self, name: str, panels: Sequence[Panel]) -> None:
        """A picture that was restored."""
        if self.folder is None or len(self.shown) >= len(panels) * _MOST:
            return
        for panel in panels:
            words = f"{Path(name).name}: {panel.caption}"
            self.shown.append((words, thumb(to_rgb(panel.picture), words, width=_WIDTH, most=_BYTES), ""))

    def write(self, outcome: Outcome) -> None:
        """Write the page, if anything was restored; a file of that name which is none of ours stays."""
        if self.folder is None or not outcome.done:
            return
        try:
            path = self.folder / PAGE
            if not path.exists() or is_ours(path):
                write(self._page(outcome, self.folder), path, places(self.folder, "OUT"))
        except (OSError, RunFailed) as error:
            self.warn(f"the page {PAGE} could not be written: {error}")

    def _page(self, outcome: Outcome, folder: Path) -> Page:
        lines = [str(done) for done in outcome.done]
        rows = [line.partition("  ")[::2] for line in lines]
        table = [(Path(name).name, words) for name, words in rows]
        columns = frozenset({0, 1})
        sections = [
            Section("Before and after", [Gallery(self.shown, wide=True)]),
            Section("Every picture", [Table(["picture", "what was done"], table, columns, wraps=frozenset({1}))]),
        ]
        if outcome.failed:
            sections.append(Section("Failed", [Listing([str(failure) for failure in outcome.failed])]))
        answer = f"{len(outcome.done)} pictures were {outcome.verb} in {duration(outcome.seconds)}"
        answer += f", {len(outcome.failed)} failed." if outcome.failed else "."
        weights = outcome.about.get("weights", {}).get("origin", "")
        by = [f"By {weights}."] if weights else []
        return Page(f"{folder.name}: pictures {outcome.verb}", answer, by, sections=sections)
