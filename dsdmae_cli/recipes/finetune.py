"""`dsdmae finetune`: train a whole network on labels, from a pre-trained encoder or from scratch, and judge it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

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
from dsdmae_cli.data.open import open_source, place
from dsdmae_cli.data.source import Unreadable, derive_seed
from dsdmae_cli.data.streaming import Transform
from dsdmae_cli.errors import RunFailed, SettingsError
from dsdmae_cli.evaluation.features import square_batches
from dsdmae_cli.evaluation.judging import LabelledSplits, base_result, draw, open_labelled, twins_line, warn_of_twins
from dsdmae_cli.evaluation.metrics import Scores, score
from dsdmae_cli.evaluation.split import few_shot, hold_out
from dsdmae_cli.methods.projection import synchronized
from dsdmae_cli.page.words import more_lines
from dsdmae_cli.report import Report, duration
from dsdmae_cli.runs.conduct import conduct
from dsdmae_cli.runs.observers.validation import Validation
from dsdmae_cli.runs.run import Parts, Run, Start
from dsdmae_cli.runs.rundir import CLASSIFIER
from dsdmae_cli.runtime import Runtime, autocast, choose_runtime, resident_bytes
from dsdmae_cli.settings.judge import FinetuneSettings
from dsdmae_cli.settings.resolved import ResolvedFinetuneSettings
from dsdmae_cli.tasks.classifier import Classifier
from dsdmae_cli.transfer import Gathered
from dsdmae_cli.work import encoder_flops, measure_work

_BEST = "best.safetensors"
_BATCH = 256


class Answers(NamedTuple):
    """Logits and pooled features of the images that could be read, and which those are."""

    logits: Float[Tensor, "n c"]
    features: Float[Tensor, "n d"]
    indices: Int64[Tensor, " n"]


def finetune(
    loaded: Loaded[FinetuneSettings],
    *,
    out: Path | None,
    resume: bool,
    overridden: bool,
    accept_changes: bool = False,
    as_json: bool = False,
    report: Report | None = None,
) -> dict[str, Any]:
    """Run fine-tuning; arguments, result and errors are those of runs.conduct.conduct."""
    return conduct(
        "finetune", _put_together, loaded, "finetune", out=out, resume=resume, overridden=overridden,
        accept_changes=accept_changes, report=report, as_json=as_json,
    )  # fmt: skip


def build_classifier(settings: ResolvedFinetuneSettings, num_classes: int) -> tuple[Opened, Classifier]:
    """The network of resolved settings on the CPU, its head's first weights drawn from the seed."""
    seed = settings.train.seed
    subject = parse(settings.finetune.start)
    if subject.kind == PIXELS:
        raise SettingsError("pixels have no weights to fine-tune; probe them, or fine-tune scratch")
    size = settings.data.image_size
    opened = open_encoder(subject, settings.data, backbone=settings.backbone, image_size=size, seed=seed, adapt=True)
    torch.manual_seed(derive_seed(seed, "head"))
    return opened, Classifier(settings.finetune, synchronized(opened.encoder), num_classes, settings.optim.layer_decay)


