"""`dsdmae pretrain`: from settings to a run directory with an encoder in it."""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from filelock import FileLock, Timeout
from jaxtyping import Float, UInt8
from torch import Tensor

from dsdmae_cli import checkpoint, distributed, plugins
from dsdmae_cli.artifacts.open import load_with, save_encoder
from dsdmae_cli.config.describe import tables
from dsdmae_cli.config.resolve import resolve
from dsdmae_cli.config.schema import Loaded
from dsdmae_cli.data.augment import prepare
from dsdmae_cli.data.base import ImageDataset
from dsdmae_cli.data.open import Labelled, choose, labelled_images, open_dataset, open_source
from dsdmae_cli.data.resident import decode_square, to_tensor
from dsdmae_cli.data.source import Source, Unreadable, seeded
from dsdmae_cli.errors import DsdmaeError, RunInterrupted, SettingsError
from dsdmae_cli.evaluation.collapse import Spread, collapse_warning, feature_spread
from dsdmae_cli.evaluation.features import mean_features
from dsdmae_cli.evaluation.knn import knn_accuracy
from dsdmae_cli.figures import RestorationRecord, curves
from dsdmae_cli.files import write_bytes
from dsdmae_cli.methods.base import Method
from dsdmae_cli.plugins import Requirement
from dsdmae_cli.report import Report, duration, make_report
from dsdmae_cli.runs.build import build_method
from dsdmae_cli.runs.prerequisite import frozen_part, give_weights, has_ended, required_folder, requirement
from dsdmae_cli.runs.run import TrainingRun, conduct
from dsdmae_cli.runs.rundir import ENCODER, REQUIRED, RUN, SETTINGS, RunDir
from dsdmae_cli.runtime import choose_device
from dsdmae_cli.settings.models import Settings
from dsdmae_cli.settings.resolved import ResolvedSettings

_PICTURES = 8
_WATCHED = 512
_SCORES = {"step", "epoch", "knn", "spread", "rank"}  # what every method has measured
_PATIENCE = 2.0  # seconds between looks at what another run trains
_MOMENTS = 4  # pictures after each quarter of the run, and one before it


@dataclass(frozen=True)
class Held:
    """Images that are looked at but never trained on, and labelled ones for k-NN where there are any.

    watched: those whose features are watched for collapse; the queries, where there are any.
    """

    pictures: UInt8[Tensor, "n 3 s s"]
    watched: UInt8[Tensor, "n 3 s s"] | None
    bank: Labelled | None
    queries: Labelled | None


def pretrain(
    loaded: Loaded[Settings], *, out: Path | None, resume: bool, overridden: bool, as_json: bool
) -> dict[str, Any]:
    """Run pre-training; arguments, result and errors are those of runs.run.conduct."""
    settings = loaded.settings
    with distributed.process_group(choose_device(settings.train.device)):
        report = make_report(as_json=as_json, main_process=distributed.rank() == 0)
        begun = resume and out is not None and bool(checkpoint.newest_first(RunDir(out).checkpoints))
        needs = requirement(settings)
        required = None
        if needs is not None and not begun:  # a run that has begun holds the weights of what it needed
            required = _provide(resolve(settings), needs, None if resume else out, report, as_json)
        return conduct(
            partial(Pretraining, required=required), loaded, settings.method.name, out=out, resume=resume,
            overridden=overridden, as_json=as_json,
        )  # fmt: skip


def _provide(settings: ResolvedSettings, needs: Requirement, out: Path | None, report: Report, as_json: bool) -> Path:
    """The run of what a method needs trained beforehand; trained here and now if there is none yet.

    Args:
        out: where the run itself will be, if that has to be free.

    Raises:
        RunInterrupted: a signal asked to stop; what was learned is saved.
        SettingsError, DataError, RunFailed: it cannot be trained.
    """
    if out is not None:
        distributed.main_says(RunDir(out).check_free)  # before an hour of work, not after it
    folder, loaded = distributed.main_says(lambda: required_folder(settings, needs))
    lock = FileLock(folder.parent / f".{folder.name}.lock", timeout=0)
    told = False
    try:
        while (state := distributed.main_says(lambda: _claim(folder, lock, needs))) == "wait":
            if not told:
                report.note(f"waiting for another run that trains the {needs.method} {folder}")
            told = True
            time.sleep(_PATIENCE)
        if state == "train":
            report.note(f"training the {needs.method} first: {folder}")
            begun = distributed.from_main((folder / SETTINGS).is_file())
            # What may differ from its first part is this run's: another device, another place of the images.
            conduct(Pretraining, loaded, "", out=folder, resume=begun, overridden=begun, as_json=as_json)
            gc.collect()  # images and optimiser state of that run, before this one looks for room
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        else:
            report.note(f"{needs.method} {folder}")
    except RunInterrupted as stopped:
        number = stopped.exit_code - 128
        raise RunInterrupted(
            f"stopped by signal {number} while the {needs.method} was trained, which is saved; the same command goes"
            " on",
            number,
        ) from None
    except DsdmaeError as error:
        raise type(error)(
            f"while training the {needs.method} {folder}: {error}; or train one by `{needs.command}` and name it as"
            f" method.{needs.setting}"
        ) from error
    finally:
        lock.release()
    return folder


