"""What the features of patches know, as numbers that a picture can show: components as colours, what stands in front,
and which patches of other images are like a chosen one. figures/patches.py draws them.
"""

from __future__ import annotations

from itertools import permutations
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float

from dsdmae_cli.evaluation.reducing import pca

Tokens = Float[np.ndarray, "n rows columns d"]
# Percentiles of a component that become black and full colour: a few odd patches must not take all the contrast.
_DARK, _BRIGHT = 2, 98
_LEAST = 4


class Colours(NamedTuple):
    """RGB from 0 to 1 of each patch, and the share of all variance that each of the three components holds."""

    rgb: Float[np.ndarray, "n rows columns 3"]
    shares: tuple[float, ...]


def colours(tokens: Tokens) -> Colours:
    """The first three principal components of all patches of all images together, as red, green and blue.

    Each component runs from 0 at its 2nd percentile over all patches to 1 at its 98th. One colour thus means the same
    in every image; which component is which colour, and its sign, mean nothing.
    """
    n, rows, columns, d = tokens.shape
    rgb, shares = _stretched(tokens.reshape(-1, d))
    return Colours(rgb.reshape(n, rows, columns, 3), shares)


def foreground(tokens: Tokens) -> Bool[np.ndarray, "n rows columns"]:
    """Patches on that side of the first principal component's mean on which fewer of the images' borders lie.

    As Oquab et al. 2023 (DINOv2, arXiv:2304.07193, section 7.5) part object and background, who choose side and
    threshold by hand. Of scenes without an object the parting means what the first component means.
    """
    n, rows, columns, d = tokens.shape
    first = pca(torch.from_numpy(np.ascontiguousarray(tokens.reshape(-1, d))), 1)[0].numpy().reshape(n, rows, columns)
    border = np.ones((rows, columns), dtype=bool)
    border[1:-1, 1:-1] = False
    return first < 0 if (first[:, border] > 0).mean() > 0.5 else first > 0


def foreground_colours(tokens: Tokens) -> Colours | None:
    """The same as `colours` with components of the foreground's patches alone; the others are black.

    None where too few patches are foreground to have three components.
    """
    front = foreground(tokens)
    if front.sum() < _LEAST:
        return None
    rgb = np.zeros((*front.shape, 3), dtype=np.float32)
    rgb[front], shares = _stretched(tokens[front])
    return Colours(rgb, shares)


def following(
    rgb: Float[np.ndarray, "n rows columns 3"], before: Float[np.ndarray, "n rows columns 3"]
) -> Float[np.ndarray, "n rows columns 3"]:
    """Colours of a later moment, their components in the order and of the sign that fit those of an earlier one best.

    Order and sign of components mean nothing, and would else jump from moment to moment.
    """
    now, then = (colour.reshape(-1, 3) - colour.reshape(-1, 3).mean(axis=0) for colour in (rgb, before))
    length = np.sqrt(np.square(now).sum(axis=0))[:, None] * np.sqrt(np.square(then).sum(axis=0))
    fits = now.T @ then / np.maximum(length, np.finfo(np.float32).tiny)
    order = list(max(permutations(range(3)), key=lambda of: float(np.abs(fits[of, range(3)]).sum())))
    turned = fits[order, range(3)] < 0
    return np.where(turned, 1 - rgb[..., order], rgb[..., order])


def likeness(tokens: Tokens, image: int, row: int, column: int) -> Float[np.ndarray, "n rows columns"]:
    """Cosine of every patch to a chosen one, of features less their mean over all patches, which tells nothing."""
    mean = tokens.mean(axis=(0, 1, 2), dtype=np.float64).astype(np.float32)
    chosen = tokens[image, row, column] - mean
    least, of_chosen = np.finfo(np.float32).tiny, np.linalg.norm(chosen)
    cosines = np.empty(tokens.shape[:3], dtype=np.float32)
    for number, of_image in enumerate(tokens):  # of all together a copy and its squares would take twice their memory
        centred = of_image - mean
        cosines[number] = (centred @ chosen) / np.maximum(np.linalg.norm(centred, axis=-1) * of_chosen, least)
    return cosines


def _stretched(features: Float[np.ndarray, "m d"]) -> tuple[Float[np.ndarray, "m 3"], tuple[float, ...]]:
    components = min(3, *features.shape)
    places, shares = pca(torch.from_numpy(np.ascontiguousarray(features)), components)
    low, high = np.percentile(places.numpy(), (_DARK, _BRIGHT), axis=0)
    share = (places.numpy() - low) / np.maximum(high - low, np.finfo(np.float32).tiny)
    rgb = np.zeros((len(features), 3), dtype=np.float32)
    rgb[:, :components] = share.clip(0, 1)
    return rgb, shares
