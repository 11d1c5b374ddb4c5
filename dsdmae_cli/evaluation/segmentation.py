"""From scores of patches to labels of pixels, and from those to figures; what IoU is, overlap.py says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional as F

from dsdmae_cli.data.masks import VOID
from dsdmae_cli.evaluation.overlap import accuracy, bootstrap, interval, ious, mean_iou


def answer_pixels(
    scores: Float[Tensor, "b rows columns c"], size: tuple[int, int]
) -> UInt8[Tensor, "b {size[0]} {size[1]}"]:
    """Labels of pixels: the largest of the patches' scores, upsampled bilinearly to (height, width)."""
    return upsampled(scores, size).argmax(dim=1).to(torch.uint8)


def upsampled(
    scores: Float[Tensor, "b rows columns c"], size: tuple[int, int]
) -> Float[Tensor, "b c {size[0]} {size[1]}"]:
    """Scores of pixels."""
    return F.interpolate(scores.movedim(3, 1).float(), size, mode="bilinear", align_corners=False)


@dataclass(frozen=True)
class Counts:
    """Pixels of each image by true class, by answer, and where the two agree; void ones are in none of them.

    Attributes:
        images: [n, 3, c] right, true and answered pixels of each class.
        confusion: [c, c] true class (row) by answer (column), of all images.
    """

    images: Int64[np.ndarray, "n 3 c"]
    confusion: Int64[np.ndarray, "c c"]

    @classmethod
    def none(cls, num_classes: int) -> Counts:
        """Of no image."""
        return cls(np.zeros((0, 3, num_classes), np.int64), np.zeros((num_classes, num_classes), np.int64))

    def with_images(self, predicted: UInt8[Tensor, "b h w"], masks: UInt8[Tensor, "b h w"]) -> Counts:
        """These and some more images, of one size.

        Args:
            masks: labels, and VOID.
        """
        c = len(self.confusion)
        new, confusion = [], self.confusion
        for mine, truth in zip(predicted.long(), masks.long(), strict=True):
            judged = truth != VOID
            pairs = (truth[judged] * c + mine[judged]).bincount(minlength=c * c).view(c, c).cpu().numpy()
            new.append([np.diagonal(pairs), pairs.sum(axis=1), pairs.sum(axis=0)])
            confusion = confusion + pairs
        return Counts(np.concatenate([self.images, np.array(new, dtype=np.int64).reshape(-1, 3, c)]), confusion)

    def total(self) -> Int64[np.ndarray, "3 c"]:
        """Of all images."""
        return self.images.sum(axis=0)


@dataclass(frozen=True)
class SegmentationScores:
    """What labels of pixels are worth. Shares are in [0, 1].

    Attributes:
        mean_iou: over the classes that masks or answers show.
        mean_iou_interval: 95% bootstrap percentile interval over test images. It covers which images were drawn for the
            test set; it does not cover another seed or training set. Frames of one film resemble each other: there it
            is too narrow.
        per_class_iou: None for a class that neither masks nor answers show.
        pixel_accuracy, pixel_accuracy_interval: share of the judged pixels that are right.
        pixels_per_class: judged pixels of each true class.
        void_share: of all pixels.
        confusion: [c, c] pixels of true class (row) answered as class (column).
        num_images: test images.
    """

    mean_iou: float
    mean_iou_interval: tuple[float, float]
    per_class_iou: tuple[float | None, ...]
    pixel_accuracy: float
    pixel_accuracy_interval: tuple[float, float]
    pixels_per_class: tuple[int, ...]
    void_share: float
    confusion: Int64[np.ndarray, "c c"]
    num_images: int

    def as_dict(self) -> dict[str, Any]:
        """For result.json."""
        lists = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items()}
        return {**lists, "confusion": self.confusion.tolist()}


def segmentation_scores(counts: Counts, all_pixels: int) -> SegmentationScores:
    """All figures of one set of test images.

    Args:
        all_pixels: of their masks, void ones too.
    """
    total, drawn = counts.total(), bootstrap(counts.images)
    judged = int(total[1].sum())
    return SegmentationScores(
        mean_iou=mean_iou(total),
        mean_iou_interval=interval(drawn[:, 0]),
        per_class_iou=tuple(None if np.isnan(value) else float(value) for value in ious(total)),
        pixel_accuracy=accuracy(total),
        pixel_accuracy_interval=interval(drawn[:, 1]),
        pixels_per_class=tuple(total[1].tolist()),
        void_share=1 - judged / max(1, all_pixels),
        confusion=counts.confusion,
        num_images=len(counts.images),
    )
