"""Who works in a run's directory: its lock, which is the operating system's and ends with the process that holds it."""

from __future__ import annotations

import sys
from pathlib import Path

from filelock import FileLock, Timeout

from dsdmae_cli.errors import SettingsError

if sys.platform != "win32":
    import fcntl

LOCK = ".lock"


def busy(folder: Path) -> bool:
    """Whether a process works in a run directory, which may be somebody else's: it is only read, and of two that ask at
    once neither takes the other for a run.
    """
    if not (folder / LOCK).exists():
        return False
    if sys.platform != "win32":
        try:
            with (folder / LOCK).open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared; the run's own, filelock's, is not
        except BlockingIOError:
            return True
        except PermissionError:
            return False
        except OSError:  # a file system without locks, where filelock has another way
            pass
        else:
            return False
    try:
        with FileLock(folder / LOCK, timeout=0):
            return False
    except Timeout:
        return True


def refuse_busy(folder: Path) -> None:
    """Refuse a run directory in which a process works.

    Raises:
        SettingsError: one does.
    """
    if busy(folder):
        raise held_by_another(folder)


def held_by_another(folder: Path) -> SettingsError:
    """What is said to whoever wants a directory in which another process works."""
    return SettingsError(f"another process is running in {folder}; wait for it, stop it, or choose another --out")