def _put_together(start: Start) -> Parts:
    """The network, its labelled images, and the share of them that watches it."""
    settings: ResolvedFinetuneSettings = start.settings
    with distributed.main_first():
        judged = open_labelled(settings.data)
    start.report.account(judged.account(settings.data).rows())
    if start.main and not start.resumed:
        warn_of_twins(judged.twins, start.report)
    if settings.finetune.labels < 1:
        chosen = few_shot(judged.train_labels, settings.finetune.labels, settings.train.seed)
        judged = replace(judged, train=Subset(judged.train, chosen))
    opened, classifier = build_classifier(settings, len(judged.classes))
    for note in (*judged.notes, *opened.notes):
        start.report.note(note)
    runtime = choose_runtime(settings, classifier, held=resident_bytes(judged.train, settings))
    classifier.to(runtime.device)
    _check_pairs(settings, classifier, runtime)
    transform = _transform(settings)
    train: ImageDataset = judged.train
    held_out: ImageDataset | None = None
    if settings.finetune.validation:
        split = hold_out(judged.train_labels, settings.finetune.validation, settings.train.seed)
        train, held_out = Subset(train, split.fit), Subset(train, split.held)
    if settings.finetune.class_weights is not None:
        classifier.weigh_classes(torch.from_numpy(train.labels))
    unreadable = Unreadable(len(train), settings.data)
    placement = place(train, settings.data, runtime.device)
    if train.arrays() is None and placement.size:
        start.report.note(f"decoding {len(train)} images")
    source = open_source(
        train, settings.data, placement, start.batching(train, runtime), runtime.device, unreadable, labelled=True,
        transform=transform,
    )  # fmt: skip
    answering = _Answering(settings, classifier, runtime, start.report)
    validation = None if held_out is None else _validation(start, settings, classifier, answering, held_out)
    return Parts(
        method=classifier,
        runtime=runtime,
        source=source,
        dataset=train,
        unreadable=unreadable,
        observers=[] if validation is None else [validation],
        sentence=f"fine-tuning {opened.name} ({settings.backbone.name}) on {settings.data.dataset}",
        result=partial(_result, judged, opened, answering, validation, len(train)),
    )


def _check_pairs(settings: ResolvedFinetuneSettings, classifier: Classifier, runtime: Runtime) -> None:
    micro = runtime.micro_batch
    if classifier.mixup is not None and (micro % 2 or settings.train.batch_size % micro):
        raise SettingsError(
            f"mixup and CutMix pair the images of a micro-batch, which holds {micro} here; use an even"
            " --batch-size, or switch both off with --set finetune.mixup=0 --set finetune.cutmix=0"
        )


def _transform(settings: ResolvedFinetuneSettings) -> Transform | None:
    if settings.finetune.rand_augment is None:
        return None
    from dsdmae_cli.data.rand_augment import RandAugment

    return RandAugment(settings.finetune.rand_augment, settings.data.image_size, settings.data.channels)


def _validation(
    start: Start,
    settings: ResolvedFinetuneSettings,
    classifier: Classifier,
    answering: _Answering,
    held_out: ImageDataset,
) -> Validation:
    def accuracy() -> float:
        answers = answering(held_out)
        assert held_out.labels is not None
        truth = torch.from_numpy(held_out.labels)[answers.indices]
        return float((answers.logits.argmax(dim=1) == truth).double().mean())

    def keep() -> None:
        checkpoint.save_weights(start.directory.path / _BEST, classifier.judged().state_dict(), {})

    return Validation(accuracy, settings.train.score_every, keep if settings.finetune.select == "best" else None)


class _Answering:
    """The judged network on clean images, in eval mode."""

    def __init__(
        self, settings: ResolvedFinetuneSettings, classifier: Classifier, runtime: Runtime, report: Report
    ) -> None:
        self.settings, self.classifier, self.runtime, self.report = settings, classifier, runtime, report

    @torch.no_grad()
    def __call__(self, dataset: ImageDataset) -> Answers:
        network, data = self.classifier.judged(), self.settings.data
        encoder = network.backbone
        was_training = network.training
        network.eval()
        kept: dict[str, Tensor] = {}
        hook = network.head.register_forward_pre_hook(lambda _, inputs: kept.update(features=inputs[0]))
        answered, seen, indices = Gathered(), Gathered(), Gathered()
        unreadable = Unreadable(len(dataset), data)
        device = self.runtime.device
        for batch in square_batches(dataset, range(len(dataset)), encoder.image_size, _BATCH, device, unreadable):
            with autocast(device, self.runtime.precision):
                logits = network(prepare(batch.images, encoder.image_size, data.interpolation))
            for column, found in ((answered, logits), (seen, kept["features"])):
                column.add(found.float())
            indices.add(batch.indices)
        hook.remove()
        network.train(was_training)
        for line in unreadable.lines():
            self.report.warn(f"skipped an unreadable image: {line}")
        answers = Answers(answered.cat(), seen.cat(), indices.cat())
        if not answers.logits.isfinite().all():
            raise RunFailed("the network's answers are not finite; lower --lr or use --precision fp32")
        return answers


# -- the end


