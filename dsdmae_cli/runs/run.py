"""What training commands share: taking the run directory, checkpoints, resumption, signals, records.

`conduct` does what goes around a run; a subclass of TrainingRun says what is built, what is looked at on the way, and
what is left at the end (pretrain.py, finetune.py).
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import BaseModel

from dsdmae_cli import checkpoint, distributed
from dsdmae_cli.checkpoint import Checkpoint
from dsdmae_cli.config.describe import tables
from dsdmae_cli.config.resolve import resolve
from dsdmae_cli.config.schema import Loaded
from dsdmae_cli.data.base import ImageDataset
from dsdmae_cli.data.open import Placement, place
from dsdmae_cli.data.source import Batching, Source, Unreadable
from dsdmae_cli.engine import Trainer
from dsdmae_cli.errors import CheckpointError, DsdmaeError, RunFailed, RunInterrupted, SettingsError
from dsdmae_cli.methods.base import Method
from dsdmae_cli.report import Report, make_report
from dsdmae_cli.runs.rundir import RESULT, RunDir, changed_settings, default_path, environment
from dsdmae_cli.runtime import Runtime, choose_device, choose_runtime
from dsdmae_cli.signals import Requests, listening


class TrainingRun(ABC):
    """One run: builds the parts, is the Trainer's Hooks, and writes what the run leaves.

    Args:
        settings: as the person gave them ("auto" included); `self.settings` holds them resolved.
        resume: go on from the newest checkpoint.
    """

    command: ClassVar[str]

    def __init__(self, run: RunDir, settings: Any, report: Report, resume: bool) -> None:
        self.run_dir = run
        self.asked = settings
        self.settings = resolve(settings)
        self.report = report
        self.main = distributed.rank() == 0
        self.resume = resume
        self.began = time.monotonic()
        self.seconds_before = 0.0
        self.requests = Requests()
        self.saved_at = -1

    # -- what a subclass says

    @abstractmethod
    def build(self) -> Method:
        """What is trained, on the CPU."""

    @abstractmethod
    def open_data(self) -> Source:
        """Its batches, and whatever else is looked at."""

    @abstractmethod
    def sentence(self) -> str:
        """What is done, for the line at the start: "dsdmae with vit-tiny on cifar10"."""

    @abstractmethod
    def result(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        """What result.json holds; called in the first process when training is over."""

    def ready(self) -> None:  # noqa: B027  (most hooks are optional)
        """After a resumed run was restored and before the first step."""

    def score(self, epoch: int, last: bool) -> None:  # noqa: B027
        """After each epoch, before a checkpoint is written."""

    def summary_of(self) -> dict[str, Any]:
        """Further entries of run.json."""
        return {}

    def extra_state(self) -> dict[str, Any]:
        """Further entries of a checkpoint's state, fit for JSON."""
        return {}

    def restore_extra(self, state: dict[str, Any]) -> None:  # noqa: B027
        """The inverse of extra_state."""

    # -- the run

    def run(self) -> dict[str, Any]:
        """Train to the end; what result.json holds, or nothing in other processes than the first."""
        method = self.build()
        self.runtime: Runtime = choose_runtime(self.settings, method)
        self.method = method.to(self.runtime.device)
        self.source = self.open_data()
        self.trainer = Trainer(self.method, self.source, self.settings.optim, self.settings.train, self.runtime, self)
        self.tensorboard = _tensorboard(self.run_dir.path) if self._writes("tensorboard") else None
        if self.resume:
            self._restore()
        if self.main:
            self._describe()
        with listening() as self.requests:
            self.ready()
            self.report.start(self.trainer.total_steps, self.trainer.step, self.trainer.steps_per_epoch)
            self.trainer.fit()
            self.report.stop()
            self.source.close()
            if self.requests.stop_signal and self.trainer.step < self.trainer.total_steps:
                self._interrupted()
        return self._finish()

    def batching(self, dataset: ImageDataset) -> Batching:
        """How the images of a dataset are divided among steps and processes."""
        train = self.settings.train
        return Batching(
            num_images=len(dataset),
            batch_size=train.batch_size,
            micro_batch=self.runtime.micro_batch,
            seed=train.seed,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
        )

    def place(self, dataset: ImageDataset) -> Placement:
        """Where the training images will live; starts the count of unreadable ones."""
        self.unreadable = Unreadable(len(dataset), self.settings.data)
        placement = place(dataset, self.settings.data, self.runtime.device)
        if dataset.arrays() is None and placement.side:
            self.report.note(f"decoding {len(dataset)} images")
        return placement

    def _writes(self, what: str) -> bool:
        return self.main and bool(getattr(self.settings.train, what))

    def _describe(self) -> None:
        """run.json, and a line for the person."""
        runtime, train = self.runtime, self.settings.train
        described = environment() | {
            "run": self.command,
            "resumed_at_step": self.trainer.step or None,
            "device": str(runtime.device),
            "device_name": torch.cuda.get_device_name(runtime.device) if runtime.device.type == "cuda" else "CPU",
            "precision": runtime.precision,
            "compile": runtime.compile,
            "micro_batch": runtime.micro_batch,
            "world_size": distributed.world_size(),
            "threads": torch.get_num_threads(),
            "resolved_settings": tables(self.settings),
            **self.summary_of(),
        }
        self.run_dir.write_json("run.json", described)
        resumed = f", resumed at step {self.trainer.step}" if self.trainer.step else ""
        self.report.note(
            f"{self.sentence()}: {self.source.batching.num_images} images,"
            f" {self.trainer.total_steps} steps of {train.batch_size} on {runtime.device} in"
            f" {runtime.precision}{resumed}\nrun directory {self.run_dir.path}"
        )

    # -- Hooks

    def stepped(self, step: int) -> None:
        self.report.stepped(step)

    def logged(self, record: dict[str, float]) -> None:
        if self.main:
            self.log(record)

    def epoch_ended(self, epoch: int) -> None:
        train = self.settings.train
        last = epoch == train.epochs
        self.score(epoch, last)
        if last or epoch % train.checkpoint_every == 0:
            self._save()

    def should_stop(self) -> bool:
        # One exchange tells both: whether to save, and whether to stop.
        wish = distributed.highest(2 * self.requests.stop_signal + self.requests.save)
        if wish:
            self._save()
            self.requests.save = False
            self.requests.stop_signal = wish // 2
        return wish > 1

    def log(self, record: dict[str, Any]) -> None:
        """A line of metrics.jsonl."""
        self.run_dir.log(record)
        self.report.record(record)
        if self.tensorboard is not None:
            for name in record.keys() - {"step", "epoch"}:
                self.tensorboard.add_scalar(name, record[name], record["step"])

    # -- checkpoints

    def _save(self) -> None:
        if not self.main or self.saved_at == self.trainer.step:
            return
        model, training, state = self.trainer.state()
        state["seconds"] = self.seconds()
        state["unreadable"] = self.unreadable.reasons
        state |= self.extra_state()
        saved = Checkpoint(self.trainer.step, model, training, state, tables(self.asked))
        checkpoint.save(self.run_dir.checkpoints, saved, self.settings.train.keep_checkpoints)
        self.saved_at = self.trainer.step

    def _restore(self) -> None:
        """Every process reads the newest whole checkpoint; without one the run begins anew."""
        found, complaints = checkpoint.load_newest(self.run_dir.checkpoints)
        for complaint in complaints if self.main else []:
            self.report.warn(f"{complaint}; going back to the one before")
        if found is None:
            if complaints:
                raise CheckpointError(
                    f"no checkpoint of {self.run_dir.path} is whole ({complaints[0]}); start a new run with --out"
                )
            self.report.note("no checkpoint yet: starting from the beginning")
            found_step = -1
        else:
            checkpoint.load_into(self.method, found.model, str(self.run_dir.checkpoints))
            self.trainer.restore(found.step, found.training, found.state)
            self.seconds_before = found.state["seconds"]
            self.unreadable.reasons.update(found.state["unreadable"])
            self.restore_extra(found.state)
            self.saved_at = found_step = found.step
        if self.main:
            self.run_dir.forget_after(found_step)

    def _interrupted(self) -> None:
        number = self.requests.stop_signal
        raise RunInterrupted(
            f"stopped by signal {number} and saved at step {self.trainer.step} of {self.trainer.total_steps};"
            f" go on with: dsdmae {self.command} --resume --out {self.run_dir.path}",
            number,
        )

    # -- the end

    def seconds(self) -> float:
        """What the run took so far, earlier parts of a resumed one included."""
        return self.seconds_before + time.monotonic() - self.began

    def _finish(self) -> dict[str, Any]:
        if not self.main:
            return {}
        self._save()
        if self.tensorboard is not None:
            self.tensorboard.close()
        result = self.result(self.run_dir.metrics())
        self.run_dir.write_json(RESULT, result)
        for line in self.unreadable.lines():
            self.report.warn(f"skipped an unreadable image: {line}")
        return result


