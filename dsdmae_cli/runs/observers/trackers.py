"""Trackers, which are plugins (dsdmae_cli.tracking): told by a run that is observed, and by a probe."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsdmae_cli import distributed, plugins
from dsdmae_cli.config.describe import tables
from dsdmae_cli.errors import DsdmaeError
from dsdmae_cli.report import Report, without_password
from dsdmae_cli.runs.observers.base import Observer
from dsdmae_cli.tracking import TrackedRun, Tracker

if TYPE_CHECKING:
    from dsdmae_cli.runs.run import Run


def check_usable(names: Sequence[str]) -> None:
    """See that trackers are there and have what they need, before anything is loaded or written.

    Raises:
        PluginError: there is no such tracker.
        SettingsError: what it needs is not installed.
    """
    for name in names:
        usable = getattr(plugins.load(plugins.find("tracker", name).spec.build), "usable", None)
        if usable is not None:  # a function may build a tracker too
            usable()


class Told:
    """Some trackers of one run. One that fails is left out from then on: a run never ends for want of a curve.

    Args:
        names: as train.trackers has them.

    Raises:
        PluginError: there is no such tracker.
    """

    def __init__(self, names: Sequence[str], report: Report) -> None:
        self.report = report
        self.builds = {name: plugins.load(plugins.find("tracker", name).spec.build) for name in names}
        self.open: dict[str, Tracker] = {}

    def begin(self, path: Path, command: str, settings: Mapping[str, Mapping[str, Any]], resumed_at: int = 0) -> None:
        """Open them all.

        Raises:
            DsdmaeError: one says that a person has to do something first (a key is missing). Whatever else goes wrong
                is a warning: a server that is away is no reason not to train.
        """
        for name, build in self.builds.items():
            try:
                with redirect_stdout(sys.stderr):  # stdout is ours, and may be one JSON object
                    self.open[name] = build(TrackedRun(name, path, command, settings, resumed_at))
            except (DsdmaeError, KeyboardInterrupt):  # that is not to be told from a person's
                raise
            except BaseException as error:
                self._left_out(name, f"{type(error).__name__}: {error}")

    def log(self, record: Mapping[str, float]) -> None:
        """Figures of one moment."""
        self._tell(lambda tracker: tracker.log(record))

    def picture(self, file: Path, step: int) -> None:
        """A picture of one moment."""
        self._tell(lambda tracker: tracker.picture(file, step))

    def close(self, result: Mapping[str, Any] | None) -> None:
        """The run is over."""
        self._tell(lambda tracker: tracker.close(result))
        self.open.clear()

    def _tell(self, what: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self.open.items()):
            try:
                with redirect_stdout(sys.stderr):
                    what(tracker)
            except KeyboardInterrupt:
                raise
            except DsdmaeError as error:
                self._left_out(name, str(error))
            except BaseException as error:  # a plugin may fail in any way, and none of them is worth a day of training
                self._left_out(name, f"{type(error).__name__}: {error}")

    def _left_out(self, name: str, why: str) -> None:
        self.open.pop(name, None)
        self.report.warn(f"tracker {name} failed and is told no more: {without_password(' '.join(why.split()))}")


class Trackers(Observer):
    """Passes on what a run logs and draws, in the first process alone.

    Args:
        names: as train.trackers has them.

    Raises:
        PluginError: there is no such tracker.
    """

    def __init__(self, names: tuple[str, ...], report: Report) -> None:
        self.told = Told(names, report)
        self.result: dict[str, Any] | None = None

    def begin(self, run: Run) -> None:
        with distributed.one_fate():
            if run.main:
                self.told.begin(run.directory.path, run.command, tables(run.settings), run.trainer.step)

    def recorded(self, run: Run, record: dict[str, Any]) -> None:
        self.told.log(record)

    def pictured(self, run: Run, file: Path, step: int) -> None:
        self.told.picture(file, step)

    def end(self, run: Run) -> None:
        self.result = run.result

    def close(self) -> None:
        self.told.close(self.result)
