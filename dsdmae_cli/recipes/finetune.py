"""`dsdmae finetune`: train a whole network on labels, from a pre-trained encoder or from scratch, and judge it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from dsdmae_cli import checkpoint, distributed
from dsdmae_cli.artifacts.classifier import load_with, save_classifier
from dsdmae_cli.artifacts.open import open_encoder
from dsdmae_cli.artifacts.opened import Opened
from dsdmae_cli.artifacts.subject import PIXELS, parse
from dsdmae_cli.config.describe import tables
from dsdmae_cli.config.schema import Loaded
from dsdmae_cli.data.augment import prepare
from dsdmae_cli.data.base import ImageDataset, Subset
from dsdmae_cli.data.open import open_source
from dsdmae_cli.data.source import Source, Unreadable, derive_seed
from dsdmae_cli.errors import RunFailed, SettingsError
from dsdmae_cli.evaluation.features import square_batches
from dsdmae_cli.evaluation.judging import Judged, base_result, draw, open_judged
from dsdmae_cli.evaluation.metrics import Scores, score
from dsdmae_cli.evaluation.split import hold_out
from dsdmae_cli.figures import curves
from dsdmae_cli.methods.base import Method
from dsdmae_cli.report import Report, duration
from dsdmae_cli.runs.run import TrainingRun, conduct
from dsdmae_cli.runs.rundir import CLASSIFIER, RunDir
from dsdmae_cli.runtime import autocast
from dsdmae_cli.settings.judge import FinetuneSettings
from dsdmae_cli.settings.resolved import ResolvedFinetuneSettings
from dsdmae_cli.tasks.classifier import Classifier
from dsdmae_cli.work import encoder_flops, measure_work

_BEST = "best.safetensors"
_BATCH = 256


class Answers(NamedTuple):
    """Logits and pooled features of the images that could be read, and which those are."""

    logits: Float[Tensor, "n c"]
    features: Float[Tensor, "n d"]
    indices: Int64[Tensor, " n"]


def finetune(
    loaded: Loaded[FinetuneSettings], *, out: Path | None, resume: bool, overridden: bool, as_json: bool
) -> dict[str, Any]:
    """Run fine-tuning; arguments, result and errors are those of runs.run.conduct."""
    return conduct(Finetuning, loaded, "finetune", out=out, resume=resume, overridden=overridden, as_json=as_json)


def build_classifier(settings: ResolvedFinetuneSettings, num_classes: int) -> tuple[Opened, Classifier]:
    """The network of resolved settings on the CPU, its head's first weights drawn from the seed."""
    size = settings.data.image_size
    seed = settings.train.seed
    subject = parse(settings.finetune.start)
    if subject.kind == PIXELS:
        raise SettingsError("pixels have no weights to fine-tune; probe them, or fine-tune scratch")
    opened = open_encoder(subject, settings.data, backbone=settings.backbone, image_size=size, seed=seed)
    torch.manual_seed(derive_seed(seed, "head"))
    return opened, Classifier(settings.finetune, opened.encoder, num_classes, settings.optim.layer_decay)


