"""Collapse of features: how far they spread and in how many directions, and when to warn, in words.

What the thresholds stand on: the preset `quick` on digits with other methods, looked at after every one or two epochs,
features of 397 images of width 128, seed 0. Untrained: spread 0.145, rank 28.5, k-NN 64%.

| run | spread | lowest rank | k-NN there | what it is |
|---|---|---|---|---|
| MoCo v3, learning rate 0.03 | 0.064-0.130 | 12.0 | 29-41% | collapsed |
| DSdMAE, λ = 0, teacher = student (η = 0) | 0.104-0.154 | 12.9 | 30-40% | collapsed |
| MAE | 0.016-0.301 | 15.3 | 54%, at 688 steps 61% | healthy, early on |
| DSdMAE, λ = 0 | 0.165-0.487 | 16.5 | 40%, at 688 steps 59% | poor |
| MoCo v3 | 0.021-0.065 | 18.4 | 60%, at 688 steps 79% | healthy |
| DSdMAE | 0.123-0.188 | 21.0 | 46%, at 688 steps 68% | healthy |
| MaskFeat | 0.010-0.020 | 37.9 | 64%, at 688 steps 76% | healthy |

No warning is given of DSdMAE with λ = 0, and no statistic of the features was found that could give one. Rank, the
effective number of eigenvalues by entropy and by participation ratio, the same of correlations, the share of the first
direction, uniformity on the sphere, the share of neighbours that the untrained network has too: by each of them, a
healthy MAE is farther gone. These features have not collapsed. They have directions enough, of the wrong things, and to
see that takes labels.
"""

from __future__ import annotations

from typing import TypedDict

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

# Rounding features to bf16 alone spreads them by 0.001 to 0.002: below this, it is a good part of what differs between
# images. More is no sign of collapse: a large mean that all images share narrows every cosine and is taken off again by
# k-NN and probes. MaskFeat learns at 0.010. Untrained ViTs have 0.14 (digits) to 0.39 (photographs).
POINT = 0.005
# So few directions cannot tell ten classes apart. Untrained ViTs of width 128 and 192 have 22 to 28.
FEW_DIRECTIONS = 3.0
# A share of what the untrained network had: collapsed runs kept 0.42 to 0.50 of it, a healthy MAE 0.54 at its lowest
# (0.56 with another seed).
SHRUNK = 1 / 2
# Gaussian features of 25 directions, as many as untrained ones have, show 13.5 of them on so many images, and 6.7 on
# half of them: fewer images cannot tell few directions from few images.
FEWEST_IMAGES = 16


class Spread(TypedDict):
    """How features lie; see feature_spread."""

    spread: float
    rank: float


def feature_spread(features: Float[Tensor, "n d"]) -> Spread:
    """How far the features of different images lie apart, in float64 on the host.

    All features are scaled to unit length first: collapse is a matter of directions.

    Returns:
        spread: standard deviation over the images, averaged over the d features, times sqrt(d) (Chen & He 2021,
            SimSiam, arXiv:2011.10566, Sec. 4.1). 0 where all images share one direction, 1 at most, where they have
            all directions alike.
        rank: effective rank exp(-Σ p log p) of the centred features, p the singular values divided by their sum (Roy &
            Vetterli 2007): in how many directions images differ, from 1 (a line) to min(n - 1, d). 0 where they do not.
    """
    unit = F.normalize(features.detach().cpu().double(), dim=1)
    centred = unit - unit.mean(dim=0)
    spread = centred.square().mean(dim=0).sqrt().mean() * features.shape[1] ** 0.5
    # Through the Gram matrix, of d x d: an SVD of thousands of images takes seconds. Rounding adds 1e-8 of the largest.
    gram = centred.T @ centred
    singular = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    return {"spread": float(spread), "rank": _effective_rank(singular)}


def _effective_rank(singular: Float[Tensor, " d"]) -> float:
    total = singular.sum()
    if total < 1e-6:  # rounding alone
        return 0.0
    p = singular / total
    return float(torch.special.entr(p).sum().exp())


def collapse_warning(now: Spread, untrained: Spread | None = None, num_images: int | None = None) -> str | None:
    """What to tell a person about features that have collapsed, or None where they have not.

    What the untrained encoder had too is no collapse: it lies in the images.

    Args:
        untrained: the same of the untrained encoder, on the same images.
        num_images: that they were measured on; None = many. n images differ in n - 1 directions at most, so that of
            fewer than FEWEST_IMAGES only one thing is said: that they have all become one point.
    """
    few = num_images is not None and num_images < FEWEST_IMAGES
    if now["spread"] < POINT and (untrained is None or untrained["spread"] >= POINT) and num_images != 1:
        return (
            f"the features have collapsed to a point: their spread over images is {now['spread']:.3g} of 1, so that all"
            " images look alike; lower --lr, or look for a loss that a constant satisfies"
        )
    if few:
        return None
    if now["rank"] < FEW_DIRECTIONS and (untrained is None or untrained["rank"] >= FEW_DIRECTIONS):
        return (
            f"the features have collapsed to a few directions: images differ in about {now['rank']:.1f} of them, too"
            " few to tell many kinds of images apart; lower --lr, or use a larger batch"
        )
    if untrained is not None and now["rank"] < SHRUNK * untrained["rank"]:
        return (
            f"the features are collapsing: images differ in about {now['rank']:.1f} directions, and did in"
            f" {untrained['rank']:.1f} before training; lower --lr, or use a larger batch"
        )
    return None
