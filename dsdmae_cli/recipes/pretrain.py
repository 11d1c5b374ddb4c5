"""`dsdmae pretrain`: from settings to a run directory with an encoder in it."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from dsdmae_cli import checkpoint, distributed, plugins
from dsdmae_cli.checkpoint import Checkpoint
from dsdmae_cli.data.augment import prepare
from dsdmae_cli.data.open import Labelled, choose, labelled_images, open_dataset, open_source, place
from dsdmae_cli.data.resident import decode_square, to_tensor
from dsdmae_cli.data.source import Batching, Source, Unreadable, seeded
from dsdmae_cli.engine import Trainer, choose_device
from dsdmae_cli.errors import CheckpointError, DsdmaeError, RunFailed, RunInterrupted, SettingsError
from dsdmae_cli.evaluation import knn_accuracy, mean_features
from dsdmae_cli.figures import RestorationRecord, curves
from dsdmae_cli.methods.base import Method
from dsdmae_cli.recipes.build import build_method, choose_runtime
from dsdmae_cli.recipes.signals import Requests, listening
from dsdmae_cli.report import Report, duration, make_report
from dsdmae_cli.rundir import RESULT, RunDir, changed_settings, default_path, environment
from dsdmae_cli.settings.describe import tables
from dsdmae_cli.settings.load import Loaded, resolve
from dsdmae_cli.settings.models import Settings

ENCODER = "encoder.safetensors"
_PICTURES = 8
_MOMENTS = 4  # pictures after each quarter of the run, and one before it


@dataclass(frozen=True)
class Held:
    """Images that are looked at but never trained on, and labelled ones for k-NN where there are any."""

    pictures: UInt8[Tensor, "n 3 s s"]
    bank: Labelled | None
    queries: Labelled | None


def pretrain(loaded: Loaded, *, out: Path | None, resume: bool, overridden: bool, as_json: bool) -> dict[str, Any]:
    """Run pre-training.

    Args:
        loaded: settings as the person gave them.
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
    device = choose_device(loaded.settings.train.device)
    with distributed.process_group(device):
        main = distributed.rank() == 0
        report = make_report(as_json=as_json, main_process=main)
        path = distributed.from_main(out or default_path(loaded.settings, datetime.now()))
        run = RunDir(path)
        try:
            settings = _agree(run, loaded, resume, overridden)
            return _Pretraining(run, settings, report, resume).run()
        except DsdmaeError as error:
            if main and run.held and not resume and not isinstance(error, RunFailed | RunInterrupted):
                run.abandon()
            raise
        finally:
            report.stop()
            run.release()


def _agree(run: RunDir, loaded: Loaded, resume: bool, overridden: bool) -> Settings:
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


def _take(run: RunDir, loaded: Loaded, resume: bool, overridden: bool) -> Settings:
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


