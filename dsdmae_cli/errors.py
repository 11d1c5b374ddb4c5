"""One family of errors for people; programmers get asserts.

A message is one line: which key or file, what was got, what is allowed, what to do next. The command line prints
it on stderr and exits with `exit_code`; `--debug` shows the traceback.
"""

from __future__ import annotations

import errno
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

# What the words of a file that cannot be written end with.
RESUME = "what was saved before is intact. Make room, then go on with --resume"
AGAIN = "nothing was left behind. Make room, then start again"
SAME = "what is done is kept. Make room, then give the same command again"
# What the system runs out of, and what to do about it.
SHORTAGES = {
    errno.EMFILE: "raise the limit of open files (ulimit -n), or lower --set data.workers",
    errno.ENFILE: "end other programs, or lower --set data.workers",
    errno.ENOMEM: "end other programs, or give it less at once",
    errno.EAGAIN: "raise the limit of processes (ulimit -u), or lower --set data.workers",
}


# What libraries say where memory runs out: torch, C++, the loader of their shared objects, oneDNN.
_NO_MEMORY = ("can't allocate memory", "bad_alloc", "failed to map segment", "could not create a primitive")


class DsdmaeError(Exception):
    """Something the person who runs the program can mend.

    Attributes:
        said_elsewhere: another process of the same run prints it.
    """

    exit_code = 2
    said_elsewhere = False


class SettingsError(DsdmaeError):
    """A setting, flag, preset or configuration file is wrong."""


class PluginError(DsdmaeError):
    """A plugin is missing, broken, or asked for something it cannot do."""


@contextmanager
def of_a_plugin(reference: str) -> Iterator[None]:
    """A block of a plugin's code: what it prints is no result of ours and goes to stderr, and it does not end the
    program, by sys.exit or by an exception of a kind that nobody catches. Errors stay what they are, since they
    themselves say best what is wrong.

    Raises:
        PluginError: it would have ended the program.
    """
    try:
        with redirect_stdout(sys.stderr):
            yield
    except (Exception, KeyboardInterrupt):  # that is not to be told from a person's
        raise
    except BaseException as error:
        raise PluginError(f"a plugin's {reference!r} raised {type(error).__name__}: {error}") from error


class DataError(DsdmaeError):
    """A dataset is missing, damaged, or holds nothing usable."""


class CheckpointError(DsdmaeError):
    """A checkpoint or weights file is missing, damaged, or of another shape."""


class RunFailed(DsdmaeError):  # noqa: N818  (it names what happened, as a person would say it)
    """The settings were fine but the run could not go on: non-finite losses, a full disk, a lost worker."""

    exit_code = 1


class RunInterrupted(DsdmaeError):  # noqa: N818
    """A signal asked the run to stop; it saved and can be resumed.

    The exit code is 128 + the signal's number, as shells report it: 130 for SIGINT, 143 for SIGTERM.

    Attributes:
        by: which signal, as a person knows it.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number
        self.by = signal_words(signal_number)


def is_lack_of_memory(error: BaseException) -> bool:
    """Whether an error says that the host's memory ran out, in any library's words."""
    text = (str(error).splitlines() or [""])[0]
    return isinstance(error, MemoryError) or any(sign in text for sign in _NO_MEMORY)


def signal_words(number: int) -> str:
    """A signal as a person knows it: "Ctrl-C", "signal 15"."""
    return "Ctrl-C" if number == signal.SIGINT else f"signal {int(number)}"


def nearest(word: str, known: list[str]) -> str:
    """The "did you mean" part of a message, or an empty string when nothing is close."""
    from difflib import get_close_matches

    by_lower = {name.lower(): name for name in reversed(known)}
    close = get_close_matches(word.lower(), list(by_lower), n=1, cutoff=0.6)
    return f" (did you mean {by_lower[close[0]]}?)" if close else ""
