"""What `dsdmae finetune --task segment` learns and how it is judged: the class of every pixel of images with masks.

The run itself is the recipe's (recipes/finetune.py), which knows this as one of its tasks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Int64

from dsdmae_cli.backbone import Backbone, evaluating
from dsdmae_cli.data.base import ImageDataset
from dsdmae_cli.data.mask_views import MaskedSubset, pixels_by_class
from dsdmae_cli.data.masks import MaskedImages
from dsdmae_cli.data.source import Unreadable
from dsdmae_cli.data.twins import Twins
from dsdmae_cli.errors import DataError
from dsdmae_cli.evaluation.dense_features import Lens
from dsdmae_cli.evaluation.judging import Answering, Outputs
from dsdmae_cli.evaluation.overlap import COUNTS, mean_iou
from dsdmae_cli.evaluation.segmentation import SegmentationScores, segmentation_scores
from dsdmae_cli.evaluation.split import HeldOut
from dsdmae_cli.report import Report
from dsdmae_cli.runtime import choose_micro_batch
from dsdmae_cli.segmentation.answers import PICTURES, Answers, answer
from dsdmae_cli.segmentation.drawing import draw_scores
from dsdmae_cli.segmentation.splits import drawn_share, hold_out_images, open_masked
from dsdmae_cli.settings.resolved import ResolvedData, ResolvedFinetuneSettings
from dsdmae_cli.settings.size import size_words
from dsdmae_cli.tasks.segmenter import Segmenter

_BATCH = 64


def _masked(dataset: ImageDataset) -> MaskedImages:
    assert isinstance(dataset, MaskedImages)
    return dataset


class Segmentation:
    """Labels of pixels, as a task of fine-tuning.

    Args:
        report: is told of what is wrong with masks.

    Raises:
        DataError: the dataset has no masks, or some cannot be used.
    """

    metric = "mean_iou"
    of_pixels = True

    def __init__(self, settings: ResolvedFinetuneSettings, report: Report) -> None:
        self.splits = open_masked(settings.data, report)
        self.train = MaskedSubset(self.splits.train, self.splits.train_indices)
        if settings.finetune.labels < 1:
            chosen = drawn_share(len(self.train), settings.finetune.labels, settings.train.seed)
            self.train = MaskedSubset(self.train, chosen)

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names, by label."""
        return self.splits.classes

    @property
    def values(self) -> tuple[int, ...]:
        """Of the classes in the files of masks."""
        return self.splits.legend.values

    @property
    def notes(self) -> tuple[str, ...]:
        """How the images were found."""
        return self.splits.notes

    @property
    def twins(self) -> Twins | None:
        """Test images that are training images too."""
        return self.splits.twins

    def account(self, settings: ResolvedData) -> dict[str, str]:
        """What images these are, and what masks."""
        return self.splits.rows(settings)

    def further_account(self) -> dict[str, str]:
        """What masks these are."""
        return self.splits.mask_row()

    def method(self, settings: ResolvedFinetuneSettings, backbone: Backbone) -> Segmenter:
        """What is trained, on the CPU."""
        return Segmenter(settings.finetune, backbone, len(self.classes), settings.optim.layer_decay)

    def hold_out(self, share: float, seed: int) -> HeldOut:
        """A share of the training images.

        Raises:
            DataError: there is but one.
        """
        split = hold_out_images(len(self.train), share, seed)
        if not len(split.held):
            raise DataError("there is one training image, of which none can be held out; leave --validation out")
        return split

    def part(self, indices: Int64[np.ndarray, " k"]) -> MaskedSubset:
        """Some of the training images."""
        return MaskedSubset(self.train, indices)

    def weigh(self, method: Segmenter, train: ImageDataset) -> None:
        """Have the classes count alike."""
        method.weigh_pixels(torch.from_numpy(pixels_by_class(_masked(train))))

    def score(self, answering: Answering, held_out: ImageDataset) -> float:
        """Mean IoU on held-out images."""
        return mean_iou(_answered(answering, _masked(held_out)).counts.total())

    def judge(self, answering: Answering, outputs: Outputs) -> SegmentationScores:
        """The test images, answered once; what is left of them beside result.json."""
        test = MaskedSubset(self.splits.test, self.splits.test_indices)
        answers = _answered(answering, test, PICTURES)
        scores = segmentation_scores(answers.counts, answers.all_pixels)
        drawn = (outputs.figures, self.classes, answers.shown, scores, answering.report)
        outputs.decorate("the figures", lambda: draw_scores(*drawn))
        answers.save(outputs.folder / COUNTS)
        return scores

    def further(self) -> dict[str, Any]:
        """Entries of result.json beside those of every task."""
        return {"void": list(self.splits.legend.void)}

    def words(self, settings: ResolvedFinetuneSettings) -> str:
        """What the head is and how pictures are looked at, for the protocol."""
        lens, size = Lens.fitting(settings.data.image_size), size_words(settings.data.image_size)
        blocks = settings.finetune.blocks
        read = "" if blocks == "last" else f" after blocks {blocks}"
        if blocks.isdigit():
            read += " (what follows in the network is not trained)"
        return (
            f"a linear layer on every patch's token{read}, upsampled bilinearly; test pictures scaled to cover the"
            f" window, windows of {size} px at steps of at most {lens.stride:.2g} of a side, scored in the masks' own"
            " size, void left out"
        )


@torch.no_grad()
def _answered(answering: Answering, dataset: MaskedImages, pictures: int = 0) -> Answers:
    """Every pixel of images, by the judged network in eval mode."""
    network, runtime = answering.method.judged(), answering.runtime
    encoder = network.backbone
    unreadable = Unreadable(len(dataset), answering.settings.data)
    batch = max(16, choose_micro_batch("auto", _BATCH, encoder.num_tokens, encoder.width, runtime.device))
    with evaluating(network):
        answers = answer(
            dataset, range(len(dataset)), network, Lens.fitting(encoder.image_size), lambda scores: scores, unreadable,
            answering.report, device=runtime.device, precision=runtime.precision, batch_size=batch,
            grid=encoder.grid, pictures=pictures,
        )  # fmt: skip
    answering.say(unreadable)
    return answers
