"""The page of a run, written anew as the run goes (dsdmae_cli.page says what is on it)."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from dsdmae_cli.config.describe import tables
from dsdmae_cli.page.blocks import State
from dsdmae_cli.page.curves import Curves
from dsdmae_cli.page.document import write_charts
from dsdmae_cli.page.run import Story, where, write_page
from dsdmae_cli.runs.observers.base import Observer
from dsdmae_cli.runs.rundir import PAGE, RUN
from dsdmae_cli.work import measure_work

if TYPE_CHECKING:
    from dsdmae_cli.runs.run import Run

# Of a run's time the page takes a hundredth at most; within a long epoch it is written as often as this.
_SHARE = 100
_SECONDS = 60.0
_PATIENCE = 600.0
_MOST_KEPT = 200  # warnings that run.json keeps


class PageWriter(Observer):
    """Writes report.html at ends of epochs and while an epoch is long; in the first process alone.

    It is an ornament: what keeps it from being written is a warning, once, and the run goes on.

    Attributes:
        before: warnings of earlier parts of a resumed run.
    """

    def __init__(self) -> None:
        self.curves = Curves()
        self.before: list[str] = []
        self.kept = 0
        self.flops: float | None = None
        self.of_image: float | None = None
        self.longest = self.cost = 0.0
        self.began = self.wrote = time.monotonic()
        self.first_step = 0
        self.complained = False

    def open(self, run: Run) -> None:
        """Before all observers begin, which may take a while: there is a page from here on."""
        self.began = self.wrote = time.monotonic()
        self.first_step = run.trainer.step
        # In every process: what a method draws for all of them is exchanged.
        with run.report.spared("the count of its work"), run.trainer.gathered():
            self.of_image = measure_work(run.method)[0]
        if run.main:
            self.curves = Curves(run.directory.metrics())
            self._write(run, "running")

    def begin(self, run: Run) -> None:
        self._write(run, "running")

    def recorded(self, run: Run, record: dict[str, Any]) -> None:
        self.curves.add(record)
        if time.monotonic() - self.wrote > _SECONDS:
            self._write_if_due(run)

    def epoch_ended(self, run: Run, epoch: int, last: bool) -> None:
        self._write_if_due(run)

    def end(self, run: Run) -> None:
        if self.of_image is not None:
            self.flops = self.of_image * run.images_seen
        self._write(run, "done")
        with run.report.spared("the figures of the curves"):
            story = self._story(run, "done", "")
            write_charts(self.curves.charts(story.before), run.directory.figures, where(story))

    def over(self, run: Run, state: State, why: str) -> None:
        """It was stopped, or failed, and will be so until it is resumed."""
        self._write(run, state, why)

    def _write_if_due(self, run: Run) -> None:
        if time.monotonic() - self.wrote > _SHARE * self.cost:
            self._write(run, "running")

    def _write(self, run: Run, state: State, why: str = "") -> None:
        if not run.main:
            return
        began = time.monotonic()
        self.longest = max(self.longest, began - self.wrote)
        try:
            self._keep_warnings(run)
            write_page(self._story(run, state, why))
        except Exception as error:  # whatever it is, it is not worth a day of training
            if not self.complained:
                first = (str(error).splitlines() or [""])[0]
                run.report.warn(f"the page {PAGE} could not be written ({type(error).__name__}: {first})")
            self.complained = True
        self.wrote = time.monotonic()
        self.cost = self.wrote - began

    def _warnings(self, run: Run) -> list[str]:
        return [*self.before, *run.report.warnings][:_MOST_KEPT]

    def _keep_warnings(self, run: Run) -> None:
        """In run.json, for the page of the run when it is resumed."""
        found = self._warnings(run)
        if len(found) > self.kept:
            run.directory.write_json(RUN, {**run.directory.read_json(RUN), "warnings": found})
            self.kept = len(found)

    def _story(self, run: Run, state: State, why: str) -> Story:
        done = run.trainer.step - self.first_step
        passed = time.monotonic() - self.began
        left = passed / done * (run.trainer.total_steps - run.trainer.step) if done else None
        return Story(
            folder=run.directory.path,
            command=run.command,
            state=state,
            why=why,
            epochs=run.settings.train.epochs,
            seconds=run.result.get("seconds") or run.seconds(),
            left=left,
            patience=max(_PATIENCE, 5 * self.longest),
            settings=tables(run.settings),
            asked=tables(run.asked),
            about=run.about,
            curves=self.curves,
            result=run.result,
            warnings=self._warnings(run),
            flops=self.flops,
        )