def _claim(folder: Path, lock: FileLock, needs: Requirement) -> Literal["there", "train", "wait"]:
    """Whether a run is there, is ours to make (the lock is then held), or is being made by another process."""
    if has_ended(folder):
        return "there"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        return "wait"
    except OSError as error:
        raise SettingsError(
            f"cannot write to {folder.parent}, where each {needs.method} is kept: {error.strerror or error}; set"
            f" XDG_DATA_HOME to a directory that can be written, or name one as method.{needs.setting}"
        ) from error
    return "there" if has_ended(folder) else "train"


class Pretraining(TrainingRun):
    """A run of one method on images without labels."""

    command: ClassVar[str] = "pretrain"
    settings: ResolvedSettings

    def __init__(
        self, run: RunDir, settings: Settings, report: Report, resume: bool, required: Path | None = None
    ) -> None:
        super().__init__(run, settings, report, resume)
        self.pictures = RestorationRecord(run.figures)
        self.required = required

    def build(self) -> Method:
        settings, kept = self.settings, self.run_dir.path / REQUIRED
        resumed = self.resume and bool(checkpoint.newest_first(self.run_dir.checkpoints))  # it brings its own weights
        if resumed:
            settings = settings.model_copy(update={"backbone": settings.backbone.without_weights()})
        method = build_method(settings, kept if resumed else None)
        needs = requirement(settings)
        if needs is not None and self.required is not None:
            give_weights(method, self.required, needs)
            if self.main:
                write_bytes(kept, (self.required / SETTINGS).read_bytes())
        return method

    def summary_of(self) -> dict[str, Any]:
        needs = requirement(self.settings)
        if needs is None:
            return {}
        before = self.run_dir.read_json(RUN).get("required")
        return {"required": {needs.method: str(self.required)} if self.required else before}

    def sentence(self) -> str:
        s = self.settings
        return f"{s.method.name} with {s.backbone.name} on {s.data.dataset}"

    def open_data(self) -> Source:
        settings, device = self.settings, self.runtime.device
        with distributed.main_first():
            self.dataset = open_dataset(settings.data, "train")
        placement = self.place(self.dataset)
        batching = self.batching(self.dataset)
        source = open_source(
            self.dataset, settings.data, placement, batching, device, self.unreadable, num_views=self.method.num_views
        )
        self.held = self._hold(device)
        return source

    def _hold(self, device: torch.device) -> Held:
        settings = self.settings
        test = open_dataset(settings.data, "test")
        unreadable = Unreadable(len(test), settings.data)
        shown = choose(len(test), _PICTURES, 0, "pictures")
        pictures, _ = decode_square(test, shown, settings.data.image_size, unreadable)
        bank = queries = watched = None
        if settings.train.knn_every is not None and self.main:
            most = settings.train.knn_images
            split = plugins.find("dataset", settings.data.dataset).spec.labelled_split
            labelled = self.dataset if split == "train" else open_dataset(settings.data, split)
            bank = labelled_images(labelled, settings.data, most, device, self.unreadable)
            queries = labelled_images(test, settings.data, most, device, unreadable) if bank else None
            watched = queries.images if queries else self._some(test, min(most, _WATCHED), unreadable)
        for line in unreadable.lines():
            self.report.warn(f"skipped an unreadable held-out image: {line}")
        return Held(to_tensor(pictures, device), watched, bank, queries)

    def _some(self, dataset: ImageDataset, most: int, unreadable: Unreadable) -> UInt8[Tensor, "n 3 s s"]:
        size = self.settings.data.image_size
        arrays, _ = decode_square(dataset, choose(len(dataset), most, 0, "watched"), size, unreadable)
        return to_tensor(arrays, self.runtime.device)

    def ready(self) -> None:
        assert requirement(self.settings) is None or frozen_part(self.method).trained
        total = self.trainer.total_steps
        self.moments = {round(total * i / _MOMENTS) for i in range(1, _MOMENTS + 1)}
        if self.trainer.step == 0:
            self._look(0)
            self._score_features(0)

    # -- what is looked at on the way

    def stepped(self, step: int) -> None:
        super().stepped(step)
        if step in self.moments:
            self._look(step)

    def score(self, epoch: int, last: bool) -> None:
        every = self.settings.train.knn_every
        if every is not None and (last or epoch % every == 0):
            self._score_features(self.trainer.step)

    @torch.no_grad()
    def _look(self, step: int) -> None:
        """A picture of the fixed images as they are restored now."""
        if not self.main:
            return
        images = prepare(self.held.pictures, self.method.encoder().image_size, "bicubic")
        self.method.eval()
        views = self.method.as_views(images)
        shown = self.method.restore(views, self.method.corrupt(views, seeded(images.device, 0)))
        self.method.train()
        if shown is not None:
            self.pictures.add(step, shown.corrupted, shown.restored, images)

    def _score_features(self, step: int) -> None:
        """k-NN accuracy of the encoder as it is now, where there are labels, and whether its features collapse."""
        watched, bank, queries = self.held.watched, self.held.bank, self.held.queries
        if watched is None:
            return
        record: dict[str, Any] = {"step": step, "epoch": step / self.trainer.steps_per_epoch}
        features = self._features(watched)
        if bank is not None and queries is not None:
            record["knn"] = knn_accuracy(self._features(bank.images), bank.labels, features, queries.labels)
        spread = feature_spread(features)
        self.log({**record, **self._measured(watched), **spread})
        before = next((Spread(spread=r["spread"], rank=r["rank"]) for r in self.run_dir.metrics() if "rank" in r), None)
        warning = collapse_warning(spread, before)
        if warning is not None and self.method.learns_features:
            self.report.warn(f"epoch {record['epoch']:.4g}: {warning}")

    @torch.no_grad()
    def _measured(self, images: UInt8[Tensor, "n 3 s s"]) -> dict[str, float]:
        """What the method says of itself on held-out images."""
        self.method.eval()
        measured = self.method.measure(prepare(images[:_WATCHED], self.method.encoder().image_size, "bicubic"))
        self.method.train()
        return measured

    def _features(self, images: UInt8[Tensor, "n 3 s s"]) -> Float[Tensor, "n d"]:
        return mean_features(self.method.encoder(), images, max(self.runtime.micro_batch, 64), self.runtime.precision)

    # -- the end

    def result(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        curves(records, self.run_dir.figures / "curves.png")
        images_seen = self.trainer.step * self.settings.train.batch_size
        encoder, path = self.method.encoder(), self.run_dir.path / ENCODER
        save_encoder(encoder, tables(self.settings), images_seen, path)
        train = [r for r in records if "loss" in r]
        scores = [r for r in records if "knn" in r]
        spreads = [r for r in records if "rank" in r]
        last = {k: v for k, v in train[-1].items() if k not in {"step", "epoch", "images_per_second"}} if train else {}
        return {
            "run": str(self.run_dir.path),
            "method": self.settings.method.name,
            "backbone": self.settings.backbone.name,
            "dataset": self.settings.data.dataset,
            "epochs": self.settings.train.epochs,
            "steps": self.trainer.step,
            "images_seen": images_seen,
            "seconds": round(self.seconds(), 1),
            "final": last,
            "knn_accuracy": scores[-1]["knn"] if scores else None,
            "knn_accuracy_untrained": scores[0]["knn"] if scores and scores[0]["step"] == 0 else None,
            "measured": {k: spreads[-1][k] for k in spreads[-1] if k not in _SCORES} if spreads else {},
            "feature_spread": spreads[-1]["spread"] if spreads else None,
            "feature_rank": spreads[-1]["rank"] if spreads else None,
            "skipped_steps": int(self.trainer.skipped),
            "unreadable_images": len(self.unreadable),
            "encoder": str(path),
            "load_with": load_with(encoder, path),
            "pictures": str(self.run_dir.figures) if self.run_dir.figures.exists() else None,
        }


def summary(result: dict[str, Any]) -> str:
    """The lines for people at the end of a run."""
    lines = [f"{result['steps']} steps, {result['images_seen']} images in {duration(result['seconds'])}"]
    if result["final"]:
        lines[0] += f", last loss {result['final'].get('loss', float('nan')):.4f}"
    if result["knn_accuracy"] is not None:
        before = result["knn_accuracy_untrained"]
        was = f" (untrained {before:.1%})" if before is not None else ""
        lines.append(f"k-NN accuracy  {result['knn_accuracy']:.1%}{was}")
    if result["measured"]:
        lines.append(f"on held-out    {', '.join(f'{name} {value:.4g}' for name, value in result['measured'].items())}")
    if result["unreadable_images"]:
        lines.append(f"skipped        {result['unreadable_images']} unreadable images")
    if result["pictures"]:
        lines.append(f"pictures       {result['pictures']}")
    lines.append(f"encoder        {result['encoder']}")
    lines.append(f"load it with   {result['load_with']}")
    return "\n".join(lines)
