"""What can be said of results in segmentation side by side: gains in mean IoU on the very same test images."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from jaxtyping import Int64

from dsdmae_cli.evaluation.overlap import COUNTS, paired_gain
from dsdmae_cli.runs.results import Row


def remarks(rows: Sequence[Row]) -> list[str]:
    """The best of each dataset against each other one, by a bootstrap that draws their common images together."""
    found = []
    dense = [row for row in rows if row.mean_iou is not None]
    judged = sorted(dense, key=lambda row: (row.dataset, -(row.mean_iou or 0)))
    for dataset, group in groupby(judged, key=lambda row: row.dataset):
        best, *others = group
        found += [f"{dataset}: {_gain(best, other)}" for other in others]
    return found


def _gain(best: Row, other: Row) -> str:
    mine, theirs = _counts(best), _counts(other)
    if mine is None or theirs is None:
        return f"{best.name} and {other.name} cannot be compared image by image: {COUNTS} is missing beside a result"
    if list(mine) != list(theirs):
        return f"{best.name} and {other.name} were judged on other images, and cannot be compared image by image"
    if not all(_same_truth(mine[name], theirs[name]) for name in mine):
        return (
            f"{best.name} and {other.name} were judged by other masks, classes or void (data.void), and cannot be"
            " compared image by image"
        )
    gain, (low, high) = paired_gain(np.stack([*mine.values()]), np.stack([*theirs.values()]))
    told = "" if low > 0 else ": they are not told apart"
    return (
        f"{best.name} is {100 * gain:.1f} points of mean IoU above {other.name} on the same images (95% interval"
        f" {100 * low:.1f} to {100 * high:.1f}){told}"
    )


def _same_truth(one: Int64[np.ndarray, "3 c"], other: Int64[np.ndarray, "3 d"]) -> bool:
    """Whether an image has the same pixels of each class to two results."""
    return np.array_equal(one[1], other[1])


def _counts(row: Row) -> dict[str, Int64[np.ndarray, "3 c"]] | None:
    """By the image's name."""
    try:
        with np.load(Path(row.path).parent / COUNTS, allow_pickle=False) as kept:
            pairs = zip(kept["images"].tolist(), kept["counts"], strict=True)
            return dict(sorted(pairs, key=lambda pair: str(pair[0])))
    except (OSError, ValueError, KeyError, BadZipFile):
        return None
