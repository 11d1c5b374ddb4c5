"""`dsdmae finetune`: train a whole network on labels, from a pre-trained encoder or from scratch, and judge it.

What it learns is a Task: the classes of images (evaluation/classifying.py), or of pixels (segmentation/tuning.py).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from jaxtyping import Int64

from dsdmae_cli import checkpoint, distributed, plugins
from dsdmae_cli.artifacts.classifier import load_with, save_classifier
from dsdmae_cli.artifacts.open import open_encoder
from dsdmae_cli.artifacts.opened import Opened
from dsdmae_cli.artifacts.subject import parse
from dsdmae_cli.backbone import Backbone
from dsdmae_cli.config.describe import tables
from dsdmae_cli.config.schema import Loaded
from dsdmae_cli.data.base import ImageDataset
from dsdmae_cli.data.masks import MaskedImages
from dsdmae_cli.data.open import open_source, place
from dsdmae_cli.data.source import Unreadable, derive_seed
from dsdmae_cli.data.streaming import Transform
from dsdmae_cli.errors import SettingsError
from dsdmae_cli.evaluation import classifying, judging
from dsdmae_cli.evaluation.judging import Answering, Figures, Judged, Outputs
from dsdmae_cli.evaluation.split import HeldOut
from dsdmae_cli.methods.projection import synchronized
from dsdmae_cli.page.words import more_lines, page_line
from dsdmae_cli.report import Report, duration, number_of
from dsdmae_cli.runs.conduct import conduct
from dsdmae_cli.runs.judged import untrained_line
from dsdmae_cli.runs.observers.validation import Validation
from dsdmae_cli.runs.plan import Plan, make_plan
from dsdmae_cli.runs.run import Parts, Run, Start
from dsdmae_cli.runs.rundir import CLASSIFIER, called
from dsdmae_cli.runtime import Runtime, choose_runtime, resident_bytes
from dsdmae_cli.segmentation import answers, tuning
from dsdmae_cli.settings.judge import PIXELS, FinetuneSettings
from dsdmae_cli.settings.resolved import ResolvedData, ResolvedFinetuneSettings
from dsdmae_cli.tasks.classifier import Classifier
from dsdmae_cli.tasks.finetuning import FineTuning
from dsdmae_cli.work import encoder_flops, measure_work

_BEST = "best.safetensors"
M = TypeVar("M", bound=FineTuning[Any])


class Task(Judged, Protocol):
    """What a network is fine-tuned to say.

    Attributes:
        metric: what held-out images are scored by, a share from 0 to 1.
        of_pixels: images have masks, and batches carry them.
        values: of the classes in the files of masks; None where there are none.
    """

    metric: str
    of_pixels: bool

    @property
    def values(self) -> tuple[int, ...] | None: ...
    def account(self, settings: ResolvedData) -> dict[str, str]: ...
    def further_account(self) -> dict[str, str]: ...
    def method(self, settings: ResolvedFinetuneSettings, backbone: Backbone) -> FineTuning[Any]: ...
    def hold_out(self, share: float, seed: int) -> HeldOut: ...
    def part(self, indices: Int64[np.ndarray, " k"]) -> ImageDataset: ...
    def weigh(self, method: Any, train: ImageDataset) -> None: ...
    def score(self, answering: Answering, held_out: ImageDataset) -> float: ...
    def judge(self, answering: Answering, outputs: Outputs) -> Figures: ...
    def further(self) -> dict[str, Any]: ...
    def words(self, settings: ResolvedFinetuneSettings) -> str: ...


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


def open_task(settings: ResolvedFinetuneSettings, report: Report) -> Task:
    """What resolved settings have a network learn, and the images for it.

    Raises:
        DataError: these have no such labels.
    """
    if settings.finetune.task == "segment":
        return tuning.Segmentation(settings, report)
    return classifying.Classification(settings)


def build(
    settings: ResolvedFinetuneSettings, method: Callable[[ResolvedFinetuneSettings, Backbone], M]
) -> tuple[Opened, M]:
    """The network of resolved settings on the CPU, its head's first weights drawn from the seed."""
    seed = settings.train.seed
    subject = parse(settings.finetune.start)
    if subject.kind == PIXELS:
        raise SettingsError("pixels have no weights to fine-tune; probe them, or fine-tune scratch")
    size = settings.data.image_size
    opened = open_encoder(subject, settings.data, backbone=settings.backbone, image_size=size, seed=seed, adapt=True)
    torch.manual_seed(derive_seed(seed, "head"))
    return opened, method(settings, synchronized(opened.encoder))


def build_classifier(settings: ResolvedFinetuneSettings, num_classes: int) -> tuple[Opened, Classifier]:
    """The same of a network that names images."""
    return build(settings, partial(classifying.classifier, num_classes))


def plan(settings: ResolvedFinetuneSettings) -> Plan:
    """--dry-run: what resolved settings amount to; nothing is written."""
    task = open_task(settings, Report())
    _, method = build(settings, task.method)
    share = settings.finetune.validation
    train = task.part(task.hold_out(share, settings.train.seed).fit) if share else task.train
    split = plugins.find("dataset", settings.data.dataset).spec.labelled_split
    return make_plan(settings, method, split, train=train, further=task.further_account())


