"""What a person or a script sees: progress and remarks on stderr, the result on stdout.

A terminal gets a live line, anything else plain lines now and then, --json nothing but the result. No torch here.
"""

from __future__ import annotations

import html
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_PLAIN_SECONDS = 10.0


def duration(seconds: float) -> str:
    """1 h 02 min, 3 min 04 s, 12 s."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    if whole >= 60:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole} s"


def without_password(text: str) -> str:
    """An address such as postgresql://USER:PASSWORD@HOST with *** in its place; anything else as it is."""
    return re.sub(r"(://[^\s:@]*):[^/\s@]+@", r"\1:***@", text)


# What a terminal obeys, and what turns the direction of text: a name from outside must not. Tabs and newlines stay.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff]")


def shown(text: str, *, one_line: bool = False) -> str:
    """Text with names from outside in it, as it is fit for a terminal: control and bidi characters as \\x1b, \\u202e.

    Args:
        one_line: newlines are escaped too.
    """
    text = _OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
    return text.replace("\n", "\\n") if one_line else text


def markdown(text: object) -> str:
    """Text with names from outside in it, as it stands for itself in a line or cell of Markdown."""
    plain = html.escape(shown(str(text), one_line=True), quote=False)
    return re.sub(r"[\\`|]", r"\\\g<0>", plain).replace("](", "]\\(")


def figures_line(record: dict[str, Any]) -> str:
    """A record of metrics in one line."""
    known = {"step", "epoch", "lr", "images_per_second", "grad_norm", "skipped"}
    parts = [f"{name} {record[name]:.4f}" for name in record if name not in known]
    if "lr" in record:
        parts.append(f"lr {record['lr']:.2e}")
    if "images_per_second" in record:
        parts.append(f"{record['images_per_second']:.0f} images/s")
    if record.get("skipped"):
        parts.append(f"{record['skipped']:.0f} steps skipped (non-finite)")
    return "  ".join(parts)


@contextmanager
def heard() -> Iterator[None]:
    """A block that writes to stderr: where nobody reads it any more, or its disk is full, it is silent from then on.

    A line of progress is not worth a day of training.
    """
    try:
        yield
    except OSError:
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  (until the process ends)


def say(text: str) -> None:
    """A line on stderr, if anybody hears it."""
    with heard():
        print(shown(text), file=sys.stderr, flush=True)


class Report:
    """Says nothing but warnings: the report of --json and of all processes but the first."""

    def start(self, total_steps: int, step: int, steps_per_epoch: int) -> None:
        """Training begins after `step` steps."""

    def stepped(self, step: int) -> None:
        """A step is done."""

    def record(self, record: dict[str, Any]) -> None:
        """New figures."""

    def note(self, text: str) -> None:
        """A remark in passing."""

    def warn(self, text: str) -> None:
        """Something that the person should know whatever the format."""
        say(f"dsdmae: warning: {shown(text, one_line=True)}")

    def stop(self) -> None:
        """Training is over or left."""

    @contextmanager
    def spared(self, what: str) -> Iterator[None]:
        """A block that draws or decorates: its failure is a warning, since what was found stands written already."""
        try:
            yield
        except Exception as error:
            reason = (str(error).splitlines() or [""])[0]
            self.warn(f"{what} could not be made ({type(error).__name__}: {reason})")


class PlainReport(Report):
    """Lines for a log file: at most one in ten seconds, scores always."""

    def __init__(self) -> None:
        self.said = self.started = 0.0
        self.first = self.total_steps = 0

    def start(self, total_steps: int, step: int, steps_per_epoch: int) -> None:
        self.total_steps, self.first = total_steps, step
        self.started = time.monotonic()

    def record(self, record: dict[str, Any]) -> None:
        now, done = time.monotonic(), record["step"]
        if "loss" in record:
            if now - self.said < _PLAIN_SECONDS and done < self.total_steps:
                return
            self.said = now
        left = ""
        if self.first < done < self.total_steps:
            left = f"  {duration((now - self.started) / (done - self.first) * (self.total_steps - done))} left"
        self.note(f"epoch {record['epoch']:.4g}  step {done}  {figures_line(record)}{left}")

    def note(self, text: str) -> None:
        say(text)


