"""What a person or a script sees: progress and remarks on stderr, the result on stdout. No torch here.

A terminal gets lines that change in place, anything else plain lines now and then, --json nothing but the result:
training.py while something is trained, counted.py for one thing after the other; lines.py makes their lines.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dsdmae_cli.report.lines import duration as duration


def without_password(text: str) -> str:
    """An address such as postgresql://USER:PASSWORD@HOST with *** in its place; anything else as it is."""
    return re.sub(r"(://[^\s:@]*):[^/\s@]+@", r"\1:***@", text)


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
        # One piece, that another thread's line may not come between.
        print(f"{text}\n", end="", file=sys.stderr, flush=True)


class Report:
    """Says nothing but warnings: the report of --json and of all processes but the first."""

    def start(self, total_steps: int, step: int, steps_per_epoch: int, directions: int | None = None) -> None:
        """Training is about to begin after `step` steps.

        Args:
            directions: in how many the features of the images that are looked at could vary.
        """

    def ready(self) -> None:
        """What comes before the first step is over."""

    def stepped(self, step: int) -> None:
        """A step is done."""

    def wants_figures(self) -> bool:
        """Whether the person waits for figures, which cost a wait for the device, without a record being due."""
        return False

    def figures(self, record: dict[str, Any]) -> None:
        """Figures as they are now, of no record."""

    def record(self, record: dict[str, Any]) -> None:
        """New figures."""

    def epoch_ended(self, epoch: int) -> None:
        """An epoch (counted from 1) is over, and what was looked at after it was recorded."""

    def note(self, text: str) -> None:
        """A remark in passing."""

    def warn(self, text: str) -> None:
        """Something that the person should know whatever the format."""
        say(f"dsdmae: warning: {text}")

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


def make_report(*, as_json: bool, main_process: bool) -> Report:
    """The report that fits where stderr leads."""
    if as_json or not main_process:
        return Report()
    from dsdmae_cli.report.training import PlainReport, RichReport

    return RichReport() if sys.stderr.isatty() else PlainReport()


def print_result(result: dict[str, Any], *, as_json: bool, text: str) -> None:
    """The one thing that goes to stdout: an object for scripts or a few lines for people."""
    print(json.dumps(result, indent=2) if as_json else text)
