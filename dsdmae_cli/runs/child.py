"""A command in a process of its own, as `dsdmae ablate` and `dsdmae worth` run many of them beside each other.

A crash, a kill or exhausted memory then takes down one run and not all, and every run is made by the very command that
a person would type.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from dsdmae_cli.signals import child_of_this

State = Literal["running", "done", "failed", "stopped"]


@dataclass(frozen=True)
class Slot:
    """A place where children run.

    Attributes:
        name: for tables: "cpu 1", "gpu 0".
        environ: what a child's environment has beside the program's own.
    """

    name: str
    environ: dict[str, str]


class Child:
    """A process of `dsdmae WORDS`. `poll` looks at it; nothing here waits but `kill`.

    Args:
        words: what a person would type after `dsdmae`.
        log: file that what it says is appended to.
        slot: where it runs.
        settings: variables of the environment that are settings of this command; it gets no others of ours.
    """

    def __init__(
        self, words: Sequence[str], log: Path, slot: Slot, settings: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        self.log = log
        self.reason = ""
        self._stopping = False
        # A settings file says all; a variable would stand above it.
        environ = {k: v for k, v in os.environ.items() if not k.startswith("DSDMAE_")}
        environ |= slot.environ | child_of_this() | dict(settings)
        with log.open("ab") as file:
            # Out of the terminal's reach: Ctrl-C is for the parent, which then stops its children in order.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "dsdmae_cli", *words],
                env=environ, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True,
            )  # fmt: skip

    def poll(self) -> State:
        """Where it stands; why it failed is then in `reason`."""
        code = self._process.poll()
        if code is None:
            return "running"
        if code == 0:
            return "done"
        if self._stopping:
            return "stopped"
        self.reason = _reason(code, self.log)
        return "failed"

    def stop(self) -> None:
        """Ask it to save and end."""
        if not self._stopping:
            self._process.send_signal(signal.SIGTERM)
        self._stopping = True

    def kill(self) -> None:
        """End it at once; its files are whole, what it did since its last checkpoint is lost."""
        self._process.kill()
        self._process.wait()


def _reason(code: int, log: Path) -> str:
    """Why a command failed, in its own last words."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    last = lines[-1].removeprefix("dsdmae: error: ").removeprefix("dsdmae: ") if lines else "it said nothing"
    if code < 0:
        name = signal.Signals(-code).name
        return f"killed by {name}" + (" (out of memory?)" if -code == signal.SIGKILL else "") + f"; last said: {last}"
    return last