class Finetuning(TrainingRun):
    """A run on labelled images."""

    command: ClassVar[str] = "finetune"
    settings: ResolvedFinetuneSettings

    def __init__(self, run: RunDir, settings: ResolvedFinetuneSettings, report: Report, resume: bool) -> None:
        super().__init__(run, settings, report, resume)
        self.best: dict[str, Any] | None = None  # {"epoch", "accuracy"} on the held-out share

    def build(self) -> Method:
        with distributed.main_first():
            self.judged: Judged = open_judged(self.settings.data)
        self.opened, method = build_classifier(self.settings, len(self.judged.classes))
        for note in self.opened.notes:
            self.report.note(note)
        return method

    @property
    def classifier(self) -> Classifier:
        """The method under its own type."""
        assert isinstance(self.method, Classifier)
        return self.method

    def sentence(self) -> str:
        s = self.settings
        return f"fine-tuning {self.opened.name} ({s.backbone.name}) on {s.data.dataset}"

    def open_data(self) -> Source:
        settings, micro = self.settings, self.runtime.micro_batch
        if self.classifier.mixup is not None and (micro % 2 or settings.train.batch_size % micro):
            raise SettingsError(
                f"mixup and CutMix pair the images of a micro-batch, which holds {micro} here; use an even"
                " --batch-size, or switch both off with --set finetune.mixup=0 --set finetune.cutmix=0"
            )
        train: ImageDataset = self.judged.train
        self.held_out: ImageDataset | None = None
        if settings.finetune.validation:
            split = hold_out(self.judged.train_labels, settings.finetune.validation, settings.train.seed)
            train, self.held_out = Subset(train, split.fit), Subset(train, split.held)
        self.train_images = len(train)
        placement = self.place(train)
        transform = None
        if settings.finetune.rand_augment is not None:
            from dsdmae_cli.data.rand_augment import RandAugment

            transform = RandAugment(settings.finetune.rand_augment, settings.data.image_size)
        return open_source(
            train, settings.data, placement, self.batching(train), self.runtime.device, self.unreadable,
            labelled=True, transform=transform,
        )  # fmt: skip

    # -- on the way

    def score(self, epoch: int, last: bool) -> None:
        every = self.settings.train.score_every
        if self.held_out is None or not self.main or not (last or epoch % every == 0):
            return
        answers = self._answer(self.held_out)
        assert self.held_out.labels is not None
        truth = torch.from_numpy(self.held_out.labels)[answers.indices]
        accuracy = float((answers.logits.argmax(dim=1) == truth).double().mean())
        self.log({"step": self.trainer.step, "epoch": float(epoch), "validation": accuracy})
        if self.best is None or accuracy > self.best["accuracy"]:
            self.best = {"epoch": epoch, "accuracy": accuracy}
            if self.settings.finetune.select == "best":
                checkpoint.save_weights(self.run_dir.path / _BEST, self.classifier.judged().state_dict(), {})

    def extra_state(self) -> dict[str, Any]:
        return {"best": self.best}

    def restore_extra(self, state: dict[str, Any]) -> None:
        self.best = state["best"]

    @torch.no_grad()
    def _answer(self, dataset: ImageDataset) -> Answers:
        """The judged network on clean images, in eval mode."""
        network, settings = self.classifier.judged(), self.settings
        encoder = network.backbone
        was_training = network.training
        network.eval()
        kept: dict[str, Tensor] = {}
        hook = network.head.register_forward_pre_hook(lambda _, inputs: kept.update(features=inputs[0]))
        parts: list[Answers] = []
        unreadable = Unreadable(len(dataset), settings.data)
        device = self.runtime.device
        for batch in square_batches(dataset, range(len(dataset)), encoder.image_size, _BATCH, device, unreadable):
            with autocast(device, self.runtime.precision):
                logits = network(prepare(batch.images, encoder.image_size, settings.data.interpolation))
            parts.append(Answers(logits.float().cpu(), kept["features"].float().cpu(), batch.indices))
        hook.remove()
        network.train(was_training)
        for line in unreadable.lines():
            self.report.warn(f"skipped an unreadable image: {line}")
        answers = Answers(*(torch.cat(column) for column in zip(*parts, strict=True)))
        if not answers.logits.isfinite().all():
            raise RunFailed("the network's answers are not finite; lower --lr or use --precision fp32")
        return answers

    # -- the end

    def result(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        if self.settings.finetune.select == "best":
            best = checkpoint.load_weights(self.run_dir.path / _BEST)
            checkpoint.load_into(self.classifier.judged(), best, str(self.run_dir.path / _BEST))
        curves(records, self.run_dir.figures / "curves.png")
        answers = self._answer(self.judged.test)
        labels = torch.from_numpy(self.judged.test_labels)[answers.indices]
        scores = score(answers.logits, labels)
        draw(
            self.run_dir.figures, self.judged, scores, answers.logits, labels, answers.indices, answers.features,
            self.settings.data,
        )  # fmt: skip
        path = self.run_dir.path / CLASSIFIER
        network = self.classifier.judged()
        save_classifier(network, tables(self.settings), self.judged.classes, path)
        return self._result(scores) | {"classifier": str(path), "load_with": load_with(network, path)}

    def _result(self, scores: Scores) -> dict[str, Any]:
        images_seen = self.trainer.step * self.settings.train.batch_size
        work = measure_work(self.classifier)[0] * images_seen + encoder_flops(self.opened.encoder) * scores.num_images
        return {
            "run": str(self.run_dir.path),
            **base_result("finetune", self.protocol(), self.opened.described(), self.settings, self.judged, scores),
            "epochs": self.settings.train.epochs,
            "steps": self.trainer.step,
            "images_seen": images_seen,
            "validation": self.best,
            "seconds": round(self.seconds(), 1),
            "flops": work,
            "skipped_steps": int(self.trainer.skipped),
            "unreadable_images": len(self.unreadable),
            "classifier_sha256": checkpoint.weights_sha256(dict(self.classifier.judged().state_dict())),
            "figures": str(self.run_dir.figures),
        }

    def protocol(self) -> str:
        """What was done, in words."""
        f, o, t, d = self.settings.finetune, self.settings.optim, self.settings.train, self.settings.data
        softened = [
            f"layer decay {o.layer_decay:g}" * (o.layer_decay != 1),
            f"drop path {self.settings.backbone.drop_path:g}" * bool(self.settings.backbone.drop_path),
            f"crops {d.crop_scale}" * (d.crop_scale is not None),
            "flips" * (d.flip is True),
            f"shifts of {d.shift} px" * bool(d.shift),
            f"RandAugment {f.rand_augment}" * (f.rand_augment is not None),
            f"mixup {f.mixup:g}" * bool(f.mixup),
            f"CutMix {f.cutmix:g}" * bool(f.cutmix),
            f"random erasing {f.random_erasing:g}" * bool(f.random_erasing),
            f"label smoothing {f.label_smoothing:g}" * bool(f.label_smoothing),
            f"weights averaged with {f.ema}" * (f.ema is not None),
        ]
        with_ = ", ".join(filter(None, softened)) or "no augmentation"
        if f.select == "best" and self.best is not None:
            judged = f"epoch {self.best['epoch']}, the best on a held-out {f.validation:.0%} of the training images"
        else:
            judged = "the last epoch"
        return (
            f"all weights trained by AdamW for {t.epochs} epochs, batch {t.batch_size}, peak rate {o.lr:.3g}, on"
            f" {self.train_images} images with {with_}; {f.pool}-pooled tokens; {judged} is judged, once, on the test"
            " images"
        )


def summary(result: dict[str, Any]) -> str:
    """The lines for people."""
    low, high = result["top1_interval"]
    lines = [
        f"{result['subject']} fine-tuned on {result['dataset']}",
        f"top-1          {result['top1']:.1%} (95% interval over test images {low:.1%} to {high:.1%})",
        f"top-{result['top5_k']}          {result['top5']:.1%}",
        f"protocol       {result['protocol']}",
        f"figures        {result['figures']}",
        f"classifier     {result['classifier']}",
    ]
    if result["load_with"]:
        lines.append(f"load it with   {result['load_with']}")
    lines.append(f"time           {duration(result['seconds'])}")
    return "\n".join(lines)
