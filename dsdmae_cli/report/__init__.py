"""What a person or a script sees: progress and remarks on stderr, the result on stdout. No torch here.

A terminal gets lines that change in place, anything else plain lines now and then, --json nothing but the result:
training.py while something is trained, counted.py for one thing after the other; lines.py makes their lines, number.py
the words of a number of things.
"""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, TextIO, TypeVar

from dsdmae_cli.errors import RESUME
from dsdmae_cli.report.lines import duration as duration
from dsdmae_cli.report.number import number_of as number_of

T = TypeVar("T")


def without_password(text: str) -> str:
    """An address such as postgresql://USER:PASSWORD@HOST or ...?password=PASSWORD with *** in its place; anything else
    as it is. What follows the last @ of a word is no part of one, whatever is in it."""
    text = re.sub(r"(://[^\s:@]*):\S+@", r"\1:***@", text)
    return re.sub(r"([?&][^\s=&]*(?:pass|pwd|secret|token)[^\s=&]*=)[^\s&]+", r"\1***", text, flags=re.IGNORECASE)


# What a terminal obeys, and what turns the direction of text: a name from outside must not. Tabs and newlines stay. And
# bytes of a name that are no UTF-8, which Python holds as halves of a pair (surrogates) and no stream takes.
_OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)


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


@contextmanager
def heard() -> Iterator[None]:
    """A block that writes to stderr: where nobody reads it any more, or its disk is full, it is silent from then on.

    A line of progress is not worth a day of training.
    """
    try:
        yield
    except OSError:
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  (until the process ends)


def tell(text: object, *, err: bool = False, as_data: bool = False) -> None:
    """A line on stdout, with names from outside in it.

    Args:
        err: it goes to stderr.
        as_data: it is for a script, and goes as it is where it does not go to a terminal.
    """
    stream = sys.stderr if err else sys.stdout
    if not as_data or stream.isatty() or not hasattr(stream, "buffer"):
        print(shown(str(text)), file=stream, flush=True)
        return
    stream.flush()
    stream.buffer.write(_bytes(f"{text}\n", stream.encoding))
    stream.buffer.flush()


def _bytes(text: str, encoding: str) -> bytes:
    """Text for a script in an encoding, else in UTF-8: a stream that puts ? for what its encoding lacks would give a
    path that leads nowhere. A name that is no UTF-8 goes out by the bytes that it has."""
    for one in (encoding, "utf-8"):
        with suppress(UnicodeEncodeError):
            return text.encode(one, "surrogateescape")
    return text.encode("utf-8", "replace")


def say(text: str) -> None:
    """Something on stderr, if anybody hears it; what begins with the program's name is one line."""
    with heard():
        # One piece, that another thread's line may not come between.
        print(f"{shown(text, one_line=text.startswith('dsdmae: '))}\n", end="", file=sys.stderr, flush=True)


class Report:
    """Says nothing but warnings: the report of --json and of all processes but the first.

    Attributes:
        accounted: what images there are, in a line for each of a few words.
        quiet: it shows no progress.
        stopping: whether a signal has asked the training to stop, which it does after the step that it is in.
    """

    accounted: Mapping[str, str] = {}
    quiet = True
    stopping: Callable[[], bool] = staticmethod(lambda: False)

    @cached_property
    def warnings(self) -> list[str]:
        """What was warned of so far."""
        return []

    def account(self, rows: Mapping[str, str]) -> None:
        """What images there are."""
        self.accounted = rows
        for name, words in rows.items():
            self.note(f"{name:<10}{words}")

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
        """A remark in passing, one line."""

    def warn(self, text: str) -> None:
        """Something that the person should know whatever the format."""
        self.warnings.append(text)
        say(f"dsdmae: warning: {shown(text, one_line=True)}")

    def stop(self) -> None:
        """Training is over or left."""

    def watched(
        self, things: Iterable[T], verb: str, name: str, number: int, size: Callable[[T], int] = lambda thing: 1
    ) -> Iterator[T]:
        """The same things one after the other, of which a person sees how far it is.

        Args:
            verb, name: what is done to what: "features of", "10,000 images".
            number: of all parts that things have.
            size: parts of a thing.
        """
        from dsdmae_cli.report.counted import Counted

        with Counted(verb, 1, quiet=self.quiet) as counted:
            counted.begin(name)
            done = 0
            for thing in things:
                yield thing
                done += size(thing)
                counted.advance(done, number)

    @contextmanager
    def spared(self, what: str) -> Iterator[None]:
        """A block that draws or decorates: its failure is a warning, since what was found stands written already."""
        try:
            yield
        except Exception as error:
            # What is drawn anew by another command at most is nothing to go on with.
            reason = (str(error).splitlines() or [""])[0].removesuffix(f"; {RESUME}")
            self.warn(f"{what} could not be made ({type(error).__name__}: {reason})")


# For who wants to see no progress.
NO_REPORT = Report()


def make_report(*, as_json: bool, main_process: bool) -> Report:
    """The report that fits where stderr leads."""
    if as_json or not main_process:
        return Report()
    from dsdmae_cli.report.training import PlainReport, RichReport

    return RichReport() if sys.stderr.isatty() else PlainReport()


def print_result(result: dict[str, Any], *, as_json: bool, text: str) -> None:
    """The one thing that goes to stdout: an object for scripts or a few lines for people."""
    print(json.dumps(result, indent=2) if as_json else between_words(shown(text)))


def between_words(text: str, stream: TextIO | None = None) -> str:
    """The text as a terminal shows it: lines end between words.

    One with a path that is longer than the line can be copied only where the terminal itself breaks it.

    Args:
        stream: where it goes; None = stdout.
    """
    if not (stream or sys.stdout).isatty():
        return text
    return "\n".join(folded(line, shutil.get_terminal_size().columns) for line in text.split("\n"))


_LABEL, _LABEL_COLUMNS = re.compile(r"\S+(?: \S+)*  +"), 16


def folded(line: str, columns: int, indent: int | None = None) -> str:
    """A line in as many as it needs, each ended between words; one that holds a longer word is left to the terminal.

    Args:
        indent: columns before the further ones; None = what follows a label ("data     ") stays beside it.
    """
    if indent is None:
        found = _LABEL.match(line)
        indent = len(found[0]) if found and len(found[0]) <= _LABEL_COLUMNS else 0
    if len(line) <= columns or max(map(len, line[indent:].split()), default=0) > columns - indent:
        return line
    return textwrap.fill(
        line, columns, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False,
        replace_whitespace=False,
    )  # fmt: skip