def _result(
    judged: LabelledSplits,
    opened: Opened,
    answering: _Answering,
    validation: Validation | None,
    train_images: int,
    run: Run,
) -> dict[str, Any]:
    """Judge the network once on the test images, and write it down."""
    trained = run.seconds()
    settings: ResolvedFinetuneSettings = run.settings
    network, path = answering.classifier.judged(), run.directory.path / CLASSIFIER
    if settings.finetune.select == "best":
        best = run.directory.path / _BEST
        checkpoint.load_into(network, checkpoint.load_weights(best), str(best))
    answers = answering(judged.test)
    labels = torch.from_numpy(judged.test_labels)[answers.indices]
    scores = score(answers.logits, labels)
    figures = run.directory.figures
    found = (answers.logits, labels, answers.indices, answers.features)
    run.decorate("the figures", lambda: draw(figures, judged, scores, *found, settings.data, run.report))
    save_classifier(network, tables(settings), judged.classes, path)
    chosen = validation.best if validation is not None else None
    protocol = _protocol(settings, chosen, train_images)
    return {
        "run": str(run.directory.path),
        **base_result("finetune", protocol, opened.described(), settings, judged, scores),
        "epochs": settings.train.epochs,
        "steps": run.trainer.step,
        "images_seen": run.images_seen,
        "validation": chosen,
        "train_seconds": round(trained, 1),
        "seconds": round(run.seconds(), 1),
        "flops": _flops(run, opened, scores),
        "skipped_steps": int(run.trainer.skipped),
        "unreadable_images": len(run.unreadable),
        "classifier_sha256": checkpoint.weights_sha256(dict(network.state_dict())),
        "figures": str(run.directory.figures),
        "classifier": str(path),
        "load_with": load_with(network, path),
    }


def _flops(run: Run, opened: Opened, scores: Scores) -> float:
    return measure_work(run.method)[0] * run.images_seen + encoder_flops(opened.encoder) * scores.num_images


def _protocol(settings: ResolvedFinetuneSettings, chosen: dict[str, Any] | None, train_images: int) -> str:
    """What was done, in words."""
    f, o, t, d = settings.finetune, settings.optim, settings.train, settings.data
    softened = [
        f"layer decay {o.layer_decay:g}" * (o.layer_decay != 1),
        f"drop path {settings.backbone.drop_path:g}" * bool(settings.backbone.drop_path),
        f"crops {d.crop_scale}" * (d.crop_scale is not None),
        "flips" * (d.flip is True),
        f"shifts of {d.shift} px" * bool(d.shift),
        f"RandAugment {f.rand_augment}" * (f.rand_augment is not None),
        f"mixup {f.mixup:g}" * bool(f.mixup),
        f"CutMix {f.cutmix:g}" * bool(f.cutmix),
        f"random erasing {f.random_erasing:g}" * bool(f.random_erasing),
        f"{f.class_weights} class weights" * (f.class_weights is not None),
        f"label smoothing {f.label_smoothing:g}" * bool(f.label_smoothing),
        f"weights averaged with {f.ema}" * (f.ema is not None),
    ]
    with_ = ", ".join(filter(None, softened)) or "no augmentation"
    if f.select == "best" and chosen is not None:
        judged = f"epoch {chosen['epoch']}, the best on a held-out {f.validation:.0%} of the training images"
    else:
        judged = "the last epoch"
    return (
        f"all weights trained by AdamW for {t.epochs} epochs, batch {t.batch_size}, peak rate {o.lr:.3g}, on"
        f" {train_images} images with {with_}; {f.pool}-pooled tokens; {judged} is judged, once, on the test images"
    )


def summary(result: dict[str, Any]) -> str:
    """The lines for people."""
    low, high = result["top1_interval"]
    lines = [
        f"{result['subject']} fine-tuned on {result['dataset']}",
        f"top-1          {result['top1']:.1%} (95% interval over test images {low:.1%} to {high:.1%})",
        *more_lines(result),
        *twins_line(result),
        f"protocol       {result['protocol']}",
        f"figures        {result['figures']}",
        f"classifier     {result['classifier']}",
    ]
    if result["load_with"]:
        lines.append(f"load it with   {result['load_with']}")
    lines.append(f"time           {duration(result['seconds'])}")
    return "\n".join(lines)