def _put_together(start: Start) -> Parts:
    """The network, its labelled images, and the share of them that watches it."""
    settings: ResolvedFinetuneSettings = start.settings
    with distributed.main_first():
        task = open_task(settings, start.report)
    start.report.account(task.account(settings.data))
    if start.main and not start.resumed:
        judging.warn_of_twins(task.twins, start.report)
    opened, method = build(settings, task.method)
    for note in (*task.notes, *opened.notes):
        start.report.note(note)
    train, held_out = task.train, None
    runtime = choose_runtime(settings, method, held=resident_bytes(train, settings, masked=task.of_pixels))
    runtime.receive(method)
    _check_pairs(settings, method, runtime)
    if settings.finetune.validation:
        split = task.hold_out(settings.finetune.validation, settings.train.seed)
        train, held_out = task.part(split.fit), task.part(split.held)
    if settings.finetune.class_weights is not None:
        task.weigh(method, train)
    unreadable = Unreadable(len(train), settings.data, "training")
    placement = place(train, settings.data, runtime.device, masked=task.of_pixels)
    if train.arrays() is None and placement.size:
        start.report.note(f"decoding {number_of(len(train), 'image')}")
    source = open_source(
        train, settings.data, placement, start.batching(train, runtime), runtime.device, unreadable,
        labelled=not task.of_pixels, masked=train if isinstance(train, MaskedImages) else None,
        transform=_transform(settings), note=start.report.note,
    )  # fmt: skip
    answering = Answering(settings, method, runtime, start.report)
    validation = None if held_out is None else _validation(start, task, answering, held_out)
    return Parts(
        method=method,
        runtime=runtime,
        source=source,
        dataset=train,
        unreadable=unreadable,
        observers=[] if validation is None else [validation],
        sentence=f"fine-tuning {opened.name} ({settings.backbone.name}) on {settings.data.dataset}",
        result=partial(_result, task, opened, answering, validation, len(train)),
    )


def _check_pairs(settings: ResolvedFinetuneSettings, method: FineTuning[Any], runtime: Runtime) -> None:
    micro = runtime.micro_batch
    if isinstance(method, Classifier) and method.mixup is not None and (micro % 2 or settings.train.batch_size % micro):
        raise SettingsError(
            f"mixup and CutMix pair the images of a micro-batch, which holds {micro} here; use an even"
            " --batch-size, or switch both off with --set finetune.mixup=0 --set finetune.cutmix=0"
        )


def _transform(settings: ResolvedFinetuneSettings) -> Transform | None:
    if settings.finetune.rand_augment is None:
        return None
    from dsdmae_cli.data.rand_augment import RandAugment

    return RandAugment(settings.finetune.rand_augment, settings.data.image_size, settings.data.channels)


def _validation(start: Start, task: Task, answering: Answering, held_out: ImageDataset) -> Validation:
    def keep() -> None:
        checkpoint.save_weights(start.directory.path / _BEST, answering.method.judged().state_dict(), {})

    settings = answering.settings
    best = keep if settings.finetune.select == "best" else None
    return Validation(lambda: task.score(answering, held_out), settings.train.score_every, best, task.metric)


# -- the end


def _result(
    task: Task,
    opened: Opened,
    answering: Answering,
    validation: Validation | None,
    train_images: int,
    run: Run,
) -> dict[str, Any]:
    """Judge the network once on the test images, and write it down."""
    trained = run.seconds()
    settings: ResolvedFinetuneSettings = run.settings
    network, path = answering.method.judged(), run.directory.path / CLASSIFIER
    if settings.finetune.select == "best":
        best = run.directory.path / _BEST
        checkpoint.load_into(network, checkpoint.load_weights(best), str(best))
    scores = task.judge(answering, Outputs(run.directory.path, run.directory.figures, run.decorate))
    save_classifier(network, tables(settings), task.classes, path, values=task.values)
    chosen = validation.best if validation is not None else None
    protocol = _protocol(settings, task, chosen, train_images)
    return {
        "run": str(run.directory.path),
        **judging.base_result("finetune", protocol, opened.described(), settings, task, scores),
        "train_images": train_images,  # without those that were held out, as in the protocol
        **task.further(),
        "task": settings.finetune.task,
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


def _flops(run: Run, opened: Opened, scores: Figures) -> float:
    return measure_work(run.method)[0] * run.images_seen + encoder_flops(opened.encoder) * scores.num_images


def _protocol(settings: ResolvedFinetuneSettings, task: Task, chosen: dict[str, Any] | None, train_images: int) -> str:
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
        f"all weights trained by {o.optimizer_name} for {number_of(t.epochs, 'epoch')}, batch {t.batch_size}, peak rate"
        f" {o.lr:.3g}, on {number_of(train_images, 'image')} with {with_}; {task.words(settings)}; {judged} is judged,"
        " once, on the test images"
    )


def summary(result: dict[str, Any]) -> str:
    """The lines for people."""
    lines = [
        f"{result['subject']} fine-tuned on {result['dataset']}",
        *(answers.score_lines(result) if "mean_iou" in result else _top1_lines(result)),
        *judging.twins_line(result),
        f"protocol       {result['protocol']}",
        *page_line(Path(result["figures"]).parent),
        f"classifier     {result['classifier']}",
    ]
    if result["load_with"]:
        lines.append(f"load it with   {result['load_with']}")
    lines += [f"time           {duration(result['seconds'])}", *untrained_line(result)]
    lines.append(f"go on with     dsdmae predict {called(Path(result['run']))} PICTURE...")
    return "\n".join(lines)


def _top1_lines(result: dict[str, Any]) -> list[str]:
    low, high = result["top1_interval"]
    return [
        f"top-1          {result['top1']:.1%} (95% interval over test images {low:.1%} to {high:.1%})",
        *more_lines(result),
    ]
