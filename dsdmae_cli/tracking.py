"""What a tracker is to this program, and what its author must read. No torch here.

A tracker is told of a run's figures as they come: TensorBoard is one, and a plugin may bring any other
(`dsdmae plugins new tracker NAME`). `--track NAME` switches it on, in the first process alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dsdmae_cli.errors import SettingsError
from dsdmae_cli.files import parsed_json, read_within, write_bytes

# In a run's directory: by what name each tracker knows the run, so that a resumed one goes on as the same.
KEPT = "trackers.json"


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told when a run begins.

    Attributes:
        name: by which it was asked for, with an argument after a colon if it takes one (plugins.argument_of).
        path: the run's directory; a tracker that writes files does so in a folder of its own below it.
        command: "pretrain", "tokenizer", "finetune" or "probe".
        settings: all tables of settings, every "auto" decided.
        resumed_at: steps that the run had done before, 0 for a new one.
    """

    name: str
    path: Path
    command: str
    settings: Mapping[str, Mapping[str, Any]]
    resumed_at: int

    def identity(self) -> str | None:
        """What the tracker had `keep` write down when the run began; None for a new run, or one not tracked so far."""
        return _kept(self.path).get(self.name)

    def keep(self, identity: str) -> None:
        """Write down by what name the tracker knows this run, for when it is resumed."""
        write_bytes(self.path / KEPT, json.dumps(_kept(self.path) | {self.name: identity}, indent=2).encode() + b"\n")


class Tracker:
    """Receives the figures of a run. An exception of its own ends the tracker with a warning, never the run."""

    @classmethod
    def usable(cls) -> None:
        """Asked before anything is loaded; raises SettingsError where what it needs is not installed (see `need`)."""

    def log(self, record: Mapping[str, float]) -> None:
        """Figures of one moment by name, "step" and "epoch" among them; several times a run, in order."""
        raise AssertionError("a tracker overrides log")

    def picture(self, file: Path, step: int) -> None:
        """A picture of this step, a PNG that lies in the run's figures/; NAME-step-N.png where it is one of several
        moments. A tracker that takes no pictures leaves this as it is."""

    def close(self, result: Mapping[str, Any] | None) -> None:
        """The run is over; result.json's content, or None where it was stopped or failed."""


def need(name: str, package: str, install: str) -> None:
    """See that a package can be imported, without importing it.

    Args:
        name: the tracker's.
        package: the name that is imported.
        install: the command that installs it.

    Raises:
        SettingsError: it cannot.
    """
    try:
        spec = find_spec(package)
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None:  # a folder of that name, which a tracker may have left here, is no package
        raise SettingsError(f"tracker {name} (--track, train.trackers) needs {package}, which is not here; {install}")


def flat(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Settings by their whole names, for trackers that know no tables: {"train.epochs": 5}."""
    return {f"{section}.{key}": value for section, table in settings.items() for key, value in table.items()}


def final_figures(result: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of result.json: scores, cost, last losses ("final.loss"), ends of intervals ("top1_interval.0")."""
    found: dict[str, float] = {}
    for name, value in result.items():
        parts = (
            value.items()
            if isinstance(value, dict)
            else enumerate(value)
            if isinstance(value, list) and len(value) == 2
            else ()
        )
        found |= {f"{name}.{key}": part for key, part in parts if _is_number(part)}
        if _is_number(value):
            found[name] = value
    return found


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _kept(path: Path) -> dict[str, str]:
    with suppress(OSError, ValueError):  # a damaged one is written anew, and the tracker begins anew
        kept = parsed_json(read_within(path / KEPT))
        if isinstance(kept, dict):
            return {str(name): str(identity) for name, identity in kept.items()}
    return {}
