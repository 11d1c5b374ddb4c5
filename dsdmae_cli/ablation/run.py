"""The loop of a study: claim trials, run them, watch them, write the report. One thread; children do the work."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dsdmae_cli.ablation.definition import trial_name
from dsdmae_cli.ablation.plans import Plans
from dsdmae_cli.ablation.progress import Progress, View
from dsdmae_cli.ablation.remaining import time_left
from dsdmae_cli.ablation.study import Row, Study
from dsdmae_cli.ablation.trial import Job
from dsdmae_cli.errors import DsdmaeError, RunFailed, RunInterrupted
from dsdmae_cli.report import duration
from dsdmae_cli.runs.child import Slot
from dsdmae_cli.signals import handled, once, stops

_POLL_SECONDS = 0.2
_LOOK_SECONDS = 2.0  # between looks at the storage, which several processes may share
_WRITE_SECONDS = 60.0  # between reports on the way: short studies have the one at their end


class Runner:
    """Works on a study until nothing is left to do.

    Args:
        study: the book-keeping.
        folder: where trials are kept.
        slots: where they run.
        plans: their work.
        progress: what is seen.
        write: is called with the time left, in words, after each minute in which a trial has ended, here or elsewhere.
    """

    def __init__(
        self,
        study: Study,
        folder: Path,
        slots: list[Slot],
        plans: Plans,
        progress: Progress,
        write: Callable[[str], None] = lambda left: None,
    ) -> None:
        self.study = study
        self.definition = study.definition
        self.folder = folder
        self.free = list(slots)
        self.plans = plans
        self.progress = progress
        self.jobs: dict[int, tuple[Row, Job]] = {}
        self.looked = -_LOOK_SECONDS
        self.rows: list[Row] = []
        self.ended = False
        self.write = write
        self.written = (time.monotonic(), 0)  # when, with how many trials that had ended

    def run(self) -> None:
        """Run trials until all are done, here or by others.

        Raises:
            RunInterrupted: a signal asked to stop; the runs were saved, their trials queued.
        """
        with _listening() as signals:
            self.study.top_up()
            try:
                while not signals and not self.ended:
                    self._turn()
                    time.sleep(_POLL_SECONDS)
                if signals:
                    self._stop(signals)
            except BaseException:
                for _, job in self.jobs.values():
                    job.kill()
                self.study.close()
                raise

    def _turn(self) -> None:
        for row, job in list(self.jobs.values()):
            self._watch(row, job)
        if time.monotonic() - self.looked > _LOOK_SECONDS:
            self._look()
        self.study.beat()
        jobs = {number: job for number, (_, job) in self.jobs.items()}
        self.progress.show(View(self.rows, jobs, self._undrawn, self._left(), self._note()))

    def _look(self) -> None:
        """At what the others do; take what is free."""
        self.study.reclaim()
        while self.free and (row := self.study.claim()) is not None:
            self._begin(row)
        self.rows = self.study.rows()
        self.looked = time.monotonic()
        if not self.jobs and not any(row.state in ("running", "waiting") for row in self.rows):
            self.ended = True
        ended = sum(row.state in ("done", "pruned", "failed") for row in self.rows)
        if not self.ended and ended > self.written[1] and self.looked - self.written[0] > _WRITE_SECONDS:
            self.write(self._left())
            self.written = (time.monotonic(), ended)

    def _begin(self, row: Row) -> None:
        try:
            plan = self.plans.of(row.point)
        except DsdmaeError as error:  # of a point that a search drew
            self.study.fail(row, str(error))
            self.progress.event(row, f"failed: {error}")
            return
        slot = self.free.pop(0)
        loaded = self.plans.settings(row.point, row.seed)
        job = Job(
            self.folder,
            trial_name(row.point, row.seed),
            loaded,
            self.definition.metric,
            self.definition.metric_options,
            slot,
            plan.steps,
            self.definition.also,
            self.definition.environment,
        )
        self.jobs[row.number] = (row, job)
        self.progress.event(row, f"begins ({slot.name})")

    def _watch(self, row: Row, job: Job) -> None:
        state = job.poll()
        worse = self._follow(row, job)
        if state == "running" and not worse:
            return
        if state == "running":
            self._prune(row, job)
        elif state == "done":
            self._finish(row, job)
        else:
            reason = job.reason if state == "failed" else "stopped"
            self.study.fail(row, reason)
            self.progress.event(row, f"failed: {reason}")
        del self.jobs[row.number]
        self.free.append(job.slot)
        self.looked = -_LOOK_SECONDS  # the place is free: fill it at once

    def _follow(self, row: Row, job: Job) -> bool:
        """Read what the run has written; whether it should be pruned."""
        metric = "loss" if self.definition.metric.name == "loss" else "knn"
        worse = False
        for record in job.news():
            if metric in record and record["step"]:
                share = record["step"] / job.steps
                worse = self.study.report(row, share, record[metric]) or worse
        return worse and job.doing == "pretrain" and job.share < 1

    def _prune(self, row: Row, job: Job) -> None:
        """Stop a run that does worse than the others; it is saved, and could be resumed by hand."""
        job.stop()
        while job.poll() == "running":
            time.sleep(_POLL_SECONDS)
        facts = {
            "run": job.name,
            "knn": job.shown.get("knn"),
            "loss": job.shown.get("loss"),
            "steps": job.step,
            "seconds": round(time.monotonic() - job.began, 1),
            "gflop": job.share * self.plans.work(row.point),
            "share": job.share,
        }
        reason = f"pruned at {job.share:.0%}: worse than the median there"
        self.study.prune(row, facts, reason)
        self.progress.event(row, reason)

    def _finish(self, row: Row, job: Job) -> None:
        try:
            value, facts = job.outcome()
            reason = f"the run has no {self.definition.metric.label}: its images have no labels; use --metric loss"
        except RunFailed as error:
            value, facts, reason = None, {}, str(error)
        if value is None:
            self.study.fail(row, reason)
            self.progress.event(row, f"failed: {reason}")
            return
        facts["gflop"] = self.plans.of(row.point).gflop_per_image * facts["images"]
        facts["budget_gflop"] = self.plans.budget
        facts["host"] = self.study.owner["host"]
        self.study.finish(row, value, facts)
        metric = self.definition.metric
        self.progress.event(row, f"{metric.label} {metric.show(value)} after {duration(facts['seconds'])}")

    def _stop(self, signals: list[int]) -> None:
        """Let the runs save and end; a second signal ends them at once."""
        self.progress.note("stopping: each run is saved first (again to stop at once)")
        for _, job in self.jobs.values():
            job.stop()
        while self.jobs:
            if len(signals) > 1:
                for _, job in self.jobs.values():
                    job.kill()
            for number, (row, job) in list(self.jobs.items()):
                state = job.poll()
                if state == "running":
                    continue
                job.news()
                if state == "done":
                    self._finish(row, job)
                else:
                    self.study.stop(row, f"stopped at {job.share:.0%}")
                del self.jobs[number]
            time.sleep(_POLL_SECONDS)
        self.rows = self.study.rows()
        raise RunInterrupted("stopped", signals[0])

    @property
    def _undrawn(self) -> int:
        """Trials of a search whose points are not drawn yet."""
        return max(0, (self.definition.trials or 0) * self.definition.seeds - len(self.rows))

    def _left(self) -> str:
        rows = self.rows + [Row(-1, {}, 0, "waiting")] * self._undrawn
        jobs = list(self.jobs.values())
        return time_left(rows, jobs, self.plans.likely_work, judges=bool(self.definition.judges))

    def _note(self) -> str:
        if self.jobs or not any(row.state == "running" for row in self.rows):
            return ""
        return "nothing left to start; waiting for the trials of others"


@contextmanager
def _listening() -> Iterator[list[int]]:
    """The numbers of the signals that asked to stop since the block began."""
    asked: list[int] = []
    with handled(dict.fromkeys(stops(), once(lambda number, frame: asked.append(number)))):
        yield asked


def total_failure(rows: list[Row]) -> RunFailed | None:
    """The error of a study of which nothing came."""
    failed = [row for row in rows if row.state == "failed"]
    if failed and not any(row.state in ("done", "pruned") for row in rows):
        return RunFailed(f"all {len(failed)} trials failed, the first because: {failed[0].reason}")
    return None


def as_json(row: Row) -> dict[str, Any]:
    """A trial for scripts."""
    return {"settings": row.point, "seed": row.seed, "state": row.state, "value": row.value, "reason": row.reason} | {
        "facts": row.facts
    }
