"""Ctrl-C, SIGTERM and SIGHUP while pictures are written: what is on disk is whole, and is counted."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from dsdmae_cli.errors import RunInterrupted, signal_words
from dsdmae_cli.pictures.outcome import Outcome
from dsdmae_cli.report import number_of
from dsdmae_cli.signals import handled, once, stops


class Stop:
    """A signal ends the work at once, but never between a file and its record: `hold` puts them off."""

    def __init__(self) -> None:
        self.number: signal.Signals | None = None
        self.held = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.number = signal.Signals(number)
        if not self.held:
            raise KeyboardInterrupt

    @contextmanager
    def hold(self) -> Iterator[None]:
        """No interruption inside; one that was asked for meanwhile follows."""
        self.held = True
        try:
            yield
        finally:
            self.held = False
        if self.number is not None:
            raise KeyboardInterrupt


@contextmanager
def stoppable(outcome: Outcome, total: int) -> Iterator[Stop]:
    """The signals that stop, listened to inside.

    Raises:
        RunInterrupted: one came; the message says how many of `total` pictures are done.
    """
    stop = Stop()
    try:
        with handled(dict.fromkeys(stops(), once(stop))):
            yield stop
    except KeyboardInterrupt:
        number = stop.number or signal.SIGINT
        raise RunInterrupted(
            f"stopped by {signal_words(number)}: {len(outcome.done):,} of {number_of(total, 'picture')} are done and"
            " whole, nothing of the others was written",
            number,
        ) from None
