"""The study's book-keeping on Optuna: which trials there are, who runs which, what became of them.

A trial of Optuna is one run: a point and a seed, kept in its user attributes. Several processes may work on one study.
What makes that safe:

- Optuna lets a waiting trial be claimed once, and a trial be ended once; both are atomic in every storage.
- Of two trials of the same point and seed only the older counts; the other is dropped when it is claimed.
- A grid may grow while others work on it (`--sweep` with more values): they take its trials too, and report them.
- A running trial says who runs it, and beats. One whose process is gone (same host) or that has not beaten for
  `_SILENT_SECONDS` is ended as "lost" and queued again; its run directory is resumed.
"""

from __future__ import annotations

import json
import os
import platform
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import psutil
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, Trial, TrialState

from dsdmae_cli.ablation.definition import Definition, check_same, widened
from dsdmae_cli.ablation.storage import Books, cannot_open
from dsdmae_cli.ablation.sweep import Axis, Point
from dsdmae_cli.ablation.values import drawn_text
from dsdmae_cli.errors import DsdmaeError
from dsdmae_cli.report import without_password

_BEAT_SECONDS = 20.0
_SILENT_SECONDS = 120.0
# Why a trial ended without a result: only the first is an outcome, the others are book-keeping.
_FAILED, _LOST, _STOPPED, _SURPLUS = "failed", "lost", "stopped", "surplus"
_PRUNE_FROM = 0.3  # share of a run: before that, every run looks bad
_MOST_REPEATS = 50  # draws in a row that were there already, before a search space counts as used up

Identity = tuple[str, int]


@dataclass
class Row:
    """A trial as tables show it; `state` is waiting, running, done, pruned, failed or stopped."""

    number: int
    point: Point
    seed: int
    state: str
    value: float | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    reason: str | None = None
    mine: bool = False

    @property
    def identity(self) -> Identity:
        """Point and seed."""
        return _identity(self.point, self.seed)


def _identity(point: Point, seed: int) -> Identity:
    return json.dumps(point, sort_keys=True), seed


