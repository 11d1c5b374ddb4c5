"""Steps and evaluations of ours on the device that is not there (harness.py)."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from harness import CUDA, Audit, no_cuda, on_fake_cuda, told_apart
from helpers import settings

from dsdmae_cli.config.compose import load
from dsdmae_cli.config.resolve import resolve
from dsdmae_cli.data.arrays import ArrayImages
from dsdmae_cli.data.open import augmentation
from dsdmae_cli.data.resident import ResidentSource
from dsdmae_cli.data.source import Batching, Unreadable
from dsdmae_cli.data.streaming import StreamingSource
from dsdmae_cli.engine import Hooks, Trainer
from dsdmae_cli.methods.base import Method
from dsdmae_cli.runs.build import build_method
from dsdmae_cli.runtime import Runtime


def built(name: str, *more: str) -> tuple[Any, Method]:
    """(settings, method on the CPU) of a tiny network on CIFAR-10's size."""
    wanted = ("data.image_size=32", "train.batch_size=16", "data.crop_scale=[0.2,1.0]", "data.flip=true", *more)
    resolved = resolve(settings("cifar10", *wanted, method=name).settings)
    return resolved, build_method(resolved)


def trained(
    method: Method,
    resolved: Any,
    precision: str = "bf16",
    labelled: bool = False,
    micro_batch: int | None = None,
    masked: bool = False,
) -> Trainer:
    """A trainer of the method on resident images."""
    on_fake_cuda(method)
    batch = resolved.train.batch_size
    micro = micro_batch or batch
    images = torch.empty(4 * batch, 3, 32, 32, dtype=torch.uint8, device=CUDA)
    labels = torch.zeros(4 * batch, dtype=torch.int64, device=CUDA) if labelled else None
    plan = augmentation(resolved.data)
    masks = torch.zeros(4 * batch, 32, 32, dtype=torch.uint8, device=CUDA) if masked else None
    source = ResidentSource(images, Batching(4 * batch, batch, micro, 0), plan, labels, method.num_views, masks=masks)
    return Trainer(method, source, resolved.optim, resolved.train, Runtime(CUDA, precision, False, micro), Hooks())


def third_step(trainer: Trainer, audit: Audit) -> Audit:
    """What the third step does, when all that is made once has been made."""
    steps = trainer.source.steps(0)
    for _ in range(2):
        trainer._step(next(steps))
    audit.clear()
    with told_apart(trainer.method, audit):
        trainer._step(next(steps))
    return copy.deepcopy(audit)


def step_of(name: str, *more: str, precision: str = "bf16", micro_batch: int | None = None) -> Audit:
    """What a step of a pre-training method does."""
    resolved, method = built(name, *more)
    with no_cuda() as audit:
        return third_step(trained(method, resolved, precision, micro_batch=micro_batch), audit)


def paper_step() -> Audit:
    """What a step of the packaged DSdMAE of ViT-T on CIFAR-10 does, in all its depth, on fewer images."""
    resolved = resolve(
        load(preset=("dsdmae", "cifar10", "vit-tiny"), assignments=["train.batch_size=16"], environ={}).settings
    )
    method = build_method(resolved)
    with no_cuda() as audit:
        return third_step(trained(method, resolved), audit)


def streamed_step(name: str) -> Audit:
    """What a step does whose images come from processes that decode ahead."""
    resolved, method = built(name)
    plan, batch = augmentation(resolved.data), resolved.train.batch_size
    images = torch.zeros(batch, method.num_views, 32, 32, 3, dtype=torch.uint8)
    with no_cuda() as audit:
        on_fake_cuda(method)
        source = StreamingSource(
            ArrayImages(np.zeros((4 * batch, 32, 32, 3), np.uint8), np.zeros(4 * batch, np.int64), ("one",), "nothing"),
            Batching(4 * batch, batch, batch, 0), plan, CUDA, 0, Unreadable(4 * batch, resolved.data), False, None,
            method.num_views,
        )  # fmt: skip
        # As the loader hands it over where there is a GPU.
        ready = images.pin_memory(), torch.zeros(batch, dtype=torch.int64).pin_memory()
        source._receive = lambda: ready  # type: ignore[method-assign]
        source._open = lambda *given: iter(())  # type: ignore[method-assign]
        runtime = Runtime(CUDA, "bf16", False, batch)
        return third_step(Trainer(method, source, resolved.optim, resolved.train, runtime, Hooks()), audit)


def log_line(precision: str = "bf16") -> Audit:
    """What a line of the log costs after three steps."""
    resolved, method = built("dsdmae")
    with no_cuda() as audit:
        trainer = trained(method, resolved, precision)
        third_step(trainer, audit)
        audit.clear()
        trainer._read(1.0, 3)
        return audit


def classifier_step(*more: str) -> Audit:
    """What a step of fine-tuning does, with all that can be asked of it."""
    from dsdmae_cli.settings.judge import FinetuneSection
    from dsdmae_cli.tasks.classifier import Classifier

    resolved, method = built("mae", *more)
    asked = {"start": "scratch", "mixup": 0.8, "cutmix": 1.0, "random_erasing": 0.25, "ema": 0.99}
    classifier = Classifier(FinetuneSection.model_validate(asked), method.encoder(), 10, 0.75)
    with no_cuda() as audit:
        return third_step(trained(classifier, resolved, labelled=True), audit)


def segmenter_step(*more: str) -> Audit:
    """What a step of fine-tuning on masks does, cropped and flipped with their images."""
    from dsdmae_cli.settings.judge import FinetuneSection
    from dsdmae_cli.tasks.segmenter import Segmenter

    resolved, method = built("mae", *more)
    section = FinetuneSection(task="segment", random_erasing=0.25, label_smoothing=0.1, ema=0.99)
    segmenter = Segmenter(section, method.encoder(), 10, 0.75)
    segmenter.weigh_pixels(torch.arange(10))
    with no_cuda() as audit:
        return third_step(trained(segmenter, resolved, masked=True), audit)


def attentive_step() -> Audit:
    """What a step of the attentive probe does."""
    from dsdmae_cli.tasks.classifier import AttentiveProbe

    resolved, method = built("mae")
    with no_cuda() as audit:
        return third_step(trained(AttentiveProbe(method.encoder(), 10, (1.0, 0.1)), resolved, labelled=True), audit)