class RichReport(Report):
    """A live progress line on a terminal."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(stderr=True, highlight=False)
        self.progress: Any = None
        self.epochs = self.steps_per_epoch = 1

    def start(self, total_steps: int, step: int, steps_per_epoch: int) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self.steps_per_epoch = steps_per_epoch
        self.progress = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=self.console,
            transient=True,
        )
        self.epochs = total_steps // steps_per_epoch
        self.task = self.progress.add_task(
            "train", total=total_steps, completed=step, epoch=self._epoch(step), figures=""
        )
        self.progress.start()

    def _epoch(self, step: int) -> str:
        return f"{min(step // self.steps_per_epoch + 1, self.epochs)}/{self.epochs}"

    def stepped(self, step: int) -> None:
        self.progress.update(self.task, completed=step, epoch=self._epoch(step))

    def record(self, record: dict[str, Any]) -> None:
        if "loss" in record:
            self.progress.update(self.task, figures=figures_line(record))
        else:
            self.note(f"epoch {record['epoch']:.4g}  {figures_line(record)}")

    def note(self, text: str) -> None:
        with heard():
            self.console.print(shown(text), markup=False)

    def stop(self) -> None:
        if self.progress is not None:
            self.progress.stop()


class Counted:
    """Work on one thing after the other, each of so many parts: a bar on a terminal, elsewhere a line now and then.

    Args:
        verb: what is done to them ("denoising").
        number: of things; the time that is left is that of all of them.
        quiet: nothing but warnings.
    """

    def __init__(self, verb: str, number: int, *, quiet: bool) -> None:
        self.verb, self.number, self.quiet = verb, number, quiet
        self.live: Any = None
        self.name = ""
        self.begun = 0
        self.began = self.said = 0.0

    def __enter__(self) -> Counted:
        if not self.quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self.live = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                TextColumn("{task.percentage:>3.0f}%"),
                TextColumn("left"),
                TimeRemainingColumn(elapsed_when_finished=False),
                console=Console(stderr=True, highlight=False),
                transient=True,
            )
            self.live.add_task(self.verb, total=self.number)
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            self.live.stop()

    def begin(self, name: str) -> None:
        """The next thing is taken up, one way or another."""
        if not self.begun:
            self.began = self.said = time.monotonic()
        self.name, self.begun = name, self.begun + 1
        if self.live is not None:
            self.live.update(self.live.task_ids[0], completed=self.begun - 1, description=self._what())

    def _what(self) -> str:
        which = f" {self.begun} of {self.number}," if self.number > 1 else ""
        return f"{self.verb}{which} {shown(self.name, one_line=True)}"

    def advance(self, done: int, total: int) -> None:
        """So many of its parts are done."""
        completed = self.begun - 1 + done / total
        if self.live is not None:
            self.live.update(self.live.task_ids[0], completed=completed)
            return
        now = time.monotonic()
        if self.quiet or now - self.said < _PLAIN_SECONDS or completed == self.number:
            return
        self.said = now
        left = duration((now - self.began) / completed * (self.number - completed))
        say(f"{self._what()}: {done / total:.0%}, {left} left")

    def note(self, text: str, *, to_stdout: bool) -> None:
        """A thing is done, in a line: data if it says where the result is, else for people."""
        if self.quiet:
            return
        with self._paused():
            print(shown(text), file=sys.stdout if to_stdout else sys.stderr, flush=True)

    def warn(self, text: str) -> None:
        """Something that the person should know whatever the format."""
        with self._paused():
            say(f"dsdmae: warning: {shown(text, one_line=True)}")

    @contextmanager
    def _paused(self) -> Iterator[None]:
        """The bar gone while a line is written, which may go to another stream of the same terminal."""
        if self.live is not None:
            self.live.stop()
        try:
            yield
        finally:
            if self.live is not None:
                self.live.start()


def make_report(*, as_json: bool, main_process: bool) -> Report:
    """The report that fits where stderr leads."""
    if as_json or not main_process:
        return Report()
    return RichReport() if sys.stderr.isatty() else PlainReport()


def print_result(result: dict[str, Any], *, as_json: bool, text: str) -> None:
    """The one thing that goes to stdout: an object for scripts or a few lines for people."""
    print(json.dumps(result, indent=2) if as_json else shown(text))