def conduct(
    make: Callable[[RunDir, Any, Report, bool], TrainingRun],
    loaded: Loaded[Any],
    name: str,
    *,
    out: Path | None,
    resume: bool,
    overridden: bool,
    as_json: bool,
) -> dict[str, Any]:
    """Make or reopen the run directory, in every process alike, and run.

    Args:
        make: the class of the run.
        loaded: settings as the person gave them.
        name: what is done, for the name of a directory of its own.
        out: the run directory; None = a new one under the user's data directory.
        resume: go on with the run in `out`, by its own settings.
        overridden: settings were given beside --resume; they must equal the run's.
        as_json: no progress on stderr.

    Returns:
        What result.json holds.

    Raises:
        RunInterrupted: a signal asked to stop; the run was saved.
        RunFailed, DataError, SettingsError, CheckpointError: see their descriptions.
    """
    settings = loaded.settings
    device = choose_device(settings.train.device)
    with distributed.process_group(device):
        main = distributed.rank() == 0
        report = make_report(as_json=as_json, main_process=main)
        path = out or default_path(datetime.now(), name, settings.backbone.name, settings.data)
        run = RunDir(distributed.from_main(path))
        try:
            settings = _agree(run, loaded, resume, overridden)
            return make(run, settings, report, resume).run()
        except DsdmaeError as error:
            if main and run.held and not resume and not isinstance(error, RunFailed | RunInterrupted):
                run.abandon()
            raise
        finally:
            report.stop()
            run.release()


