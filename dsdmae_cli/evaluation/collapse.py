"""Collapse of features: how far they spread and in how many directions, and when to warn, in words."""

from __future__ import annotations

from typing import TypedDict

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

# Below it all images look alike to any comparison by cosine. Untrained ViTs have 0.14 (digits) to 0.39 (photographs).
POINT = 0.02
# So few directions cannot tell ten classes apart. Untrained ViTs of width 128 and 192 have 22 to 28.
FEW_DIRECTIONS = 3.0
# A share of what the untrained network had: training should gain directions (28 to 42 in DSdMAE's default run).
SHRUNK = 1 / 3


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


def collapse_warning(now: Spread, untrained: Spread | None = None) -> str | None:
    """What to tell a person about features that have collapsed, or None where they have not.

    Args:
        untrained: the same of the untrained encoder, on the same images.
    """
    if now["spread"] < POINT:
        return (
            f"the features have collapsed to a point: their spread over images is {now['spread']:.3g} of 1, so that all"
            " images look alike; lower --lr, or look for a loss that a constant satisfies"
        )
    if now["rank"] < FEW_DIRECTIONS:
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
