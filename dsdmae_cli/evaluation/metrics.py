"""From logits and labels to the figures that are reported: accuracies, their interval, confusion, calibration."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from numpy.typing import NDArray
from torch import Tensor

from dsdmae_cli.evaluation.closing import wilson_interval

# Two-sided 95%.
_TAILS = (0.025, 0.975)
_CALIBRATION_BINS = 15
# A matrix larger than this would be most of result.json; figures are drawn from the array.
_LARGEST_LISTED_CONFUSION = 128


@dataclass(frozen=True)
class Scores:
    """What a classifier reached on test images. Shares are in [0, 1].

    Attributes:
        top1: share of images whose highest logit is the right one.
        top1_interval: 95% bootstrap percentile interval of top1 over test images (Wilson's at 0 and 1). It covers which
            images were drawn for the test set; it does not cover another seed, another training set or another
            hyper-parameter choice.
        top5: share of images whose class is among the `top5_k` highest logits.
        top5_k: 5, or the number of classes where there are fewer.
        per_class: share found of each class's images (recall), None for a class that the test set lacks.
        mean_per_class: mean of per_class over the classes that are there (balanced accuracy).
        images_per_class: test images of each class.
        confusion: [c, c] int64, images of true class (row) predicted as class (column).
        nll: mean negative log-likelihood in nats; None where a right class was given probability zero, as k-NN does.
        calibration_error: expected calibration error, 15 bins of equal width (Guo et al. 2017, arXiv:1706.04599).
        num_images: test images.
    """

    top1: float
    top1_interval: tuple[float, float]
    top5: float
    top5_k: int
    per_class: tuple[float | None, ...]
    mean_per_class: float
    images_per_class: tuple[int, ...]
    confusion: NDArray[np.int64]
    nll: float | None
    calibration_error: float
    num_images: int

    def as_dict(self) -> dict[str, Any]:
        """For result.json: lists for tuples and arrays; the confusion matrix only up to 128 classes, else None."""
        listed = self.confusion.tolist() if len(self.confusion) <= _LARGEST_LISTED_CONFUSION else None
        lists = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return {**lists, "confusion": listed}


def score(logits: Float[Tensor, "n c"], labels: Int64[Tensor, " n"]) -> Scores:
    """All figures of one set of test images.

    Args:
        logits: unnormalised log-probabilities; probabilities p go in as p.log(), zeros included.
        labels: 0..c-1, every one known.
    """
    num_images, num_classes = logits.shape
    assert num_images == len(labels) > 0
    assert not logits.isnan().any()
    assert int(labels.min()) >= 0
    assert int(labels.max()) < num_classes
    logits, labels = logits.cpu().double(), labels.cpu()
    k = min(5, num_classes)
    right = top_k_hits(logits, labels, 1)
    predicted = logits.argmax(dim=1)
    log_p = logits.log_softmax(dim=1)
    nll = float(-log_p.gather(1, labels[:, None]).mean())
    confusion = confusion_matrix(predicted, labels, num_classes)
    totals = confusion.sum(axis=1)
    found = np.diagonal(confusion)
    per_class = tuple(float(f / t) if t else None for f, t in zip(found, totals, strict=True))
    known = [share for share in per_class if share is not None]
    return Scores(
        top1=int(right.sum()) / num_images,
        top1_interval=bootstrap_interval(int(right.sum()), num_images),
        top5=int(top_k_hits(logits, labels, k).sum()) / num_images,
        top5_k=k,
        per_class=per_class,
        mean_per_class=sum(known) / len(known),
        images_per_class=tuple(int(total) for total in totals),
        confusion=confusion,
        nll=nll if math.isfinite(nll) else None,
        calibration_error=calibration_error(log_p.exp(), labels),
        num_images=num_images,
    )


def top_k_hits(logits: Float[Tensor, "n c"], labels: Int64[Tensor, " n"], k: int) -> Bool[Tensor, " n"]:
    """Whether each image's class is among its k highest logits.

    Of equal logits the lower class counts as the higher, as argmax has it. A class at -inf is never a hit: a k-NN
    whose neighbours show two classes has no third guess.
    """
    own = logits.gather(1, labels[:, None])
    before = torch.arange(logits.shape[1], device=logits.device) < labels[:, None]
    rank = ((logits > own) | ((logits == own) & before)).sum(dim=1)
    return (rank < k) & (own[:, 0] > -torch.inf)


def confusion_matrix(
    predicted: Int64[Tensor, " n"], labels: Int64[Tensor, " n"], num_classes: int
) -> NDArray[np.int64]:
    """[c, c] counts: row is the true class, column the predicted one."""
    pairs = labels * num_classes + predicted
    return pairs.bincount(minlength=num_classes**2).view(num_classes, num_classes).cpu().numpy()


def calibration_error(
    probabilities: Float[Tensor, "n c"], labels: Int64[Tensor, " n"], num_bins: int = _CALIBRATION_BINS
) -> float:
    """Mean gap between confidence and accuracy over bins of confidence, weighted by their images (ECE, Eq. 3)."""
    confidence, predicted = probabilities.max(dim=1)
    right = (predicted == labels).double()
    # Bins are (0, 1/m], (1/m, 2/m], ...: a confidence of one belongs to the last.
    bins = (confidence * num_bins).ceil().long().clamp(1, num_bins) - 1
    gaps = torch.zeros(num_bins, dtype=torch.float64).index_add_(0, bins, confidence.double() - right)
    return float(gaps.abs().sum() / len(labels))


def bootstrap_interval(num_right: int, num_images: int) -> tuple[float, float]:
    """95% percentile interval of an accuracy when its test images are drawn anew, with replacement.

    A resample of n images holds Binomial(n, right/n) right ones, so that the percentiles are that distribution's
    own: exact, without draws and without a seed. An accuracy of 0 or 1 would get an interval of no width, the
    bootstrap's known weakness, and gets Wilson's: five right of five say little.
    """
    if num_right in (0, num_images):
        low, high = wilson_interval(num_right / num_images, num_images)
        return (low, 1.0) if num_right else (0.0, high)  # but for rounding it is that
    hits = torch.arange(num_images + 1, dtype=torch.float64)
    p, n = num_right / num_images, torch.tensor(float(num_images), dtype=torch.float64)
    log_choose = torch.lgamma(n + 1) - torch.lgamma(hits + 1) - torch.lgamma(n - hits + 1)
    cumulative = (log_choose + hits * math.log(p) + (n - hits) * math.log1p(-p)).exp().cumsum(0)
    low, high = torch.searchsorted(cumulative, torch.tensor(_TAILS, dtype=torch.float64)).tolist()
    return low / num_images, min(high, num_images) / num_images


@dataclass(frozen=True)
class Spread:
    """A score over repeated draws of the training images.

    Attributes:
        mean: over the draws.
        std: sample standard deviation (n - 1) of single draws, None for one draw.
        values: each draw's score, in order.
    """

    mean: float
    std: float | None
    values: tuple[float, ...]


def spread(values: list[float]) -> Spread:
    """Mean and standard deviation over draws; the values are shares or anything else."""
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Spread(float(np.mean(values)), std, tuple(values))
