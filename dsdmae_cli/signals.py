"""Signals, for whatever works: training, denoising, an ablation. Only a process's main thread can listen; elsewhere
(a notebook's worker, a server's thread) nothing is installed and nothing is ever asked for.

While a run trains the first SIGINT, SIGTERM or SIGHUP (the window closed, the line lost; unless it is ignored, as by
nohup) asks it to stop after the step, SIGUSR1 to save and go on. A second one ends the process at once; files are
renamed into place, so that none is torn by it. One that comes again within a moment is the first one's echo and no
second: `timeout`, systemd and SLURM send theirs to a process and to its group, and torchrun passes on to its processes
what they have got themselves.
"""

from __future__ import annotations

import ctypes
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType

Heard = Callable[[int, FrameType | None], None]
Handler = Heard | int
_ECHO_SECONDS = 1.0
# torchrun passes a signal on when it comes to it, and ends by SIGKILL, half a minute later, who has not ended by then.
_TORCHRUN_ECHO_SECONDS = 30.0
# When each signal that stops was heard last, on the monotonic clock, since the outermost block that listens began: what
# one block has heard comes as an echo to the block around it.
_heard: dict[int, float] = {}
_blocks = 0
# In the environment: the number of the process that started this command and sees to it.
_PARENT = "_DSDMAE_PARENT"


class Stopped(KeyboardInterrupt):
    """A signal that stops, where nothing is to be finished first; as Ctrl-C does by itself.

    Attributes:
        by: number of the last one, 0 for none; told here, since Typer makes a mere exit of any KeyboardInterrupt.
    """

    by = 0


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
    global _blocks
    if not _blocks:
        _heard.clear()
    _blocks += 1
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        _blocks -= 1
        for number, handler in before.items():
            signal.signal(number, handler)


def once(handler: Heard) -> Heard:
    """The handler of a signal that stops, deaf to its echoes."""

    def hear(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        echo = _TORCHRUN_ECHO_SECONDS if "TORCHELASTIC_RUN_ID" in os.environ else _ECHO_SECONDS
        if now - _heard.get(number, -math.inf) >= echo:
            _heard[number] = now
            handler(number, frame)

    return hear


@contextmanager
def unheard_children() -> Iterator[None]:
    """Child processes that end in the block raise nothing: torch's handler would, wherever the program is by then."""
    with handled({signal.SIGCHLD: signal.SIG_DFL} if hasattr(signal, "SIGCHLD") else {}):
        yield


def serve(parent: int, worker: int = 0) -> None:
    """Have this process, a worker of a run, leave signals to its parent and end with it. A terminal, `timeout`, systemd
    and SLURM send theirs to the whole group, and a run whose workers have died of them cannot finish its step.

    Args:
        parent, worker: as end_with.
    """
    for number in (*stops(), *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else [])):
        signal.signal(number, signal.SIG_IGN)
    end_with(parent, worker)


def end_with(parent: int, worker: int = 0, by: int | None = None) -> None:
    """Have this process end when its parent does, however that ends: the kernel sees to it on Linux, a thread that
    looks now and then elsewhere. A worker that waits to write into a pipe which nobody reads would outlive it for ever.

    Args:
        parent: its process number.
        worker: which of several this is; torch says it, and nothing here depends on it.
        by: the signal that it then gets; None = it ends at once.
    """

    def end() -> None:
        if by is None:
            os._exit(1)
        os.kill(os.getpid(), by)

    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        pr_set_pdeathsig = 1
        prctl(pr_set_pdeathsig, signal.SIGKILL if by is None else by)
        if os.getppid() != parent:  # it ended before
            end()
        return

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(2)
        end()

    threading.Thread(target=look, daemon=True).start()


def child_of_this() -> dict[str, str]:
    """What to add to the environment of a command that this process starts, so that it saves and ends, as by SIGTERM,
    where this process does, however that does: nobody else would stop what was started for its sake."""
    return {_PARENT: str(os.getpid())}


def _heed_parent() -> None:
    parent = os.environ.pop(_PARENT, "")  # whatever this process starts is not the other's child
    if parent.isdigit():
        end_with(int(parent), by=signal.SIGTERM)


@contextmanager
def no_save_kills() -> Iterator[None]:
    """SIGUSR1, which ends a process that does not expect it, does nothing in the block where nothing is to be saved."""
    with handled({signal.SIGUSR1: lambda number, frame: None} if hasattr(signal, "SIGUSR1") else {}):
        yield


@contextmanager
def stopping() -> Iterator[None]:
    """SIGTERM and SIGHUP (unless it is ignored) end the block as Ctrl-C does, so that it can clear up."""

    def stop(number: int, frame: FrameType | None) -> None:
        Stopped.by = int(number)
        raise Stopped

    with handled({number: once(stop) for number in stops() if number != signal.SIGINT}):
        yield


@contextmanager
def guarded() -> Iterator[None]:
    """A command, from its first line to its last: no signal ends it before it could clear up, and SIGUSR1 never."""
    Stopped.by = 0
    with no_save_kills(), stopping():
        _heed_parent()
        yield


def stops() -> list[int]:
    """The signals that ask to stop: SIGINT, SIGTERM, and SIGHUP unless it is ignored."""
    hangup = hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN
    return [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hangup else [])]


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

    handlers: dict[int, Handler] = dict.fromkeys(stops(), once(stop))
    if hasattr(signal, "SIGUSR1"):
        handlers[signal.SIGUSR1] = save
    with handled(handlers):
        yield requests