class Study:
    """A study in its storage, as one process sees it.

    Args:
        definition: what is asked for.
        storage: a database URL, or the file of the journal.
        retry_failed: run failed trials once more.

    Raises:
        SettingsError: the storage cannot be opened, or holds another study.
    """

    def __init__(self, definition: Definition, storage: str | Path, retry_failed: bool = False) -> None:
        self.definition = definition
        self.owner = {"host": platform.node(), "pid": os.getpid(), "started": psutil.Process().create_time()}
        self._mine: dict[int, Trial] = {}
        self._heard: dict[int, tuple[float | None, float]] = {}  # trial -> (its last beat, when we first saw that)
        self._beaten = 0.0
        self._repeats = 0
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._books = Books(storage)
        self._study = self._open(storage)
        failed = [t for t in self._trials() if retry_failed and _note(t) == _FAILED]
        self._retry = {t.number: _identity(t.user_attrs["point"], t.user_attrs["seed"]) for t in failed}

    def _open(self, storage: str | Path) -> optuna.Study:
        definition = self.definition
        where = without_password(str(storage))
        try:
            study = self._books.open(
                lambda opened: optuna.create_study(
                    storage=opened,
                    sampler=None,
                    pruner=optuna.pruners.MedianPruner(n_startup_trials=4),
                    study_name=definition.name if isinstance(storage, str) else "ablation",
                    direction="maximize" if definition.metric.higher_is_better else "minimize",
                    load_if_exists=True,
                )
            )
        except DsdmaeError:
            raise
        except Exception as error:  # whatever a database driver raises
            raise cannot_open(storage, error) from error
        before = study.user_attrs.get("definition")
        if before is not None:
            check_same(before, definition, where)
        study.set_user_attr("definition", definition.fingerprint())
        # Another seed for every process and every start, or a resumed search would draw the same points again.
        seed = (len(study.trials) * 7919 + os.getpid()) % 2**31
        study.sampler = (
            optuna.samplers.TPESampler(seed=seed, constant_liar=True)
            if definition.search == "tpe"
            else optuna.samplers.RandomSampler(seed=seed)
        )
        return study

    # -- what there is

    def rows(self) -> list[Row]:
        """One row for each point and seed: what counts of it, or the last that did not come to an end."""
        found: dict[Identity, Row] = {}
        trials = self._trials()
        again = _retried(trials)
        for trial in trials:
            if _note(trial) == _SURPLUS:
                continue
            row = self._row(trial)
            before = found.get(row.identity)
            if before is None or before.state == "stopped" or before.number in again:
                found[row.identity] = row
        return list(found.values())

    def _trials(self) -> list[FrozenTrial]:
        return [t for t in self._study.get_trials(deepcopy=False) if "point" in t.user_attrs]

    def _row(self, trial: FrozenTrial) -> Row:
        attrs = trial.user_attrs
        state = {
            TrialState.WAITING: "waiting",
            TrialState.RUNNING: "running",
            TrialState.COMPLETE: "done",
            TrialState.PRUNED: "pruned",
            TrialState.FAIL: "failed" if _note(trial) == _FAILED else "stopped",
        }[trial.state]
        return Row(
            trial.number,
            attrs["point"],
            attrs["seed"],
            state,
            trial.value if trial.state is TrialState.COMPLETE else None,
            attrs.get("facts", {}),
            attrs.get("reason"),
            trial.number in self._mine,
        )

    def _standing(self) -> dict[Identity, FrozenTrial]:
        """The trial that counts for each point and seed: the oldest that is not void."""
        found: dict[Identity, FrozenTrial] = {}
        trials = self._trials()
        again = _retried(trials) | self._retry.keys()
        for trial in trials:
            if not (trial.state is TrialState.FAIL and (_note(trial) != _FAILED or trial.number in again)):
                found.setdefault(_identity(trial.user_attrs["point"], trial.user_attrs["seed"]), trial)
        return found

    def _points(self) -> list[Point]:
        """The points that are wanted: the grid, or those drawn so far."""
        if self.definition.search == "grid":
            return self.definition.points
        drawn = {json.dumps(t.user_attrs["point"]): t.user_attrs["point"] for t in self._trials() if not _surplus(t)}
        return list(drawn.values())[: self.definition.trials]

    # -- taking trials

    def top_up(self) -> None:
        """Queue every wanted trial that does not stand; whole curves first, then the next seed of all points."""
        standing, points = self._standing(), self._points()
        for seed in self.definition.seed_numbers():
            for point in points:
                identity = _identity(point, seed)
                if identity not in standing:
                    # Said in the new trial, since one that has ended takes no notes.
                    again = [number for number, failed in self._retry.items() if failed == identity]
                    attrs = {"point": point, "seed": seed, "retry_of": again}
                    self._study.enqueue_trial(self._params(point), user_attrs=attrs)

    def claim(self) -> Row | None:
        """Take the next trial for this process; None if there is none to take now."""
        self.definition = widened(self.definition, self._study.user_attrs["definition"])
        while True:
            waiting = any(t.state is TrialState.WAITING for t in self._study.get_trials(deepcopy=False))
            if not waiting and not self._may_draw():
                return None
            with _quiet(), self._books.alone():
                trial = self._study.ask(self._distributions())
            if "point" not in trial.user_attrs:
                if waiting and not self._may_draw():  # somebody else was quicker; Optuna then drew a new one
                    self._end(trial, _SURPLUS)
                    continue
                trial.set_user_attr("seed", self.definition.seed_numbers()[0])
                trial.set_user_attr("point", {a.key: _label(a, trial.params[a.key]) for a in self.definition.axes})
            mine = trial.number
            point, seed = trial.user_attrs["point"], trial.user_attrs["seed"]
            # Of a grid every point is wanted by someone: by this process, or by one that brought more values.
            beyond = self.definition.search != "grid" and point not in self._points()
            if beyond or self._standing()[_identity(point, seed)].number != mine:
                self._end(trial, _SURPLUS)
                self._repeats += not waiting
                continue
            self._repeats = 0
            trial.set_user_attr("owner", self.owner)
            trial.set_user_attr("beat", time.time())
            self._mine[mine] = trial
            if self.definition.search != "grid":
                self.top_up()  # the other seeds of the point that was drawn
            return self._row(next(t for t in self._trials() if t.number == mine))

    def _may_draw(self) -> bool:
        wanted = self.definition.trials
        return wanted is not None and len(self._points()) < wanted and self._repeats < _MOST_REPEATS

    @property
    def used_up(self) -> bool:
        """Whether a search ended early because its space has no more points."""
        return self._repeats >= _MOST_REPEATS

    def _distributions(self) -> dict[str, BaseDistribution]:
        grid = self.definition.search == "grid"
        found = {axis.key: _distribution(axis, grid) for axis in self.definition.axes}
        return {key: distribution for key, distribution in found.items() if distribution is not None}

    def _params(self, point: Point) -> dict[str, Any]:
        found = self._distributions()
        numbers = {key: d for key, d in found.items() if not isinstance(d, CategoricalDistribution)}
        return {
            key: numbers[key].to_external_repr(float(value)) if key in numbers else value
            for key, value in point.items()
        }

    # -- running them

    def beat(self) -> None:
        """Say that this process lives, now and then."""
        now = time.monotonic()
        if now - self._beaten < _BEAT_SECONDS:
            return
        self._beaten = now
        for trial in self._mine.values():
            trial.set_user_attr("beat", time.time())

    def reclaim(self) -> bool:
        """Queue the trials of processes that are gone; whether there were any."""
        lost = [t for t in self._trials() if t.state is TrialState.RUNNING and t.number not in self._mine]
        lost = [t for t in lost if self._is_lost(t)]
        for trial in lost:
            self._end(Trial(self._study, trial._trial_id), _LOST)
        if lost:
            self.top_up()
        return bool(lost)

    def _is_lost(self, trial: FrozenTrial) -> bool:
        owner, beat = trial.user_attrs.get("owner"), trial.user_attrs.get("beat")
        if owner and owner["host"] == self.owner["host"]:
            return not _alive(owner["pid"], owner["started"])
        before, since = self._heard.get(trial.number, (None, 0.0))
        if trial.number not in self._heard or before != beat:
            self._heard[trial.number] = (beat, time.monotonic())  # by our own clock: theirs may be wrong
            return False
        return time.monotonic() - since > _SILENT_SECONDS

    def report(self, row: Row, share: float, value: float) -> bool:
        """Note a value on the way; whether the trial does so badly that it should be pruned.

        Optuna compares values of the same moment: that is the nearest tenth of a run, since runs of different lengths
        are judged at different shares. The first value of a moment counts.
        """
        trial = self._mine[row.number]
        with _quiet():
            trial.report(value, 10 * round(10 * share))
            return self.definition.prune and share >= _PRUNE_FROM and bool(trial.should_prune())

    def finish(self, row: Row, value: float, facts: dict[str, Any]) -> None:
        """The trial is done."""
        trial = self._mine.pop(row.number)
        with self._unless_ended(trial):
            trial.set_user_attr("facts", facts)
            self._tell(trial, values=value)

    def prune(self, row: Row, facts: dict[str, Any], reason: str) -> None:
        """The trial was stopped, for it did worse than the others."""
        trial = self._mine.pop(row.number)
        with self._unless_ended(trial):
            trial.set_user_attr("facts", facts)
            trial.set_user_attr("reason", reason)
            self._tell(trial, state=TrialState.PRUNED)

    def fail(self, row: Row, reason: str) -> None:
        """The trial failed; it is not run again unless asked."""
        trial = self._mine.pop(row.number)
        self._end(trial, _FAILED, reason)

    def stop(self, row: Row, reason: str) -> None:
        """The trial was stopped on the way and waits for the next start."""
        trial = self._mine.pop(row.number)
        self._end(trial, _STOPPED, reason)

    def _end(self, trial: Trial, note: str, reason: str | None = None) -> None:
        # The note first: a trial that has ended takes none.
        with self._unless_ended(trial):
            if reason is not None:
                trial.set_user_attr("reason", reason)
            trial.set_user_attr("note", note)
            self._tell(trial, state=TrialState.FAIL)

    @contextmanager
    def _unless_ended(self, trial: Trial) -> Iterator[None]:
        """Where somebody ended it first, as lost or otherwise, what they said stands; that is as good."""
        try:
            yield
        except (RuntimeError, ValueError):
            if not self._study.trials[trial.number].state.is_finished():
                raise

    def _tell(self, trial: Trial, **outcome: Any) -> None:
        with _quiet():
            self._study.tell(trial, **outcome)

    def close(self) -> None:
        """Give up what is still held."""
        for trial in list(self._mine.values()):
            self._end(trial, _STOPPED)
        self._mine.clear()


