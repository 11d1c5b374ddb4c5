"""What the person sees while a run trains."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dsdmae_cli.report import Report
from dsdmae_cli.runs.observers.base import Observer

if TYPE_CHECKING:
    from dsdmae_cli.runs.run import Run


class Progress(Observer):
    """Tells a Report."""

    def __init__(self, report: Report) -> None:
        self.report = report

    def begin(self, run: Run) -> None:
        self.report.start(run.trainer.total_steps, run.trainer.step, run.trainer.steps_per_epoch)

    def stepped(self, run: Run, step: int) -> None:
        self.report.stepped(step)

    def recorded(self, run: Run, record: dict[str, Any]) -> None:
        self.report.record(record)

    def close(self) -> None:
        self.report.stop()
