"""Parts of the pictures that Method.restore and Method.show make."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from dsdmae_cli.backbone import gather_tokens
from dsdmae_cli.corruption import denormalize_patches, ids_to_mask, mask_to_pixels, patchify, unpatchify

# RGB in [-1, 1] for a cosine of 0 or below, and of 1.
_STRANGE = (-0.8, -0.9, -0.3)
_EQUAL = (1.0, 0.8, -0.5)


def hide(
    images: Float[Tensor, "b c h w"], ids: Int64[Tensor, "b k"], patch: tuple[int, int], grid: tuple[int, int]
) -> Float[Tensor, "b c h w"]:
    """The patches `ids` grey."""
    hidden = mask_to_pixels(ids_to_mask(ids, grid[0] * grid[1]), patch, grid)
    return torch.where(hidden, torch.zeros_like(images), images)


def keep_only(
    images: Float[Tensor, "b c h w"], ids: Int64[Tensor, "b k"], patch: tuple[int, int], grid: tuple[int, int]
) -> Float[Tensor, "b c h w"]:
    """All patches but `ids` grey."""
    kept = mask_to_pixels(ids_to_mask(ids, grid[0] * grid[1]), patch, grid)
    return torch.where(kept, images, torch.zeros_like(images))


def put_back(
    images: Float[Tensor, "b c h w"],
    predicted: Float[Tensor, "b k p"],
    ids: Int64[Tensor, "b k"],
    patch: tuple[int, int],
    grid: tuple[int, int],
    normalised: bool,
) -> Float[Tensor, "b c h w"]:
    """Images with predicted patches in place of their own; `normalised` ones get the mean and spread of those first."""
    patches = patchify(images, patch)
    if normalised:
        predicted = denormalize_patches(predicted, gather_tokens(patches, ids))
    return unpatchify(patches.scatter(1, ids.unsqueeze(-1).expand_as(predicted), predicted), patch, grid)


def similarity_map(
    cosines: Float[Tensor, "b k"], ids: Int64[Tensor, "b k"], patch: tuple[int, int], grid: tuple[int, int]
) -> Float[Tensor, "b 3 h w"]:
    """Patches `ids` from dark blue (cosine 0 or below) to yellow (1), the others grey."""
    colours = torch.zeros(len(cosines), grid[0] * grid[1], 3, device=cosines.device)
    low, high = (torch.tensor(rgb, device=cosines.device) for rgb in (_STRANGE, _EQUAL))
    share = cosines.float().clamp(0, 1).unsqueeze(-1)
    colours = colours.scatter(1, ids.unsqueeze(-1).expand(-1, -1, 3), low + share * (high - low))
    pixels = colours.unsqueeze(2).expand(-1, -1, patch[0] * patch[1], -1).flatten(2)
    return unpatchify(pixels, patch, grid)