class _Pretraining:
    """One run: builds the parts, is the Trainer's Hooks, and writes what the run leaves."""

    def __init__(self, run: RunDir, settings: Settings, report: Report, resume: bool) -> None:
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

    def run(self) -> dict[str, Any]:
        method = build_method(self.settings)
        self.runtime = choose_runtime(self.settings, method)
        self.method = method.to(self.runtime.device)
        self.source, self.held = self._open_data()
        self.trainer = Trainer(self.method, self.source, self.settings.optim, self.settings.train, self.runtime, self)
        self.moments = self._moments()
        self.pictures = RestorationRecord(self.run_dir.figures)
        self.tensorboard = _tensorboard(self.run_dir.path) if self._writes("tensorboard") else None
        if self.resume:
            self._restore()
        if self.main:
            self._describe()
        with listening() as self.requests:
            if self.trainer.step == 0:
                self._look(0)
                self._score(0)
            self.report.start(self.trainer.total_steps, self.trainer.step, self.trainer.steps_per_epoch)
            self.trainer.fit()
            self.report.stop()
            self.source.close()
            if self.requests.stop_signal and self.trainer.step < self.trainer.total_steps:
                self._interrupted()
        return self._finish()

    def _writes(self, what: str) -> bool:
        return self.main and bool(getattr(self.settings.train, what))

    # -- parts

    def _open_data(self) -> tuple[Source, Held]:
        settings, device = self.settings, self.runtime.device
        with distributed.main_first():
            self.dataset = open_dataset(settings.data, "train")
        self.unreadable = Unreadable(len(self.dataset), settings.data)
        placement = place(self.dataset, settings.data, device)
        if self.dataset.arrays() is None and placement.side:
            self.report.note(f"decoding {len(self.dataset)} images")
        batching = Batching(
            num_images=len(self.dataset),
            batch_size=settings.train.batch_size,
            micro_batch=self.runtime.micro_batch,
            seed=settings.train.seed,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
        )
        source = open_source(self.dataset, settings.data, placement, batching, device, self.unreadable)
        return source, self._hold(device)

    def _hold(self, device: torch.device) -> Held:
        settings = self.settings
        test = open_dataset(settings.data, "test")
        unreadable = Unreadable(len(test), settings.data)
        assert not isinstance(settings.data.image_size, str)
        shown = choose(len(test), _PICTURES, 0, "pictures")
        pictures, _ = decode_square(test, shown, settings.data.image_size, unreadable)
        bank = queries = None
        if settings.train.knn_every is not None and self.main:
            most = settings.train.knn_images
            split = plugins.find("dataset", settings.data.dataset).spec.labelled_split
            labelled = self.dataset if split == "train" else open_dataset(settings.data, split)
            bank = labelled_images(labelled, settings.data, most, device, self.unreadable)
            queries = labelled_images(test, settings.data, most, device, unreadable) if bank else None
        for line in unreadable.lines():
            self.report.warn(f"skipped an unreadable held-out image: {line}")
        return Held(to_tensor(pictures, device), bank, queries)

    def _moments(self) -> set[int]:
        total = self.trainer.total_steps
        return {round(total * i / _MOMENTS) for i in range(1, _MOMENTS + 1)}

    def _describe(self) -> None:
        """run.json, and a line for the person."""
        runtime = self.runtime
        described = environment() | {
            "run": "pretrain",
            "resumed_at_step": self.trainer.step or None,
            "device": str(runtime.device),
            "device_name": torch.cuda.get_device_name(runtime.device) if runtime.device.type == "cuda" else "CPU",
            "precision": runtime.precision,
            "compile": runtime.compile,
            "micro_batch": runtime.micro_batch,
            "world_size": distributed.world_size(),
            "threads": torch.get_num_threads(),
            "resolved_settings": tables(self.settings),
        }
        self.run_dir.write_json("run.json", described)
        s = self.settings
        resumed = f", resumed at step {self.trainer.step}" if self.trainer.step else ""
        self.report.note(
            f"{s.method.name} with {s.backbone.name} on {s.data.dataset}: {self.source.batching.num_images} images,"
            f" {self.trainer.total_steps} steps of {s.train.batch_size} on {runtime.device} in"
            f" {runtime.precision}{resumed}\nrun directory {self.run_dir.path}"
        )

    # -- Hooks

    def stepped(self, step: int) -> None:
        self.report.stepped(step)
        if step in self.moments:
            self._look(step)

    def logged(self, record: dict[str, float]) -> None:
        if self.main:
            self._log(record)

    def epoch_ended(self, epoch: int) -> None:
        train = self.settings.train
        last = epoch == train.epochs
        assert not isinstance(train.knn_every, str)
        assert not isinstance(train.checkpoint_every, str)
        if train.knn_every is not None and (last or epoch % train.knn_every == 0):
            self._score(self.trainer.step)
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

    # -- what is looked at and written on the way

    def _log(self, record: dict[str, Any]) -> None:
        self.run_dir.log(record)
        self.report.record(record)
        if self.tensorboard is not None:
            for name in record.keys() - {"step", "epoch"}:
                self.tensorboard.add_scalar(name, record[name], record["step"])

    @torch.no_grad()
    def _look(self, step: int) -> None:
        """A picture of the fixed images as they are restored now."""
        if not self.main:
            return
        images = prepare(self.held.pictures, self.method.encoder().image_size, "bicubic")
        self.method.eval()
        shown = self.method.restore(images, self.method.corrupt(images, seeded(images.device, 0)))
        self.method.train()
        if shown is not None:
            self.pictures.add(step, shown.corrupted, shown.restored, images)

    def _score(self, step: int) -> None:
        """k-NN accuracy of the encoder as it is now."""
        bank, queries = self.held.bank, self.held.queries
        if bank is None or queries is None:
            return
        dtype = torch.bfloat16 if self.runtime.precision == "bf16" else None
        batch = max(self.runtime.micro_batch, 64)
        features = [mean_features(self.method.encoder(), part.images, batch, dtype) for part in (bank, queries)]
        accuracy = knn_accuracy(features[0], bank.labels, features[1], queries.labels)
        self._log({"step": step, "epoch": step / self.trainer.steps_per_epoch, "knn": accuracy})

    # -- checkpoints

    def _save(self) -> None:
        if not self.main or self.saved_at == self.trainer.step:
            return
        model, training, state = self.trainer.state()
        state["seconds"] = self._seconds()
        state["unreadable"] = self.unreadable.reasons
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
            self.saved_at = found_step = found.step
        if self.main:
            self.run_dir.forget_after(found_step)

    def _interrupted(self) -> None:
        number = self.requests.stop_signal
        raise RunInterrupted(
            f"stopped by signal {number} and saved at step {self.trainer.step} of {self.trainer.total_steps};"
            f" go on with: dsdmae pretrain --resume --out {self.run_dir.path}",
            number,
        )

    # -- the end

    def _seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.began

    def _finish(self) -> dict[str, Any]:
        if not self.main:
            return {}
        self._save()
        if self.tensorboard is not None:
            self.tensorboard.close()
        records = self.run_dir.metrics()
        curves(records, self.run_dir.figures / "curves.png")
        how = save_encoder(self.method, self.settings, self.run_dir.path / ENCODER)
        result = self._result(records, how)
        self.run_dir.write_json(RESULT, result)
        for line in self.unreadable.lines():
            self.report.warn(f"skipped an unreadable image: {line}")
        return result

    def _result(self, records: list[dict[str, Any]], how: str) -> dict[str, Any]:
        train = [r for r in records if "loss" in r]
        scores = [r for r in records if "knn" in r]
        last = {k: v for k, v in train[-1].items() if k not in {"step", "epoch", "images_per_second"}} if train else {}
        return {
            "run": str(self.run_dir.path),
            "method": self.settings.method.name,
            "backbone": self.settings.backbone.name,
            "dataset": self.settings.data.dataset,
            "epochs": self.settings.train.epochs,
            "steps": self.trainer.step,
            "images_seen": self.trainer.step * self.settings.train.batch_size,
            "seconds": round(self._seconds(), 1),
            "final": last,
            "knn_accuracy": scores[-1]["knn"] if scores else None,
            "knn_accuracy_untrained": scores[0]["knn"] if scores and scores[0]["step"] == 0 else None,
            "skipped_steps": int(self.trainer.skipped),
            "unreadable_images": len(self.unreadable),
            "encoder": str(self.run_dir.path / ENCODER),
            "load_with": how,
            "pictures": str(self.run_dir.figures) if self.run_dir.figures.exists() else None,
        }


