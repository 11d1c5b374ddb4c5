"""Signals while a run trains: the first asks it to stop after the step, SIGUSR1 to save and go on.

A second SIGINT or SIGTERM ends the process at once; files are renamed into place, so that none is torn by it.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Requests:
    """What was asked for since it was last looked at."""

    def __init__(self) -> None:
        self.stop_signal = 0
        self.save = False


@contextmanager
def listening() -> Iterator[Requests]:
    """Listen for the time of the block; the handlers of before are put back."""
    requests = Requests()

    def stop(number: int, frame: FrameType | None) -> None:
        if requests.stop_signal:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        requests.stop_signal = number

    def save(number: int, frame: FrameType | None) -> None:
        requests.save = True

    handlers = {signal.SIGINT: stop, signal.SIGTERM: stop}
    if hasattr(signal, "SIGUSR1"):
        handlers[signal.SIGUSR1] = save
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
