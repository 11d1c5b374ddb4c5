"""Mean intersection over union from counted pixels, and its interval over images. No torch here: results are compared
without waiting for it.

Intersection over union of a class is TP / (TP + FP + FN) over all pixels of all images (PASCAL VOC, Everingham et al.
2010), void pixels left out; its mean is over the classes that the masks or the answers show at all, as scikit-learn's
jaccard_score(average="macro") has it.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int64

# Beside result.json: right, true and answered pixels of every test image by class, and the images' names.
COUNTS = "counts.npz"
_RESAMPLES = 2000
_TAILS = (2.5, 97.5)


def ious(total: Int64[np.ndarray, "*k 3 c"]) -> Float[np.ndarray, "*k c"]:
    """Intersection over union by class; NaN for one that neither masks nor answers show."""
    right, true, answered = np.moveaxis(np.asarray(total, dtype=np.float64), -2, 0)
    union = true + answered - right
    return np.divide(right, union, out=np.full(union.shape, np.nan), where=union > 0)


def mean_iou(total: Int64[np.ndarray, "3 c"]) -> float:
    """Mean over the classes that masks or answers show; 0 where all pixels are void."""
    found = ious(total)
    return float(np.nanmean(found)) if np.isfinite(found).any() else 0.0


def accuracy(total: Int64[np.ndarray, "3 c"]) -> float:
    """Share of the judged pixels that are right."""
    return float(total[0].sum() / max(1, total[1].sum()))


def _resampled(num_images: int, seed: int) -> Float[np.ndarray, "b n"]:
    """How often each image is drawn, for images drawn anew with replacement."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(num_images, np.full(num_images, 1 / num_images), size=_RESAMPLES).astype(np.float64)


def bootstrap(images: Int64[np.ndarray, "n 3 c"], seed: int = 0) -> Float[np.ndarray, "b 2"]:
    """Mean IoU and pixel accuracy of 2,000 sets of images drawn anew, with replacement."""
    n, _, c = images.shape
    # A product of float64 is many times faster than one of integers, and as exact: pixels are counted below 2^53.
    sums = (_resampled(n, seed) @ images.reshape(n, 3 * c).astype(np.float64)).reshape(-1, 3, c)
    right, true = sums[:, 0].sum(axis=1), sums[:, 1].sum(axis=1)
    found = ious(sums)
    judged = np.isfinite(found)
    # 0 where all pixels are void, as mean_iou has it.
    means = np.where(judged, found, 0.0).sum(axis=1) / np.maximum(1, judged.sum(axis=1))
    return np.stack([means, right / np.maximum(1, true)], axis=1)


def interval(values: Float[np.ndarray, " b"]) -> tuple[float, float]:
    """The 95% percentile interval."""
    low, high = np.percentile(values, _TAILS)
    return float(low), float(high)


def paired_gain(
    mine: Int64[np.ndarray, "n 3 c"], other: Int64[np.ndarray, "n 3 c"]
) -> tuple[float, tuple[float, float]]:
    """By how much the first's mean IoU is above the other's on the same images, and its 95% interval over images.

    Both are drawn anew together: an image that is hard is hard for both, and leaves the difference.
    """
    gains = bootstrap(mine)[:, 0] - bootstrap(other)[:, 0]
    return mean_iou(mine.sum(axis=0)) - mean_iou(other.sum(axis=0)), interval(gains)
