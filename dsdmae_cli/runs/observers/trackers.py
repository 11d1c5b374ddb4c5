"""Trackers, which are plugins (dsdmae_cli.tracking), as observers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dsdmae_cli import plugins
from dsdmae_cli.config.describe import tables
from dsdmae_cli.errors import DsdmaeError
from dsdmae_cli.report import Report
from dsdmae_cli.runs.observers.base import Observer
from dsdmae_cli.tracking import TrackedRun, Tracker

if TYPE_CHECKING:
    from dsdmae_cli.runs.run import Run


class Trackers(Observer):
    """Passes records on. A tracker that fails is left out from then on: a run never ends for want of a curve.

    Args:
        names: as train.trackers has them.

    Raises:
        PluginError: there is no such tracker.
    """

    def __init__(self, names: tuple[str, ...], report: Report) -> None:
        self.report = report
        self.builds = {name: plugins.load(plugins.find("tracker", name).spec.build) for name in names}
        self.open: dict[str, Tracker] = {}
        self.result: dict[str, Any] | None = None

    def begin(self, run: Run) -> None:
        if not run.main:
            return
        for name, build in self.builds.items():
            told = TrackedRun(name, run.directory.path, run.command, tables(run.settings), run.trainer.step)
            self.open[name] = build(told)

    def recorded(self, run: Run, record: dict[str, Any]) -> None:
        for name in list(self.open):
            self._tell(name, lambda tracker: tracker.log(record))

    def end(self, run: Run) -> None:
        self.result = run.result

    def close(self) -> None:
        for name in list(self.open):
            self._tell(name, lambda tracker: tracker.close(self.result))
            self.open.pop(name, None)

    def _tell(self, name: str, what: Any) -> None:
        try:
            what(self.open[name])
        except DsdmaeError as error:
            self._left_out(name, str(error))
        except Exception as error:  # a plugin may fail in any way, and none of them is worth a day of training
            self._left_out(name, f"{type(error).__name__}: {error}")

    def _left_out(self, name: str, why: str) -> None:
        del self.open[name]
        self.report.warn(f"tracker {name} failed and is told no more: {' '.join(why.split())}")
