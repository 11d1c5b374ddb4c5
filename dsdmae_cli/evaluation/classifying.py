"""What `dsdmae finetune` learns of labelled images and how it is judged: the class of each.

The run itself is the recipe's (recipes/finetune.py), which knows this as one of its tasks; segmentation/tuning.py is
the other.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from dsdmae_cli.backbone import Backbone, evaluating
from dsdmae_cli.data.augment import prepare
from dsdmae_cli.data.base import ImageDataset, Subset
from dsdmae_cli.data.source import Unreadable
from dsdmae_cli.data.twins import Twins
from dsdmae_cli.errors import RunFailed
from dsdmae_cli.evaluation.features import square_batches
from dsdmae_cli.evaluation.judging import Answering, LabelledSplits, Outputs, draw, open_labelled
from dsdmae_cli.evaluation.metrics import Scores, score
from dsdmae_cli.evaluation.split import HeldOut, few_shot, hold_out
from dsdmae_cli.runtime import autocast
from dsdmae_cli.settings.resolved import ResolvedData, ResolvedFinetuneSettings
from dsdmae_cli.tasks.classifier import Classifier
from dsdmae_cli.transfer import Gathered

_BATCH = 256


class Classification:
    """Labels of images, as a task of fine-tuning.

    Raises:
        DataError: see judging.open_labelled.
    """

    metric = "accuracy"
    of_pixels = False
    values = None

    def __init__(self, settings: ResolvedFinetuneSettings) -> None:
        self.judged: LabelledSplits = open_labelled(settings.data)
        self.train: ImageDataset = self.judged.train
        if settings.finetune.labels < 1:
            chosen = few_shot(self.judged.train_labels, settings.finetune.labels, settings.train.seed)
            self.train = Subset(self.train, chosen)

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names, by label."""
        return self.judged.classes

    @property
    def notes(self) -> tuple[str, ...]:
        """How the images were found."""
        return self.judged.notes

    @property
    def twins(self) -> Twins | None:
        """Test images that are training images too."""
        return self.judged.twins

    def account(self, settings: ResolvedData) -> dict[str, str]:
        """What images these are."""
        return self.judged.account(settings).rows()

    def further_account(self) -> dict[str, str]:
        """Nothing that the images do not say."""
        return {}

    def method(self, settings: ResolvedFinetuneSettings, backbone: Backbone) -> Classifier:
        """What is trained, on the CPU."""
        return classifier(len(self.classes), settings, backbone)

    def hold_out(self, share: float, seed: int) -> HeldOut:
        """A share of the training images, every class alike."""
        assert self.train.labels is not None
        return hold_out(self.train.labels, share, seed)

    def part(self, indices: Int64[np.ndarray, " k"]) -> ImageDataset:
        """Some of the training images."""
        return Subset(self.train, indices)

    def weigh(self, method: Classifier, train: ImageDataset) -> None:
        """Have the classes count alike."""
        method.weigh_classes(torch.from_numpy(train.labels))

    def score(self, answering: Answering, held_out: ImageDataset) -> float:
        """Accuracy on held-out images."""
        answers = _answered(answering, held_out)
        return float((answers.logits.argmax(dim=1) == _labels(held_out, answers)).double().mean())

    def judge(self, answering: Answering, outputs: Outputs) -> Scores:
        """The test images, answered once."""
        judged, data, report = self.judged, answering.settings.data, answering.report
        answers = _answered(answering, judged.test)
        labels = _labels(judged.test, answers)
        scores = score(answers.logits, labels)
        found = (answers.logits, labels, answers.indices, answers.features)
        outputs.decorate("the figures", lambda: draw(outputs.figures, judged, scores, *found, data, report))
        return scores

    def further(self) -> dict[str, Any]:
        """Entries of result.json beside those of every task."""
        return {}

    def words(self, settings: ResolvedFinetuneSettings) -> str:
        """What the head reads, for the protocol."""
        return f"{settings.finetune.pool}-pooled tokens"


def classifier(num_classes: int, settings: ResolvedFinetuneSettings, backbone: Backbone) -> Classifier:
    """What is trained."""
    return Classifier(settings.finetune, backbone, num_classes, settings.optim.layer_decay)


class _Answers(NamedTuple):
    """Logits and pooled features of the images that could be read, and which those are."""

    logits: Float[Tensor, "n c"]
    features: Float[Tensor, "n d"]
    indices: Int64[Tensor, " n"]


def _labels(dataset: ImageDataset, answers: _Answers) -> Int64[Tensor, " n"]:
    assert dataset.labels is not None
    return torch.from_numpy(dataset.labels)[answers.indices]


@torch.no_grad()
def _answered(answering: Answering, dataset: ImageDataset) -> _Answers:
    """Clean images, by the judged network in eval mode."""
    network, data, runtime = answering.method.judged(), answering.settings.data, answering.runtime
    encoder = network.backbone
    kept: dict[str, Tensor] = {}
    hook = network.head.register_forward_pre_hook(lambda _, inputs: kept.update(features=inputs[0]))
    answered, seen, indices = Gathered(), Gathered(), Gathered()
    unreadable = Unreadable(len(dataset), data)
    batches = square_batches(
        dataset, range(len(dataset)), encoder.image_size, _BATCH, runtime.device, unreadable
    )  # fmt: skip
    name = f"{len(dataset):,} images"
    with evaluating(network):
        for batch in answering.report.watched(batches, "classes of", name, len(dataset), lambda b: len(b.indices)):
            with autocast(runtime.device, runtime.precision):
                logits = network(prepare(batch.images, encoder.image_size, data.interpolation))
            for column, found in ((answered, logits), (seen, kept["features"])):
                column.add(found.float())
            indices.add(batch.indices)
    hook.remove()
    answering.say(unreadable)
    answers = _Answers(answered.cat(), seen.cat(), indices.cat())
    if not answers.logits.isfinite().all():
        raise RunFailed("the network's answers are not finite; lower --lr or use --precision fp32")
    return answers
