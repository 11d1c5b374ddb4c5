"""A run: a loop with observers, checkpoints and an end. conduct.py goes around it; recipes say what is trained.

All processes of a run have one of these, run the network and give its state; the first one writes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel

from dsdmae_cli import checkpoint, distributed
from dsdmae_cli.checkpoint import Checkpoint
from dsdmae_cli.config.describe import tables
from dsdmae_cli.data.base import ImageDataset
from dsdmae_cli.data.source import Batching, Source, Unreadable
from dsdmae_cli.engine import Hooks, Trainer
from dsdmae_cli.errors import CheckpointError, DsdmaeError, RunInterrupted, signal_words
from dsdmae_cli.files import typed
from dsdmae_cli.methods.base import Method
from dsdmae_cli.report import Report, number_of
from dsdmae_cli.runs.asking import Asking
from dsdmae_cli.runs.environment import environment
from dsdmae_cli.runs.kept import agreed, chosen, other_images, read_kept
from dsdmae_cli.runs.observers.base import Observer
from dsdmae_cli.runs.observers.jsonl import JsonLines
from dsdmae_cli.runs.observers.page import PageWriter
from dsdmae_cli.runs.observers.progress import Progress
from dsdmae_cli.runs.observers.trackers import Trackers
from dsdmae_cli.runs.rundir import RESULT, RUN, RunDir, called
from dsdmae_cli.runs.too_little import too_little
from dsdmae_cli.runs.writer import Writer
from dsdmae_cli.runtime import Runtime
from dsdmae_cli.signals import Requests, listening


@dataclass(frozen=True)
class Start:
    """What a recipe is given to put a run together.

    Attributes:
        command: that runs, as a person types it.
        directory: held by this process group.
        asked: the settings as they were given, "auto" included; what a checkpoint keeps.
        settings: the same, resolved.
        resumed: there is a checkpoint to go on from, which brings its own weights.
        resume: the directory is that of an earlier start, which may not have come to a checkpoint.
        accept_changes: a resumed run may go on with other images than it began with.
        sources: where each setting came from, by "section.key"; of a resumed run empty.
    """

    command: str
    directory: RunDir
    asked: BaseModel
    settings: Any
    report: Report
    resume: bool
    resumed: bool
    accept_changes: bool = False
    sources: Mapping[str, str] = field(default_factory=dict)

    @property
    def main(self) -> bool:
        """Whether this is the process that writes."""
        return distributed.rank() == 0

    def batching(self, dataset: ImageDataset, runtime: Runtime) -> Batching:
        """How the images of a dataset are divided among steps and processes."""
        train = self.settings.train
        return Batching(
            num_images=len(dataset),
            batch_size=train.batch_size,
            micro_batch=runtime.micro_batch,
            seed=train.seed,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
        )


@dataclass(frozen=True)
class Parts:
    """A run put together by a recipe.

    Attributes:
        method: on the device.
        source: its batches.
        dataset: the training images that they are made of.
        unreadable: counts the training images that could not be read.
        observers: what looks at it on the way, in this order.
        sentence: what is done, for the line at the start: "dsdmae with vit-tiny on cifar10".
        result: what result.json holds, and whatever else is left, when training is over; called in the first process.
        about: further entries of run.json.
    """

    method: Method
    runtime: Runtime
    source: Source
    dataset: ImageDataset
    unreadable: Unreadable
    observers: Sequence[Observer]
    sentence: str
    result: Callable[[Run], dict[str, Any]]
    about: dict[str, Any] = field(default_factory=dict)


class Run(Hooks):
    """Trains the parts in their directory, and is the Trainer's Hooks."""

    def __init__(self, start: Start, parts: Parts) -> None:
        self.command, self.directory, self.report, self.main = start.command, start.directory, start.report, start.main
        self.asked, self.settings, self.images = start.asked, start.settings, agreed(parts.dataset, parts.source)
        self.resume, self.accept_changes, self.sources = start.resume, start.accept_changes, start.sources
        answer, advice = "full" if parts.runtime.sharded else "none", "say --set train.shard=full or none"
        distributed.agree("need to divide the weights", answer, advice)  # by free memory, which may differ
        self.method, self.source = parts.method, parts.source
        self.unreadable, self.parts = parts.unreadable, parts
        # The smallest that one of them can hold: with others, draws and what batch norms exchange would not be alike.
        runtime = replace(parts.runtime, micro_batch=-distributed.highest(-parts.runtime.micro_batch))
        self.source.recut(runtime.micro_batch)
        self.trainer = Trainer(self.method, self.source, self.settings.optim, self.settings.train, runtime, self)
        trackers = Trackers(self.settings.train.trackers, self.report)
        self.progress = Progress(self.report)
        self.page = PageWriter()
        self.observers: list[Observer] = [JsonLines(), trackers, *parts.observers, self.page, self.progress]
        self.requests = Requests()
        self.result: dict[str, Any] = {}
        self.about: dict[str, Any] = {}
        self.began = time.monotonic()
        self.seconds_before = 0.0
        self.saved_at = -1
        self.told = 0  # epochs of whose end all observers know
        self.writer = Writer(parts.runtime.device)
        self.asking = Asking(self.settings.train.log_every)
        self.decorations: list[tuple[str, Callable[[], None]]] = []

    def decorate(self, what: str, draw: Callable[[], None]) -> None:
        """Have something drawn when the result is written; its failure is a warning."""
        self.decorations.append((what, draw))

    def train(self) -> dict[str, Any]:
        """Train to the end; what result.json holds, or nothing in other processes than the first.

        Raises:
            RunInterrupted: a signal asked to stop; the run was saved.
            RunFailed, DataError, CheckpointError: see their descriptions.
        """
        try:
            if self.resume:
                self._restore()
            if self.main:
                self._describe()
            with listening() as requests:
                self.requests = requests
                # Not self: the report outlives the run, and would hold its network and process group.
                self.report.stopping = lambda: bool(requests.stop_signal)
                self.progress.open(self)
                self.page.open(self)
                self._tell(lambda observer: observer.begin(self))
                with self._saving():
                    self.trainer.fit()
                self.source.close()
                if number := distributed.highest(self.requests.stop_signal):  # in the midst of the last step, too
                    self._save()
                    raise self.interrupted(number)
            return self._finish()
        finally:
            self.writer.close()
            self._tell(lambda observer: observer.close())

    @contextmanager
    def _saving(self) -> Iterator[None]:
        """An error of anyone's, but ours for people, that ends the training between two steps: they are saved first."""
        try:
            yield
        except (DsdmaeError, KeyboardInterrupt):
            raise
        except BaseException as error:
            # Of shards this one has the first alone, and others may not be here to give theirs.
            alone = self.main and not self.runtime.sharded
            if alone and self.trainer.whole and self.trainer.step > max(self.saved_at, 0):
                self._save(alone=True)
                self.report.warn(
                    f"{type(error).__name__} ended the training; step {self.trainer.step} was saved, and"
                    f" dsdmae {self.command} --resume --out {typed(self.directory.path)} goes on"
                )
            raise

    def log(self, record: dict[str, Any]) -> None:
        """Figures of one moment, to all observers; the first process's count."""
        if self.main:
            self._tell(lambda observer: observer.recorded(self, record))

    def pictured(self, file: Path, step: int) -> None:
        """A picture of a moment, to all observers; the first process's."""
        self._tell(lambda observer: observer.pictured(self, file, step))

    def seconds(self) -> float:
        """What the run took so far, earlier parts of a resumed one included."""
        return self.seconds_before + time.monotonic() - self.began

    @property
    def runtime(self) -> Runtime:
        """What the hardware decided, and memory since."""
        return self.trainer.runtime

    @property
    def images_seen(self) -> int:
        """In all steps so far."""
        return int(self.trainer.step * self.settings.train.batch_size)

    def _tell(self, what: Callable[[Observer], None]) -> None:
        for observer in self.observers:
            what(observer)

    def _describe(self) -> None:
        """run.json, and a line for the person."""
        runtime, train = self.runtime, self.settings.train
        before = self.directory.read_json(RUN) if self.resume else {}
        self.page.before = list(before.get("warnings", ()))
        self.about = environment() | {
            "run": self.command,
            "resumed_at_step": self.trainer.step or None,
            "device": str(runtime.device),
            "device_name": torch.cuda.get_device_name(runtime.device) if runtime.device.type == "cuda" else "CPU",
            "precision": runtime.precision,
            "compile": runtime.compile,
            "micro_batch": runtime.micro_batch,
            "sharded": runtime.sharded,
            "world_size": distributed.world_size(),
            "threads": torch.get_num_threads(),
            "resolved_settings": tables(self.settings),
            "sources": dict(self.sources) or before.get("sources", {}),
            "account": dict(self.report.accounted),
            "warnings": self.page.before,
            **self.parts.about,
        }
        self.directory.write_json(RUN, self.about)
        resumed = f", resumed at step {self.trainer.step}" if self.trainer.step else ""
        shards = f", divided among {distributed.world_size()} processes" if runtime.sharded else ""
        self.report.note(
            f"{self.parts.sentence}: {number_of(self.source.batching.num_images, 'image')},"
            f" {number_of(self.trainer.total_steps, 'step')} of {train.batch_size} on {runtime.device} in"
            f" {runtime.precision}{shards}{resumed}"
        )
        self.report.note(f"run       {called(self.directory.path)}")
        if runtime.unshared:
            self.report.warn(runtime.unshared)
        if self.trainer.step == 0 and (warning := too_little(self.settings, self.trainer)):
            self.report.warn(warning)

    # -- Hooks

    def stepped(self, step: int) -> None:
        self.writer.check()
        self._tell(lambda observer: observer.stepped(self, step))

    def logged(self, record: dict[str, float]) -> None:
        self.log(record)

    def taken_up(self) -> None:
        if self._unseen:  # an error ended the run in the midst of it
            self.epoch_ended(self.trainer.step // self.trainer.steps_per_epoch)

    def epoch_ended(self, epoch: int) -> None:
        train = self.settings.train
        last = epoch == train.epochs
        self._tell(lambda observer: observer.epoch_ended(self, epoch, last))
        self.told = epoch
        if last or epoch % train.checkpoint_every == 0:
            self._save(wait=last)

    @property
    def _unseen(self) -> bool:
        """Whether an epoch ends with this step, and not all observers have seen its end."""
        epoch, within = divmod(self.trainer.step, self.trainer.steps_per_epoch)
        return epoch > self.told and not within

    def recut(self, micro_batch: int, before: int) -> None:
        if self.main:
            self.report.warn(
                f"micro-batches of {before} images do not fit into the memory of {self.runtime.device}; going on with"
                f" {micro_batch} (the effective batch stays the same)"
            )
            self.about["micro_batch"] = micro_batch
            self.directory.write_json(RUN, self.directory.read_json(RUN) | {"micro_batch": micro_batch})

    def should_stop(self) -> bool:
        if not self.asking.due(self.trainer.step):
            return False
        # One exchange tells both: whether to save, and whether to stop.
        wish = distributed.highest(2 * self.requests.stop_signal + self.requests.save)
        if wish:
            self._save()
            self.requests.save = False
            self.requests.stop_signal = wish // 2
        return wish > 1

    # -- checkpoints

    def _save(self, wait: bool = True, alone: bool = False) -> None:
        """Save this step, unless that was done; without `wait` it may still be under way when this returns.

        Args:
            alone: the other processes do not come here at the same time.
        """
        if self.saved_at != self.trainer.step:
            self._write(alone)
        if wait:
            self.writer.wait()

    def _write(self, alone: bool) -> None:
        model, training, state = self.trainer.state(alone)
        state["seconds"] = self.seconds()
        state["epoch_unseen"] = self._unseen
        state["unreadable"] = self.unreadable.reasons
        state["data"] = self.images.model_dump()
        for observer in self.observers:
            state |= observer.state()
        if self.main:
            saved = Checkpoint(self.trainer.step, model, training, state, tables(self.asked))
            self.writer.save(self.directory.checkpoints, saved, self.settings.train.keep_checkpoints)
        self.saved_at = self.trainer.step

    def _restore(self) -> None:
        """Every process reads the checkpoint that the first one chose: its newest whole one; without one the run begins
        anew.

        Raises:
            CheckpointError: in all processes, where one of them cannot read that very checkpoint.
        """
        found = chosen(self.directory, self.report)
        if found is None:
            self.report.note("no checkpoint yet: starting from the beginning")
        with distributed.one_fate():
            self._go_on_from(found)
        if self.main:
            self.directory.forget_after(-1 if found is None else found.step, epoch_again=self._unseen)

    def _go_on_from(self, found: Checkpoint | None) -> None:
        if found is not None:
            kept = read_kept(found.state, self.directory.path)
            if other := other_images(kept, self.images, self.directory.path, self.settings.data.dataset):
                if not self.accept_changes:
                    raise CheckpointError(f"{other}; put them back, or go on with what is there by --accept-changes")
                if self.main:
                    self.report.warn(f"{other}; order, epochs and schedule are others from here on")
            checkpoint.load_into(self.method, found.model, str(self.directory.checkpoints))
            self.trainer.restore(found.step, found.training, found.state)
            self.seconds_before = kept.seconds
            self.told = found.step // self.trainer.steps_per_epoch - kept.epoch_unseen
            self.unreadable.reasons.update(kept.unreadable)
            self._tell(lambda observer: observer.restore(found.state))
            self.saved_at = found.step

    def interrupted(self, number: int) -> RunInterrupted:
        """What is said of a run that a signal stopped and whose last step is saved."""
        trainer = self.trainer
        stopped = RunInterrupted(
            f"stopped by {signal_words(number)} and saved at step {trainer.step} of {trainer.total_steps};"
            f" go on with: dsdmae {self.command} --resume --out {typed(self.directory.path)}",
            number,
        )
        stopped.said_elsewhere = not self.main
        return stopped

    # -- the end

    def _finish(self) -> dict[str, Any]:
        self._save()
        with self.trainer.gathered():
            return self._left() if self.main else {}

    def _left(self) -> dict[str, Any]:
        self.result = self.parts.result(self)
        self.directory.write_json(RESULT, self.result)
        for what, draw in self.decorations:
            with self.report.spared(what):
                draw()
        for line in self.unreadable.lines():
            self.report.warn(f"skipped {line}")
        self._tell(lambda observer: observer.end(self))
        self.directory.ended("finished", "")
        return self.result
