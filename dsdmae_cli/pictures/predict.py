"""Classes of pictures by a fine-tuned network: read and prepared as the test images of its run were."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dsdmae_cli.artifacts.open import open_encoder
from dsdmae_cli.artifacts.subject import Subject
from dsdmae_cli.data.augment import prepare
from dsdmae_cli.data.base import UnreadableImage
from dsdmae_cli.data.beyond import is_first_alone, range_notes, words_of_several
from dsdmae_cli.data.files import FileImages, Files, Names
from dsdmae_cli.data.source import Unreadable
from dsdmae_cli.data.values import asked_bands, in_words
from dsdmae_cli.errors import RunFailed
from dsdmae_cli.evaluation.features import square_batches
from dsdmae_cli.pictures.paths import Failure, Source
from dsdmae_cli.runtime import autocast, choose_device, choose_precision
from dsdmae_cli.settings.resolved import ResolvedData, ResolvedFinetuneSettings
from dsdmae_cli.settings.size import Size

_RGB = 3

_BATCH = 64
_ADVICE = "the network learned from other pictures: fine-tune one on pictures like these"
Advance = Callable[[int, int], None]


@dataclass(frozen=True)
class Prediction:
    """What a network says of one picture.

    Attributes:
        picture: its path, or "standard input".
        classes: (name, probability), the most probable first.
    """

    picture: str
    classes: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Predicted:
    """What it says of all.

    Attributes:
        subject: the network, as it was named.
        sha256: of its weights.
        classes: all that it knows.
        image_size: of what it sees.
        predictions: of the pictures that could be read, in the order in which they were named.
        failures: of the others.
        notes: what a person should know of how they were seen.
    """

    subject: str
    sha256: str
    classes: tuple[str, ...]
    image_size: Size
    predictions: tuple[Prediction, ...]
    failures: tuple[Failure, ...]
    notes: tuple[str, ...] = ()

    def with_failures(self, failures: list[Failure]) -> Predicted:
        """The same with what was named and is no picture."""
        return replace(self, failures=(*failures, *self.failures))

    def json(self) -> str:
        """One object."""
        return json.dumps(self.told(), indent=2) + "\n"

    def told(self) -> dict[str, Any]:
        """The same as a table."""
        return {
            "network": self.subject,
            "weights_sha256": self.sha256,
            "image_size": self.image_size,
            "classes": list(self.classes),
            "pictures": [
                {
                    "picture": one.picture,
                    "predictions": [{"class": name, "probability": share} for name, share in one.classes],
                }
                for one in self.predictions
            ],
            "unreadable": [{"picture": failure.source, "reason": failure.reason} for failure in self.failures],
        }

    def csv(self) -> str:
        """A row a picture: picture, class, probability, and for further classes class_2, probability_2, ..."""
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        most = max((len(one.classes) for one in self.predictions), default=1)
        ends = ["", *(f"_{place}" for place in range(2, most + 1))]
        rows.writerow(["picture", *(f"{word}{end}" for end in ends for word in ("class", "probability"))])
        for one in self.predictions:
            rows.writerow([one.picture, *(cell for name, share in one.classes for cell in (name, f"{share:.6g}"))])
        return text.getvalue()


class _Given(Files):
    """Pictures by their paths; of standard input what it held."""

    def __init__(self, sources: list[Source]) -> None:
        self.names = Names([str(source) for source in sources])
        self._contents = [source.content() for source in sources]

    def read(self, index: int) -> Path | bytes:
        return self._contents[index]

    def full_name(self, index: int) -> str:
        return self.names[index]

    def stamp(self, index: int) -> tuple[int, int] | None:
        return None

    def file_size(self, index: int) -> int | None:
        return None


def as_its_run_read(data: ResolvedData, sources: list[Source]) -> FileImages:
    """Pictures by the number range, bands and channels that a network's run read its images by."""
    reading = replace(asked_bands(data.bands, data.channels, lambda: _RGB), range=data.range)
    return FileImages(_Given(sources), np.arange(len(sources)), reading=reading)


def how_seen(images: FileImages) -> tuple[str, ...]:
    """The range of pictures of more than 8 bits, and how many are stacks or animations.

    Raises:
        DataError: see predict.
    """
    several = {False: 0, True: 0}  # stacks, and animations
    for index in range(len(images)):
        with suppress(UnreadableImage):  # it is named with the answers
            form = images.form(index)
            several[form.animated] += is_first_alone(form, images.channels)
    return (*range_notes(images, _ADVICE), *words_of_several(several[False], several[True], len(images)))


@torch.inference_mode()
def predict(
    subject: Subject,
    sources: list[Source],
    *,
    top: int,
    device: str,
    precision: str,
    advance: Advance = lambda done, total: None,
) -> Predicted:
    """Classes and probabilities of pictures.

    The number range of deep pictures, bands, square cut, interpolation and normalisation are those that the file keeps
    from its fine-tuning, so that a test image of it gets the answer that its accuracy was counted by.

    Args:
        subject: a fine-tuned network (artifacts.subject.parse_classifier).
        top: how many classes of each, the most probable first.
        advance: told how many pictures of how many are done.

    Raises:
        CheckpointError: it is damaged.
        SettingsError: there is no such device.
        RunFailed: its answers are not finite.
        DataError: nearly all values of the pictures are beyond the range of what it learned from.
    """
    settings = subject.settings()
    assert isinstance(settings, ResolvedFinetuneSettings)
    where = choose_device(device)
    how = choose_precision(precision, where)
    opened = open_encoder(subject, None, backbone=None, image_size=None, seed=0, head=True)
    tuned = opened.tuned
    assert tuned is not None  # settings of fine-tuning stand in a classifier's file alone
    network, size = tuned.network.to(where).eval(), opened.encoder.image_size
    data = settings.data
    images = as_its_run_read(data, sources)
    notes = how_seen(images)
    # One's own pictures are named, not counted against a limit.
    unreadable = Unreadable(len(images), data.model_copy(update={"strict": False, "max_unreadable": 1.0}))
    found: dict[int, Prediction] = {}
    done = 0
    for batch in square_batches(images, range(len(images)), size, _BATCH, where, unreadable, may_be_none=True):
        with autocast(where, how):
            logits = network(prepare(batch.images, size, data.interpolation))
        shares, order = logits.double().softmax(dim=1).cpu().sort(dim=1, descending=True, stable=True)
        if not bool(shares.isfinite().all()):
            raise RunFailed(f"{subject.text} gives answers that are not finite in {how}; try --precision fp32")
        for row, index in enumerate(batch.indices.tolist()):
            pairs = zip(order[row, :top].tolist(), shares[row, :top].tolist(), strict=True)
            found[index] = Prediction(str(sources[index]), tuple((tuned.classes[at], share) for at, share in pairs))
        done += len(batch.indices)
        advance(done, len(images))
    failures = tuple(Failure(name, as_it_learned(reason, data)) for name, reason in unreadable.reasons.items())
    predictions = tuple(found[index] for index in sorted(found))
    return Predicted(subject.text, tuned.sha256, tuned.classes, size, predictions, failures, notes)


def as_it_learned(reason: str, data: ResolvedData) -> str:
    """Why a picture cannot be read, without the advice to change a setting, which a fine-tuned network has no more."""
    what, _, advice = reason.partition("; ")
    if "data." not in advice:
        return reason
    values = f"values of {in_words(data.range)}" if data.range else "no range of values"
    return f"{what}; this network reads pictures as it learned to, of {data.channels} channels and with {values}"
