"""Signals, for whatever works: training, denoising, an ablation. Only a process's main thread can listen; elsewhere
(a notebook's worker, a server's thread) nothing is installed and nothing is ever asked for.

While a run trains the first SIGINT, SIGTERM or SIGHUP (the window closed, the line lost; unless it is ignored, as by
nohup) asks it to stop after the step, SIGUSR1 to save and go on. A second one ends the process at once; files are
renamed into place, so that none is torn by it.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType

Handler = Callable[[int, FrameType | None], None] | int
STOP = (signal.SIGINT, signal.SIGTERM)


class Requests:
    """What was asked for since it was last looked at."""

    def __init__(self) -> None:
        self.stop_signal = 0
        self.save = False


@contextmanager
def handled(handlers: Mapping[int, Handler]) -> Iterator[None]:
    """Call these for the time of the block; the handlers of before are put back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def unheard_children() -> Iterator[None]:
    """Child processes that end in the block raise nothing: torch's handler would, wherever the program is by then."""
    with handled({signal.SIGCHLD: signal.SIG_DFL} if hasattr(signal, "SIGCHLD") else {}):
        yield


@contextmanager
def no_save_kills() -> Iterator[None]:
    """SIGUSR1, which ends a process that does not expect it, does nothing in the block where nothing is to be saved."""
    with handled({signal.SIGUSR1: lambda number, frame: None} if hasattr(signal, "SIGUSR1") else {}):
        yield


@contextmanager
def listening() -> Iterator[Requests]:
    """What is asked of a run that trains in the block."""
    requests = Requests()

    def stop(number: int, frame: FrameType | None) -> None:
        if requests.stop_signal:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        requests.stop_signal = number

    def save(number: int, frame: FrameType | None) -> None:
        requests.save = True

    handlers: dict[int, Handler] = dict.fromkeys(STOP, stop)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        handlers[signal.SIGHUP] = stop
    if hasattr(signal, "SIGUSR1"):
        handlers[signal.SIGUSR1] = save
    with handled(handlers):
        yield requests