def _distribution(axis: Axis, grid: bool) -> BaseDistribution | None:
    """What a search draws from; of a grid, what Optuna's own plots take for a scale. None for a grid's words: Optuna
    lets no choices be added to a study, and a grid may grow."""
    numbers, span = axis.numbers, axis.span
    if not grid and span is not None:
        if span.whole:
            return IntDistribution(int(span.low), int(span.high), log=span.log, step=int(span.step or 1))
        return FloatDistribution(span.low, span.high, log=span.log, step=span.step)
    if grid:
        return None if numbers is None else FloatDistribution(min(numbers), max(numbers))
    return CategoricalDistribution(axis.values)


def _label(axis: Axis, value: Any) -> str:
    """A drawn value as text: a word, or a number of the axis' span."""
    return str(value) if axis.span is None else drawn_text(value, axis.span)


def _note(trial: FrozenTrial) -> str | None:
    note: str | None = trial.user_attrs.get("note")
    return note if trial.state is TrialState.FAIL else None


def _retried(trials: list[FrozenTrial]) -> set[int]:
    """Failed trials that were queued once more."""
    return {number for trial in trials for number in trial.user_attrs.get("retry_of", ())}


def _surplus(trial: FrozenTrial) -> bool:
    return _note(trial) == _SURPLUS


def _alive(pid: int, started: float) -> bool:
    try:
        return abs(psutil.Process(pid).create_time() - started) < 1
    except psutil.NoSuchProcess:
        return False


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna warns of what is meant here: a value on the way that is told twice, a point that is new to a grid."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