def _agree(run: RunDir, loaded: Loaded[Any], resume: bool, overridden: bool) -> BaseModel:
    """The settings to go by in every process; where the first is refused the directory, all are told why."""
    settings, problem = loaded.settings, None
    if distributed.rank() == 0:
        try:
            settings = _take(run, loaded, resume, overridden)
        except DsdmaeError as error:
            problem = error
    settings, problem = distributed.from_main((settings, problem))
    if problem is not None:
        raise problem
    return settings


def _take(run: RunDir, loaded: Loaded[Any], resume: bool, overridden: bool) -> BaseModel:
    """Make or reopen the run directory; the settings to go by."""
    resolve(loaded.settings)  # a rule between sections should fail before a directory is made
    if not resume:
        run.create(loaded.settings)
        return loaded.settings
    before = run.resume().settings
    if not overridden:
        return before
    changes = changed_settings(before, loaded.settings)
    if changes:
        raise SettingsError(
            f"--resume goes on with the settings of {run.path}, but these differ: {'; '.join(changes)};"
            " leave them out, or start a new run with --out"
        )
    return loaded.settings


def _tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise SettingsError("train.tensorboard = true needs TensorBoard; pip install 'dsdmae[tensorboard]'") from error
    return SummaryWriter(str(folder / "tensorboard"))
