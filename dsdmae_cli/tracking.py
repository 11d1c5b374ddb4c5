"""What a tracker is to this program, and what its author must read. No torch here.

A tracker is told of a run's figures as they come: TensorBoard is one, and a plugin may bring any other
(`dsdmae plugins new tracker NAME`). `--set train.trackers=[NAME]` switches it on, in the first process alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told when a run begins.

    Attributes:
        name: by which it was asked for, with an argument after a colon if it takes one (plugins.argument_of).
        path: the run's directory; a tracker that writes files does so in a folder of its own below it.
        command: "pretrain" or "finetune".
        settings: all tables of settings, every "auto" decided.
        resumed_at: steps that the run had done before, 0 for a new one.
    """

    name: str
    path: Path
    command: str
    settings: Mapping[str, Mapping[str, Any]]
    resumed_at: int


class Tracker:
    """Receives the figures of a run. An exception of its own ends the tracker with a warning, never the run."""

    def log(self, record: Mapping[str, float]) -> None:
        """Figures of one moment by name, "step" and "epoch" among them; several times a run, in order."""
        raise AssertionError("a tracker overrides log")

    def close(self, result: Mapping[str, Any] | None) -> None:
        """The run is over; result.json's content, or None where it was stopped or failed."""
