"""What probe and finetune share: labelled data that is checked before anything is computed, and what they leave."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor

from dsdmae_cli import plugins
from dsdmae_cli.data.account import Account, take_account
from dsdmae_cli.data.base import ImageDataset, Subset
from dsdmae_cli.data.masks import MaskedImages
from dsdmae_cli.data.open import choose, open_dataset
from dsdmae_cli.data.source import Unreadable
from dsdmae_cli.data.square import decode_square
from dsdmae_cli.data.twins import Twins, find_twins, twins_row
from dsdmae_cli.errors import DataError
from dsdmae_cli.evaluation.closing import BY_MASKS
from dsdmae_cli.evaluation.metrics import Scores
from dsdmae_cli.evaluation.reducing import MOST_TSNE_POINTS, pca, tsne
from dsdmae_cli.figures import scores as figures
from dsdmae_cli.figures.moments import visible
from dsdmae_cli.report import Report, number_of
from dsdmae_cli.runtime import Runtime
from dsdmae_cli.settings.models import DataSettings
from dsdmae_cli.settings.resolved import ResolvedData, ResolvedFinetuneSettings
from dsdmae_cli.settings.size import as_size, height_width
from dsdmae_cli.tasks.finetuning import FineTuning

_MISTAKES = 32
_FEWEST_ON_A_MAP = 3  # two axes are found by centred features


@dataclass(frozen=True)
class LabelledSplits:
    """Labelled training and test images of one dataset with the same classes.

    Images without a label are left out of both.
    """

    train: ImageDataset
    test: ImageDataset
    classes: tuple[str, ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """How the images were found."""
        return self.train.notes

    @cached_property
    def twins(self) -> Twins | None:
        """Test images that are training images too; None where too many would have to be read."""
        return find_twins(self.train, self.test)

    @property
    def train_labels(self) -> NDArray[np.int64]:
        """[n] of the training images."""
        assert self.train.labels is not None
        return self.train.labels

    @property
    def test_labels(self) -> NDArray[np.int64]:
        """[m] of the test images."""
        assert self.test.labels is not None
        return self.test.labels

    def account(self, settings: ResolvedData) -> Account:
        """What images these are."""
        return take_account({"training": self.train, "test": self.test}, settings.range)

    def planned(self, settings: ResolvedData) -> dict[str, str]:
        """The same for a dry run: with the test images that are training images too."""
        return self.account(settings).rows() | twins_row(self.twins)


def open_labelled(settings: DataSettings) -> LabelledSplits:
    """The labelled splits of a dataset.

    Raises:
        DataError: there are no labels, fewer than two classes, a class without training images, or classes that are
            not the same in both splits.
    """
    spec = plugins.find("dataset", settings.dataset).spec
    train = _labelled(open_dataset(settings, spec.labelled_split), settings.dataset, "training")
    test = _labelled(open_dataset(settings, "test"), settings.dataset, "test")
    assert train.labels is not None
    assert test.labels is not None
    assert train.classes is not None
    if train.classes != test.classes:
        odd = sorted(set(train.classes).symmetric_difference(test.classes or ()))
        raise DataError(
            f"training and test images of {settings.dataset} do not have the same classes ({len(train.classes)} and"
            f" {len(test.classes or ())}; in one only: {', '.join(odd[:4]) or 'another order'}); give both the same"
            " folders"
        )
    counts = np.bincount(train.labels, minlength=len(train.classes))
    empty = [name for name, count in zip(train.classes, counts, strict=True) if not count]
    if empty or len(train.classes) < 2:
        reason = f"no training image of {', '.join(empty[:4])}" if empty else f"only the class {train.classes[0]}"
        raise DataError(f"{settings.dataset} has {reason}; a classifier needs images of two classes or more, each")
    return LabelledSplits(train, test, train.classes)


def warn_of_twins(twins: Twins | None, report: Report) -> None:
    """Say which test images are training images too."""
    if twins is not None and not twins.count and twins.words():
        report.note(twins.words())
    if twins is not None and twins.count:
        report.warn(f"{twins.words()}; what is measured on those says nothing of new images")


def twins_line(result: dict[str, Any]) -> list[str]:
    """The line of a summary, where there are any."""
    twins = result["test_images_trained_on"]
    if not twins or not twins["count"]:
        return []
    are = "is a training image" if twins["count"] == 1 else "are training images"
    return [f"seen before    {number_of(twins['count'], 'test image')} {are} too"]


def _labelled(dataset: ImageDataset, name: str, split: str) -> ImageDataset:
    if dataset.labels is None or dataset.classes is None or not (dataset.labels >= 0).any():
        why = f" ({'; '.join(dataset.notes)})" if dataset.notes else ""
        advice = "put each class into a folder of its own, give --labels FILE.csv, or name a labelled dataset"
        if isinstance(dataset, MaskedImages):
            advice = f"they have masks: {BY_MASKS}"
        raise DataError(f"the {split} images of {name} have no labels{why}; {advice}")
    known = np.flatnonzero(dataset.labels >= 0)
    return dataset if len(known) == len(dataset) else Subset(dataset, known)


class Judged(Protocol):
    """Training and test images by which something was judged: LabelledSplits, and those of images with masks."""

    @property
    def train(self) -> ImageDataset: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def notes(self) -> tuple[str, ...]: ...
    @property
    def twins(self) -> Twins | None: ...


class Figures(Protocol):
    """Scores, as result.json has them."""

    @property
    def num_images(self) -> int: ...
    def as_dict(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Answering:
    """A network that answers while it is fine-tuned and after it, and where.

    Attributes:
        method: whose network it is.
    """

    settings: ResolvedFinetuneSettings
    method: FineTuning[Any]
    runtime: Runtime
    report: Report

    def say(self, unreadable: Unreadable) -> None:
        """Which images could not be read."""
        for line in unreadable.lines():
            self.report.warn(f"skipped {line}")


@dataclass(frozen=True)
class Outputs:
    """Where a run leaves what it found.

    Attributes:
        decorate: has something drawn once the result is written; its failure is a warning.
    """

    folder: Path
    figures: Path
    decorate: Callable[[str, Callable[[], None]], None]


def base_result(
    kind: str, protocol: str, subject: dict[str, Any], settings: Any, judged: Judged, scores: Figures
) -> dict[str, Any]:
    """The entries of result.json that probe and finetune have in common.

    Args:
        kind: "probe" or "finetune".
        subject: what is said of the network that is judged (artifacts.opened.Opened.described).
        settings: of the command, resolved.
    """
    return {
        "kind": kind,
        "start": getattr(settings, kind).start,
        "protocol": protocol,
        "dataset": settings.data.dataset,
        **subject,
        **scores.as_dict(),
        "classes": list(judged.classes),
        "train_images": len(judged.train),
        "data_notes": list(judged.notes),
        "test_images_trained_on": None if judged.twins is None else judged.twins.as_dict(),
        "seed": settings.train.seed,
    }


def draw(
    folder: Path,
    judged: LabelledSplits,
    scores: Scores,
    logits: Float[Tensor, "m k"],
    labels: Int64[Tensor, " m"],
    indices: Int64[Tensor, " m"],
    features: Float[Tensor, "m d"] | None,
    data: ResolvedData,
    report: Report,
) -> None:
    """Figures of one set of answers: confusion, classes, the most confident mistakes, a map of the features.

    One that cannot be drawn is a warning: the numbers are what counts, and are written before.

    Args:
        logits, labels, indices: of the test images that could be read; which of the test set they are.
        features: of the same images; None, or of fewer than three images = no map.
    """
    with report.spared("the picture of the confusion matrix"):
        figures.confusion(scores.confusion, judged.classes, folder / "confusion.png")
    with report.spared("the picture of the classes"):
        figures.per_class(scores.per_class, judged.classes, folder / "classes.png")
    with report.spared("the picture of the mistakes"):
        _draw_mistakes(folder / "mistakes.png", judged, logits, labels, indices, data)
    if features is not None and len(features) >= _FEWEST_ON_A_MAP:
        with report.spared("the map of the features"):
            _draw_map(folder, judged, features, labels)


def _draw_mistakes(
    path: Path, judged: LabelledSplits, logits: Tensor, labels: Tensor, indices: Tensor, data: ResolvedData
) -> None:
    confidence, predicted = logits.softmax(dim=1).max(dim=1)
    wrong = torch.nonzero(predicted != labels)[:, 0]
    if not len(wrong):
        return
    worst = wrong[confidence[wrong].argsort(descending=True, stable=True)][:_MISTAKES]
    sides = height_width(data.image_size)
    size = as_size(*(round(side * max(1, 64 / min(sides))) for side in sides))  # what is smaller, one cannot see
    images, _ = decode_square(judged.test, indices[worst].tolist(), size, Unreadable(len(judged.test), data))
    names = judged.classes
    figures.mistakes(
        np.stack([visible(image.transpose(2, 0, 1)) for image in images]),
        [names[i] for i in labels[worst].tolist()],
        [names[i] for i in predicted[worst].tolist()],
        confidence[worst].tolist(),
        path,
    )


def _draw_map(folder: Path, judged: LabelledSplits, features: Tensor, labels: Tensor) -> None:
    shown = torch.tensor(choose(len(features), MOST_TSNE_POINTS, 0, "map"))
    chosen, truth = features[shown].float(), labels[shown].numpy()
    points, shares = pca(chosen)
    title = (
        f"first two principal components of {number_of(len(shown), 'test image')} ({sum(shares):.0%} of the variance)"
    )
    figures.scatter(points.numpy(), truth, judged.classes, title, folder / "pca.png")
    if len(shown) >= 20:
        figures.scatter(
            tsne(chosen).numpy(),
            truth,
            judged.classes,
            f"t-SNE of {number_of(len(shown), 'test image')}",
            folder / "tsne.png",
        )
