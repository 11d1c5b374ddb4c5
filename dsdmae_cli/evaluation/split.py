"""Which training images a probe may learn from: held-out parts and few-shot draws, by label and seed alone.

Everything is stratified: each class gives its own share. Images without a label (-1) are never used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from dsdmae_cli.data.source import derive_seed
from dsdmae_cli.errors import DataError

Indices = Int64[np.ndarray, " k"]

# Of 50 images the better of two settings is mostly chance: half of the answers right is 50% +- 14%, of 250 +- 6%.
_ENOUGH = 250


class HeldOut(NamedTuple):
    """Two parts of the labelled images, as ascending indices that share nothing.

    `held` is empty where no class has two images.
    """

    fit: Indices
    held: Indices


def hold_out(labels: Int64[np.ndarray, " n"], share: float, seed: int) -> HeldOut:
    """Set a share of each class aside to choose settings on.

    A class gives round(share x its images), but at least one, and never its last image: a class with a single image
    stays in `fit` and has no say in the choice. Small classes therefore give more than `share`.

    Raises:
        DataError: the labels do not name two classes.
    """
    order, rank, size = _ranked(labels, seed, "hold out")
    taken = np.minimum(np.maximum(1, np.rint(share * size)), size - 1)
    return HeldOut(np.sort(order[rank >= taken]), np.sort(order[rank < taken]))


def hold_out_others(labels: Int64[np.ndarray, " n"], share: float, seed: int) -> tuple[HeldOut, ...]:
    """Further parts of the images that `hold_out` divides, each with others held out, until that is 250 images in all,
    or each has been once; none where `hold_out` holds out so many.

    Raises:
        DataError: the labels do not name two classes.
    """
    order, rank, size = _ranked(labels, seed, "hold out")
    taken = np.minimum(np.maximum(1, np.rint(share * size)), size - 1)
    others, count = [], int((rank < taken).sum())
    for turn in range(1, max(1, int(1 / share))):
        held = (rank >= turn * taken) & (rank < (turn + 1) * taken)
        if count >= _ENOUGH or not held.any():
            break
        others.append(HeldOut(np.sort(order[~held]), np.sort(order[held])))
        count += int(held.sum())
    return tuple(others)


def few_shot(labels: Int64[np.ndarray, " n"], share: float, seed: int, draw: int = 0) -> Indices:
    """A share of the labelled images of each class, at least one of each, as ascending indices.

    Draws of one seed differ by `draw`. Within a draw shares are nested: 1% is part of 5%, so that a curve over shares
    is not a curve over luck.

    Raises:
        DataError: the labels do not name two classes.
    """
    order, rank, size = _ranked(labels, seed, "few shot", draw)
    return np.sort(order[rank < np.maximum(1, np.rint(share * size))])


def require_held_out(split: HeldOut, what: str, values: Sequence[float], *, of_classes: bool = True) -> None:
    """See that there are images to choose a setting on.

    Args:
        what: the setting, in a word.
        values: that it may have.
        of_classes: images of each class were held out; False = any images, all but one at most.

    Raises:
        DataError: none are held out.
    """
    if not len(split.held):
        why = "no class has two training images" if of_classes else "there is one training image"
        raise DataError(
            f"{why}, so that none can be held out to choose between {len(values)} values"
            f" of {what}; give a single {what}, or use more images"
        )


def _ranked(
    labels: Int64[np.ndarray, " n"], seed: int, purpose: str, *numbers: int
) -> tuple[Indices, Int64[np.ndarray, " k"], Int64[np.ndarray, " k"]]:
    """Labelled images in random order within their classes: index, place in its class, images of its class."""
    known = np.flatnonzero(labels >= 0)
    classes = np.unique(labels[known])
    if len(classes) < 2:
        raise DataError(
            f"the training images have labels of {len(classes)} classes ({len(known)} of {len(labels)} are labelled);"
            " a classifier needs two classes or more. Put each class into a folder of its own"
        )
    order = np.random.default_rng(derive_seed(seed, purpose, *numbers)).permutation(known)
    order = order[np.argsort(labels[order], kind="stable")]
    _, first, inverse, size = np.unique(labels[order], return_index=True, return_inverse=True, return_counts=True)
    return order, np.arange(len(order)) - first[inverse], size[inverse]
