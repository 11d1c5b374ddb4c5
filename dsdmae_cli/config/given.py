"""What a person gave: one object from the command line, or from Python, to the settings. Nothing is imported for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Given:
    """What was given to a command that takes settings, on its command line or from Python.

    Attributes:
        flags: {"train.epochs": "5"}, of the flags that were given.
        origins: {"train.epochs": "argument epochs"}: who says so, for messages, where it is no flag.
        subject: what is judged.
        preset: names of presets.
        config: a TOML file.
        assignments: the texts of --set.
        like: whose data and backbone to take for scratch.
        out: the run's directory.
        resume: go on with the run there.
        accept_changes: to a run that is resumed.
        dry_run: say what would be.
        json: for scripts.
        debug: show the traceback of an error; __main__ sees to it.
    """

    flags: Mapping[str, Any] = field(default_factory=dict)
    origins: Mapping[str, str] = field(default_factory=dict)
    subject: str | None = None
    preset: tuple[str, ...] | None = None
    config: Path | None = None
    assignments: tuple[str, ...] | None = None
    like: str | None = None
    out: Path | None = None
    resume: bool = False
    accept_changes: bool = False
    dry_run: bool = False
    json: bool = False
    debug: bool = False

    @property
    def any_setting(self) -> bool:
        """Whether anything was said about settings."""
        places = (self.subject, self.preset, self.config, self.assignments, self.like)
        return bool(self.flags) or any(place is not None for place in places)
