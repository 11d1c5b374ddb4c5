"""What the person sees while a run trains."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dsdmae_cli.report import Report
from dsdmae_cli.runs.observers.base import Observer
from dsdmae_cli.runs.observers.features import Features

if TYPE_CHECKING:
    from dsdmae_cli.runs.run import Run


class Progress(Observer):
    """Tells a Report."""

    def __init__(self, report: Report) -> None:
        self.report = report

    def open(self, run: Run) -> None:
        """Before all observers begin, so that the screen lives while they look at the untrained network."""
        trainer = run.trainer
        watched = next((len(o.images) for o in run.observers if isinstance(o, Features)), None)
        # Centred features of n images have n - 1 directions at most.
        directions = None if watched is None else min(run.method.encoder().width, watched - 1)
        self.report.start(trainer.total_steps, trainer.step, trainer.steps_per_epoch, directions)

    def begin(self, run: Run) -> None:
        self.report.ready()

    def stepped(self, run: Run, step: int) -> None:
        self.report.stepped(step)
        if self.report.wants_figures():
            self.report.figures(run.trainer.figures())

    def recorded(self, run: Run, record: dict[str, Any]) -> None:
        self.report.record(record)

    def epoch_ended(self, run: Run, epoch: int, last: bool) -> None:
        self.report.epoch_ended(epoch)

    def close(self) -> None:
        self.report.stop()
