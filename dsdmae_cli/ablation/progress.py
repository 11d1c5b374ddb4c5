"""What is seen while a study runs: a live table on a terminal, lines elsewhere, nothing with --json."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from typing import Any

from dsdmae_cli.ablation.definition import Metric
from dsdmae_cli.ablation.study import Row
from dsdmae_cli.ablation.sweep import describe
from dsdmae_cli.ablation.trial import Job
from dsdmae_cli.report import duration, say, shown
from dsdmae_cli.report.lines import shortened

_PLAIN_SECONDS = 30.0
# Columns between those of the table; that progress is worth; that a title keeps where there is little room.
_GAP, _PROGRESS, _TITLE = 2, 24, 8
_STYLES = {"done": "green", "running": "bold", "failed": "red", "pruned": "yellow", "stopped": "yellow"}


@dataclass
class View:
    """The study at one moment."""

    rows: list[Row]
    jobs: dict[int, Job] = field(default_factory=dict)
    undrawn: int = 0
    left: str = ""
    note: str = ""

    def counts(self) -> str:
        """ "3 done, 1 running, 2 waiting, 4 to be drawn"."""
        states = [row.state for row in self.rows]
        order = ("done", "running", "waiting", "pruned", "failed", "stopped")
        known = [f"{states.count(s)} {s}" for s in order if s in states]
        return ", ".join([*known, f"{self.undrawn} to be drawn"] if self.undrawn else known)


class Progress:
    """Says nothing: the progress of --json."""

    def __init__(self, metric: Metric) -> None:
        self.metric = metric

    def show(self, view: View) -> None:
        """The study as it is now; called several times a second."""

    def event(self, row: Row, text: str) -> None:
        """A trial began or ended."""

    def note(self, text: str) -> None:
        """A remark."""

    def warn(self, text: str) -> None:
        """Something that the person should know whatever the format."""
        say(f"dsdmae: warning: {shown(text, one_line=True)}")

    def stop(self) -> None:
        """The study is over or left."""


class PlainProgress(Progress):
    """A line for every trial that begins or ends, and one now and then."""

    def __init__(self, metric: Metric) -> None:
        super().__init__(metric)
        self.said = time.monotonic()

    def show(self, view: View) -> None:
        if time.monotonic() - self.said >= _PLAIN_SECONDS:
            self.note(view.counts() + (f", about {view.left}" if view.left else ""))

    def event(self, row: Row, text: str) -> None:
        self.note(f"{describe(row.point)}, seed {row.seed}: {text}")

    def note(self, text: str) -> None:
        self.said = time.monotonic()
        say(text)


class RichProgress(Progress):
    """A table of all trials that changes in place."""

    def __init__(self, metric: Metric) -> None:
        super().__init__(metric)
        from rich.console import Console
        from rich.live import Live

        self.console = Console(stderr=True, highlight=False)
        self.live = Live(console=self.console, auto_refresh=False, transient=True)
        self.drawn = 0.0
        self.live.start()

    def show(self, view: View) -> None:
        if time.monotonic() - self.drawn < 0.5:
            return
        self.drawn = time.monotonic()
        self.live.update(self._table(view), refresh=True)

    def _table(self, view: View) -> Any:
        from rich.table import Table

        rows = self._fitting(view.rows)
        left = f"about {view.left}" if view.left else ""
        more = f"{len(view.rows) - len(rows)} not shown" if len(rows) < len(view.rows) else ""
        caption = "  ".join(text for text in (view.counts(), left, more, view.note) if text)
        table = Table(box=None, pad_edge=False, header_style="bold", caption=caption, caption_justify="left")
        keys = list(view.rows[0].point) if view.rows else []
        lines = [[*row.point.values(), str(row.seed), *self._cells(row, view)] for row in rows]
        columns = self._columns([*keys, "seed", "state", self.metric.label], lines)
        for title, width in columns:
            table.add_column(shortened(title, width), no_wrap=True, width=width)
        room = self.console.width - sum(width + _GAP for _, width in columns)
        if room >= _TITLE:
            table.add_column("progress", no_wrap=True, max_width=room)
        for row, cells in zip(rows, lines, strict=True):
            table.add_row(*cells[: len(table.columns)], style=_STYLES.get(row.state))
        return table

    def _columns(self, titles: list[str], lines: list[list[str]]) -> list[tuple[str, int]]:
        """The columns before the last with their widths: a reason that is long takes nothing from them, and where there
        is little room for what is seen of progress, titles give way to what stands below them."""
        widest = [max((len(line[place]) for line in lines), default=0) for place in range(len(titles))]
        widths = [max(wide, len(title)) for wide, title in zip(widest, titles, strict=True)]
        if self.console.width - sum(width + _GAP for width in widths) < _PROGRESS:
            widths = [max(wide, min(len(title), _TITLE)) for wide, title in zip(widest, titles, strict=True)]
        return list(zip(titles, widths, strict=True))

    def _fitting(self, rows: list[Row]) -> list[Row]:
        """As many as the screen holds: what runs first, then what ended last, then what comes next."""
        most = max(4, self.console.height - 5)
        if len(rows) <= most:
            return rows
        order = {"running": 0, "failed": 1, "done": 2, "pruned": 2, "stopped": 3, "waiting": 3}
        chosen = sorted(rows, key=lambda row: (order[row.state], -row.number if order[row.state] == 2 else row.number))
        kept = {row.number for row in chosen[:most]}
        return [row for row in rows if row.number in kept]

    def _cells(self, row: Row, view: View) -> tuple[str, str, str]:
        job = view.jobs.get(row.number)
        value = self.metric.show(row.value) if row.value is not None else ""
        if job is not None:
            if job.waits:
                return "waiting", "", "for a run that a lost worker left at work"
            now = "  ".join(f"{name} {number:.3f}" for name, number in job.shown.items())
            return job.doing, "", f"{job.share:4.0%}  {duration(time.monotonic() - job.began)}  {now}"
        if row.state == "running":
            return "elsewhere", "", ""
        return row.state, value, row.reason or (duration(row.facts["seconds"]) if "seconds" in row.facts else "")

    def event(self, row: Row, text: str) -> None:
        if row.state == "failed":
            self.note(f"{describe(row.point)}, seed {row.seed}: {text}")

    def note(self, text: str) -> None:
        self.console.print(shown(text), markup=False)

    def warn(self, text: str) -> None:
        self.note(f"dsdmae: warning: {text}")

    def stop(self) -> None:
        self.live.stop()


def make_progress(metric: Metric, as_json: bool) -> Progress:
    """The progress that fits where stderr leads."""
    if as_json:
        return Progress(metric)
    return RichProgress(metric) if sys.stderr.isatty() else PlainProgress(metric)
