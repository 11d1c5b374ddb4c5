"""Losses that several methods share. All of them are computed in float32, whatever autocast does around them."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

CosineKind = Literal["token", "global", "channel"]


def pixel_loss(
    predicted: Float[Tensor, "b k p"],
    target: Float[Tensor, "b k p"],
    weight: Float[Tensor, "b _"] | None = None,
) -> Float[Tensor, ""]:
    """Mean squared error over patches and pixels (DSdMAE Eq. 1 as a mean; MAE's loss over masked patches).

    Args:
        weight: factor of each image's, or of each patch's own mean; None = 1.
    """
    if weight is None:
        return F.mse_loss(predicted.float(), target.float())
    return (weight * (predicted.float() - target.float()).square().mean(dim=2)).mean()


def cosine_loss(
    predicted: Float[Tensor, "b k d"], target: Float[Tensor, "b k d"], kind: CosineKind = "token"
) -> Float[Tensor, ""]:
    """1 - cosine (DSdMAE Eq. 2), averaged.

    Args:
        kind: what one cosine spans. "token": the features of a token. "global": all tokens and features of an image,
            Eq. 2 to the letter. "channel": one feature over all tokens, as SdAE's public code does.
    """
    predicted, target = predicted.float(), target.float()
    if kind == "token":
        cosine = F.cosine_similarity(predicted, target, dim=-1)
    elif kind == "channel":
        cosine = F.cosine_similarity(predicted, target, dim=1)
    else:
        cosine = F.cosine_similarity(predicted.flatten(1), target.flatten(1), dim=-1)
    return 1 - cosine.mean()


def standardize_tokens(tokens: Float[Tensor, "b k d"]) -> Float[Tensor, "b k d"]:
    """Zero mean and unit variance per token, without affine terms: SdAE's (x - mean) / sqrt(var + 1e-6)."""
    tokens = tokens.float()
    var, mean = torch.var_mean(tokens, dim=-1, keepdim=True)
    return (tokens - mean) / (var + 1e-6).sqrt()