def save_encoder(method: Method, settings: Settings, path: Path) -> str:
    """Write the encoder under timm's parameter names; the Python expression that loads it."""
    encoder = method.encoder()
    metadata = {
        "timm_name": encoder.timm_name,
        "timm_kwargs": json.dumps(encoder.timm_kwargs),
        "settings": json.dumps(tables(settings)),
        "mean": "[0.5, 0.5, 0.5]",
        "std": "[0.5, 0.5, 0.5]",
    }
    checkpoint.save_weights(path, encoder.timm_state(), metadata)
    if not encoder.timm_name:
        return f"safetensors.torch.load_file({str(path)!r})"
    arguments = ", ".join(f"{key}={value!r}" for key, value in encoder.timm_kwargs.items())
    return f"timm.create_model({encoder.timm_name!r}, {arguments}, checkpoint_path={str(path)!r})"


def _tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise SettingsError("train.tensorboard = true needs TensorBoard; pip install 'dsdmae[tensorboard]'") from error
    return SummaryWriter(str(folder / "tensorboard"))


def summary(result: dict[str, Any]) -> str:
    """The lines for people at the end of a run."""
    lines = [f"{result['steps']} steps, {result['images_seen']} images in {duration(result['seconds'])}"]
    if result["final"]:
        lines[0] += f", last loss {result['final'].get('loss', float('nan')):.4f}"
    if result["knn_accuracy"] is not None:
        before = result["knn_accuracy_untrained"]
        was = f" (untrained {before:.1%})" if before is not None else ""
        lines.append(f"k-NN accuracy  {result['knn_accuracy']:.1%}{was}")
    if result["unreadable_images"]:
        lines.append(f"skipped        {result['unreadable_images']} unreadable images")
    if result["pictures"]:
        lines.append(f"pictures       {result['pictures']}")
    lines.append(f"encoder        {result['encoder']}")
    lines.append(f"load it with   {result['load_with']}")
    return "\n".join(lines)
