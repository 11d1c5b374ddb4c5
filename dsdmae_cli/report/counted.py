"""What is seen of work on one thing after the other: a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from dsdmae_cli.report import between_words, say, shown
from dsdmae_cli.report.lines import bar_line, duration, shortened

# Told how many parts of how many are done.
Advance = Callable[[int, int], None]
_PLAIN_SECONDS = 10.0
# What a bar, the percentage and the time left need beside the name of the thing.
_BESIDE = 32


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
        self.completed = 0.0  # things, and the share of the one at work
        self.began = self.said = 0.0

    def __enter__(self) -> Counted:
        if not self.quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            console = Console(stderr=True, highlight=False)
            self.live = Live(
                get_renderable=lambda: self.line(console.width - 1, console.encoding), console=console,
                refresh_per_second=4, transient=True, vertical_overflow="crop",
            )  # fmt: skip
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            self.live.stop()

    def begin(self, name: str) -> None:
        """The next thing is taken up, one way or another."""
        if not self.begun:
            self.began = self.said = time.monotonic()
        self.completed = float(self.begun)
        self.name, self.begun = shown(name, one_line=True), self.begun + 1

    def _what(self, width: int | None = None) -> str:
        """Which one is at work, in at most so many columns but for its name's ends."""
        which = f" {self.begun} of {self.number}," if self.number > 1 else ""
        before = f"{self.verb}{which} "
        return before + (self.name if width is None else shortened(self.name, max(width - len(before), 0)))

    def part(self, number: int, of: int) -> Advance:
        """`advance` for one of several equal parts of a thing, each with parts of its own."""
        return lambda done, total: self.advance(number * total + done, of * total)

    def advance(self, done: int, total: int) -> None:
        """So many of its parts are done."""
        self.completed = self.begun - 1 + done / total
        now = time.monotonic()
        if self.live is not None or self.quiet or now - self.said < _PLAIN_SECONDS or self.completed == self.number:
            return
        self.said = now
        say(f"{self._what()}: {done / total:.0%}, {self._left()} left")

    def _left(self) -> str:
        """Of all things; empty where nothing is done yet."""
        if not self.completed:
            return ""
        return duration((time.monotonic() - self.began) / self.completed * (self.number - self.completed))

    def line(self, width: int, encoding: str) -> Any:
        """The line of a terminal as it is now."""
        left = self._left()
        head = self._what(width - _BESIDE) if self.begun else self.verb
        return bar_line(head, self.completed / self.number, f"{left} left" if left else "", width).rich(encoding)

    def note(self, text: str, *, to_stdout: bool) -> None:
        """A thing is done, in a line: data if it says where the result is, else for people."""
        if self.quiet:
            return
        with self._paused():
            stream = sys.stdout if to_stdout else sys.stderr
            print(between_words(shown(text), stream), file=stream, flush=True)

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
