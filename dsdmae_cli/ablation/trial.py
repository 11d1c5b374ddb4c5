"""One trial: `dsdmae pretrain`, then what measures it, each in a process of its own.

What a trial leaves below the study's directory:

    settings/NAME.toml      its settings, usable as --config
    trials/NAME/            the run
    trials/NAME-METRIC/     the probe or fine-tuning of it, where the metric needs one
    logs/NAME.log           what the commands said
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from dsdmae_cli.ablation.definition import Metric
from dsdmae_cli.config.describe import tables, to_toml
from dsdmae_cli.config.schema import Loaded
from dsdmae_cli.errors import RunFailed
from dsdmae_cli.files import write_bytes
from dsdmae_cli.runs.child import Child, Slot, State
from dsdmae_cli.runs.held import busy
from dsdmae_cli.runs.rundir import METRICS, RESULT, SETTINGS, RunDir, record_of
from dsdmae_cli.settings.models import Settings


def judged_folder(run: Path, metric: Metric) -> Path:
    """Where the probe or fine-tuning of a trial's run is."""
    return run.with_name(f"{run.name}-{metric.name.replace(':', '-')}")


class Tail:
    """The records of a growing metrics.jsonl, each read once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0

    def new(self) -> list[dict[str, Any]]:
        """Records since the last call; a line that is still being written waits for the next."""
        try:
            with self.path.open("rb") as file:
                if os.fstat(file.fileno()).st_size < self._offset:
                    self._offset = 0  # a resumed run cut off what it will write again
                file.seek(self._offset)
                text = file.read()
        except FileNotFoundError:
            return []
        whole = text[: text.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [record for line in whole.splitlines() if (record := record_of(line)) is not None]


class Job:
    """A trial at work. `poll` moves it on; nothing here waits.

    Args:
        folder: the study's directory.
        name: the trial's.
        loaded: its settings.
        metric: what is measured.
        options: further words for the metric's command.
        also: what is measured besides.
        environment: variables for the commands that measure.
        slot: where it runs.
        steps: optimiser steps of the whole run.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        loaded: Loaded[Settings],
        metric: Metric,
        options: tuple[str, ...],
        slot: Slot,
        steps: int,
        also: tuple[Metric, ...] = (),
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.name = name
        self.loaded = loaded
        self.metric = metric
        self.slot = slot
        self.steps = steps
        self.run = folder / "trials" / name
        self.config = folder / "settings" / f"{name}.toml"
        self.log = folder / "logs" / f"{name}.log"
        self.began = time.monotonic()
        self.step = 0
        self._first_step: int | None = None  # what an earlier process had done of it
        self.shown: dict[str, float] = {}
        self.reason = ""
        self._tail = Tail(self.run / METRICS)
        self.judged_since: float | None = None
        self.also = also
        self._environment = environment
        # Words of a command and, of one that measures the run, what it measures.
        self._phases: list[tuple[tuple[str, ...], Metric | None]] = [(("pretrain",), None)]
        if metric.command:
            self._phases.append(((*metric.command, *options), metric))
        self._phases += [(other.command, other) for other in also if other.command]
        self._child: Child | None = None
        self._stopping = False
        for path in (self.run, self.config, self.log):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(self.config, to_toml(tables(loaded.settings)).encode())

    # -- moving on

    def poll(self) -> State:
        """Look at the process that runs, start the next one when it is done."""
        while self._phases:
            state = self._poll_phase(self._phases[0])
            if state != "done":
                return state
            self._phases.pop(0)
            self.judged_since = self.judged_since or (time.monotonic() if self._phases else None)
        return "done"

    def _poll_phase(self, phase: tuple[tuple[str, ...], Metric | None]) -> State:
        folder = self._folder(phase[1])
        if self._child is None:
            if RunDir(folder).read_json(RESULT):  # a damaged one is made anew
                return "done"  # before a crash, or by the process of a worker that is gone
            if self._stopping:
                return "stopped"
            if not busy(folder):  # else a lost worker's run is still at it: wait, and take what it leaves
                self._start(*phase, folder)
            return "running"
        state = self._child.poll()
        if state != "running":
            self.reason, self._child = self._child.reason, None
        return state

    def _folder(self, metric: Metric | None) -> Path:
        return self.run if metric is None else judged_folder(self.run, metric)

    def _start(self, phase: tuple[str, ...], metric: Metric | None, folder: Path) -> None:
        if metric is not None and not metric.resumes:
            shutil.rmtree(folder, ignore_errors=True)  # half of it, left by a process that was stopped
        if (folder / SETTINGS).exists():
            words = [phase[0], "--resume"]
        elif metric is None:
            words = ["pretrain", "--config", str(self.config)]
        else:
            train = self.loaded.settings.train
            same = ["--seed", str(train.seed), "--device", train.device, "--precision", train.precision]
            words = [phase[0], str(self.run), *same, *phase[1:]]
        environment = {} if metric is None else self._environment
        self._child = Child([*words, "--out", str(folder)], self.log, self.slot, environment)

    def stop(self) -> None:
        """Ask the process to save and end."""
        if self._child is not None:
            self._child.stop()
        self._stopping = True

    def kill(self) -> None:
        """End the process at once; its files are whole, what it did since its last checkpoint is lost."""
        if self._child is not None:
            self._child.kill()

    # -- what it has come to

    def news(self) -> list[dict[str, Any]]:
        """Records of metrics since the last call."""
        records = self._tail.new()
        for record in records:
            self.step = int(record["step"])
            self.shown |= {k: v for k, v in record.items() if k in ("loss", "knn")}
        if self._first_step is None:
            self._first_step = self.step
        return records

    @property
    def waits(self) -> bool:
        """Whether it waits for the run that a lost worker left at work."""
        return self._child is None

    @property
    def doing(self) -> str:
        """A word for tables: "pretrain", "probe"."""
        return self._phases[0][0][0] if self._phases else "done"

    @property
    def share(self) -> float:
        """Fraction of pre-training that is done."""
        return min(1.0, self.step / max(1, self.steps))

    @property
    def share_here(self) -> float:
        """Fraction of pre-training that was done since `began`; the rest a run that is resumed brought with it."""
        return max(0.0, self.share - (self._first_step or 0) / max(1, self.steps))

    def outcome(self) -> tuple[float | None, dict[str, Any]]:
        """(the metric, facts for tables) of a trial that is done; the metric is None where the run has none.

        Raises:
            RunFailed: a result lacks what this program writes into one.
        """
        try:
            return self._outcome()
        except (KeyError, TypeError, AttributeError) as error:
            raise RunFailed(f"a {RESULT} of it is no result of this program ({error}); remove that file") from error

    def _outcome(self) -> tuple[float | None, dict[str, Any]]:
        result = RunDir(self.run).read_json(RESULT)
        if self.metric.name == "knn" and result["knn_accuracy"] is None and result.get("knn_images"):
            raise RunFailed(f"it has no k-NN accuracy. {result['closing']}")
        facts = {
            "run": self.name,
            "seconds": result["seconds"],
            "epochs": result["epochs"],
            "steps": result["steps"],
            "images": result["images_seen"],
            "loss": result["final"].get("loss"),
            "knn": result["knn_accuracy"],
            "knn_untrained": result["knn_accuracy_untrained"],
        }
        judged = {metric.name: self._judged(metric) for metric in (self.metric, *self.also) if metric.command}
        if judged:
            facts["judged_seconds"] = sum(found.get("seconds") or 0 for found in judged.values())
        values = {name: _score(found) for name, found in judged.items()}
        facts["also"] = {other.name: values.get(other.name, facts.get(other.name)) for other in self.also}
        return values.get(self.metric.name, facts.get(self.metric.name)), facts

    def _judged(self, metric: Metric) -> dict[str, Any]:
        return RunDir(self._folder(metric)).read_json(RESULT)


def _score(result: dict[str, Any]) -> float:
    """By which a trial is judged: with few labels the mean over their draws."""
    if rows := result.get("few_shot"):
        return float(rows[-1]["top1"])
    return float(result["mean_iou"] if "mean_iou" in result else result["top1"])
