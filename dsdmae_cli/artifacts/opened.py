"""An encoder that was opened, with what is known of where it came from, and the steps that all ways to open one share.

The ways themselves are in open.py, trained.py and foreign.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from dsdmae_cli import checkpoint
from dsdmae_cli.artifacts.classifier import Tuned
from dsdmae_cli.artifacts.elsewhere import check_values
from dsdmae_cli.artifacts.subject import Kind, Subject
from dsdmae_cli.backbone import Backbone
from dsdmae_cli.config.resolve import RGB, check_taken, resolve_data
from dsdmae_cli.settings.models import BackboneSettings, DataSettings
from dsdmae_cli.settings.size import Size, size_words


@dataclass(frozen=True)
class Opened:
    """An encoder on the CPU, and what is known of where it came from.

    Attributes:
        encoder: takes images in [-1, 1], as every backbone does.
        kind: of the subject that it was.
        name: what to call it in tables.
        backbone: its settings, "auto" resolved.
        settings: all tables of its pre-training, resolved; None where it had none or none is known.
        weights_sha256: of its weights under timm's names, before any resampling of positions.
        epochs, seconds, images_seen: of its pre-training, where known.
        count_flops: of its forward and backward passes; `flops` asks it once, since the whole method is built for that.
        device_name: what it was pre-trained on, where known.
        knn_accuracy: at the end of its pre-training, where known.
        tuned: of a fine-tuned network that was opened with its head.
        beheaded: of one whose head was left out.
        notes: what a person should be told.
    """

    encoder: Backbone
    kind: Kind
    name: str
    backbone: BackboneSettings
    weights_sha256: str
    settings: dict[str, dict[str, Any]] | None = None
    epochs: float | None = None
    seconds: float | None = None
    images_seen: int | None = None
    count_flops: Callable[[], float | None] | None = None
    device_name: str | None = None
    knn_accuracy: float | None = None
    tuned: Tuned | None = None
    beheaded: Tuned | None = None
    notes: tuple[str, ...] = ()

    @cached_property
    def flops(self) -> float | None:
        """FLOP of the forward and backward passes of its pre-training, where known."""
        return None if self.count_flops is None else self.count_flops()

    @property
    def fine_tuning(self) -> Tuned | None:
        """What these weights were fine-tuned to, with their head here or without."""
        return self.tuned or self.beheaded

    @property
    def method(self) -> str | None:
        """The pre-training method, where known."""
        return self.settings["method"]["name"] if self.settings else None

    @property
    def dataset(self) -> str | None:
        """What it was pre-trained on, where known."""
        return self.settings["data"]["dataset"] if self.settings else None

    def described(self) -> dict[str, Any]:
        """What a result says of the network that it judges, and of what its pre-training took."""
        return {
            "subject": self.name,
            "method": self.method or self.kind,
            "backbone": self.backbone.name,
            "image_size": self.encoder.image_size,
            "weights_sha256": self.weights_sha256,
            "pretrain_dataset": self.dataset,
            "pretrain_epochs": self.epochs,
            "pretrain_seconds": self.seconds,
            "pretrain_flops": self.flops,
        }

    @property
    def mean(self) -> tuple[float, ...]:
        """Of the pixels that the network under timm's names wants; `encoder` itself wants [-1, 1]."""
        return self.encoder.mean

    @property
    def std(self) -> tuple[float, ...]:
        """See mean."""
        return self.encoder.std


@dataclass(frozen=True)
class Request:
    """What to open and for what; the arguments of open_encoder."""

    subject: Subject
    data: DataSettings | None
    backbone: BackboneSettings | None
    image_size: Size | None
    seed: int
    head: bool
    teacher: bool = False

    def wanted_size(self) -> Size | None:
        """The size of the images it will see, where that is known before it is opened."""
        if self.image_size is not None or self.data is None:
            return self.image_size
        return resolve_data(self.data).image_size

    def channels(self) -> int:
        """Of the images it will see; RGB where there are none."""
        return RGB if self.data is None else resolve_data(self.data).channels


@torch.no_grad()
def fill(encoder: Backbone, state: dict[str, Tensor], origin: str) -> None:
    """Give an encoder weights under timm's names, which must fit exactly.

    Raises:
        CheckpointError: they do not, or are no numbers to begin with.
    """
    own = encoder.timm_state()
    checkpoint.check_fit(own, state, origin)
    check_values(state, own, origin)
    for name, tensor in own.items():
        tensor.copy_(state[name])


def finished(encoder: Backbone, backbone: BackboneSettings, request: Request) -> Opened:
    """The encoder at the image size that is asked for.

    Raises:
        SettingsError: it cannot take images of that size, or of so many channels.
    """
    if request.data is not None:
        check_taken(encoder.in_chans, request.channels(), request.subject.text)
    subject, image_size = request.subject, request.image_size
    sha256 = checkpoint.weights_sha256(encoder.timm_state())
    before, resampled = encoder.image_size, False
    if image_size is not None and image_size != before:
        encoder.set_image_size(image_size)
        resampled = checkpoint.weights_sha256(encoder.timm_state()) != sha256
    note = (
        f"position embeddings resampled for images of {size_words(encoder.image_size)} px, from {size_words(before)} px"
    )
    return Opened(encoder, subject.kind, subject.name, backbone, sha256, notes=(note,) if resampled else ())
