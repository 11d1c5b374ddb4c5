"""`dsdmae pretrain`: from settings to a run directory with an encoder in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from dsdmae_cli import distributed, plugins
from dsdmae_cli.data.augment import prepare
from dsdmae_cli.data.base import ImageDataset
from dsdmae_cli.data.open import Labelled, choose, labelled_images, open_dataset, open_source
from dsdmae_cli.data.resident import decode_square, to_tensor
from dsdmae_cli.data.source import Source, Unreadable, seeded
from dsdmae_cli.evaluation import knn_accuracy, mean_features
from dsdmae_cli.evaluation.collapse import Spread, collapse_warning, feature_spread
from dsdmae_cli.figures import RestorationRecord, curves
from dsdmae_cli.methods.base import Method
from dsdmae_cli.recipes.build import build_method
from dsdmae_cli.recipes.encoders import load_with, save_encoder
from dsdmae_cli.recipes.training import TrainingRun, conduct
from dsdmae_cli.report import Report, duration
from dsdmae_cli.rundir import ENCODER, RunDir
from dsdmae_cli.settings.describe import tables
from dsdmae_cli.settings.load import Loaded
from dsdmae_cli.settings.models import Settings

_PICTURES = 8
_WATCHED = 512
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
    """Run pre-training; arguments, result and errors are those of recipes.training.conduct."""
    name = loaded.settings.method.name
    return conduct(Pretraining, loaded, name, out=out, resume=resume, overridden=overridden, as_json=as_json)


class Pretraining(TrainingRun):
    """A run of one method on images without labels."""

    command: ClassVar[str] = "pretrain"
    settings: Settings

    def __init__(self, run: RunDir, settings: Settings, report: Report, resume: bool) -> None:
        super().__init__(run, settings, report, resume)
        self.pictures = RestorationRecord(run.figures)

    def build(self) -> Method:
        return build_method(self.settings)

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
        assert not isinstance(settings.data.image_size, str)
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
        assert not isinstance(size, str)
        arrays, _ = decode_square(dataset, choose(len(dataset), most, 0, "watched"), size, unreadable)
        return to_tensor(arrays, self.runtime.device)

    def ready(self) -> None:
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
        assert not isinstance(every, str)
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
        self.log({**record, **spread})
        before = next((Spread(spread=r["spread"], rank=r["rank"]) for r in self.run_dir.metrics() if "rank" in r), None)
        warning = collapse_warning(spread, before)
        if warning is not None:
            self.report.warn(f"epoch {record['epoch']:.4g}: {warning}")

    def _features(self, images: UInt8[Tensor, "n 3 s s"]) -> Float[Tensor, "n d"]:
        dtype = torch.bfloat16 if self.runtime.precision == "bf16" else None
        return mean_features(self.method.encoder(), images, max(self.runtime.micro_batch, 64), dtype)

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
    if result["unreadable_images"]:
        lines.append(f"skipped        {result['unreadable_images']} unreadable images")
    if result["pictures"]:
        lines.append(f"pictures       {result['pictures']}")
    lines.append(f"encoder        {result['encoder']}")
    lines.append(f"load it with   {result['load_with']}")
    return "\n".join(lines)
