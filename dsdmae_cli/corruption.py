"""Patches, masks and noise: pure functions of tensors and a generator. Nothing here knows a model.

Polarity: in every mask of this program True means noisy (or hidden), False means left as it was.
"""

from __future__ import annotations

import math
import random
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Generator, Tensor

NoiseKind = Literal["add", "replace", "mix"]
NoiseLaw = Literal["uniform", "loguniform", "lognormal"]
Range = float | tuple[float, float]


def patchify(images: Float[Tensor, "b c h w"], patch: tuple[int, int]) -> Float[Tensor, "b t p"]:
    """Cut images into patches, row by row; a patch is flattened as (row, column, channel), MAE's order."""
    b, c, h, w = images.shape
    ph, pw = patch
    x = images.reshape(b, c, h // ph, ph, w // pw, pw)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(b, (h // ph) * (w // pw), ph * pw * c)


def unpatchify(
    patches: Float[Tensor, "b t p"], patch: tuple[int, int], grid: tuple[int, int]
) -> Float[Tensor, "b c h w"]:
    """The inverse of patchify."""
    b = patches.shape[0]
    ph, pw = patch
    x = patches.reshape(b, grid[0], grid[1], ph, pw, -1)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(b, -1, grid[0] * ph, grid[1] * pw)


def normalize_patches(patches: Float[Tensor, "b t p"]) -> Float[Tensor, "b t p"]:
    """Zero mean and unit variance per patch: MAE's norm_pix_loss target (unbiased variance, eps 1e-6)."""
    mean = patches.mean(dim=-1, keepdim=True)
    var = patches.var(dim=-1, keepdim=True)
    return (patches - mean) / (var + 1e-6).sqrt()


def denormalize_patches(normalized: Float[Tensor, "b t p"], original: Float[Tensor, "b t p"]) -> Float[Tensor, "b t p"]:
    """Give normalised patches the mean and contrast of the original ones, for pictures."""
    mean = original.mean(dim=-1, keepdim=True)
    var = original.var(dim=-1, keepdim=True)
    return normalized * (var + 1e-6).sqrt() + mean


def num_masked(mask_ratio: Range, num_tokens: int, generator: Generator) -> int:
    """round(r*T) noisy patches; with a range, r is drawn once for the (micro-)batch.

    The draw comes from the generator's seed on the host: a draw on the device would have to be waited for, and the
    number is a tensor's shape. At least one patch is noisy, or there would be nothing to learn from.
    """
    if isinstance(mask_ratio, tuple):
        mask_ratio = random.Random(generator.initial_seed()).uniform(*mask_ratio)
    return whole(mask_ratio, num_tokens)


def whole(mask_ratio: float, num_tokens: int) -> int:
    """round(r*T) patches, one at least."""
    return max(1, round(mask_ratio * num_tokens))


def num_kept(mask_ratio: float, num_tokens: int) -> int:
    """int(T (1-r)) patches that are seen, as MAE's public code counts; one at least, and never all of several."""
    return max(1, min(num_tokens - 1, int(num_tokens * (1 - mask_ratio))))


def random_ids(
    batch: int, num_tokens: int, count: int, generator: Generator, read: int | None = None
) -> tuple[Int64[Tensor, "b count"], Int64[Tensor, "b rest"]]:
    """Split the tokens of each image at random into `count` chosen ones and the rest; both sorted ascending.

    Args:
        read: of the tokens so many are split and the others are in neither; None = all are.
    """
    order = torch.rand(batch, num_tokens, generator=generator, device=generator.device).argsort(dim=1)
    return order[:, :count].sort(dim=1).values, order[:, count:read].sort(dim=1).values


def ids_to_mask(ids: Int64[Tensor, "b k"], num_tokens: int) -> Bool[Tensor, "b t"]:
    """True at the tokens `ids`."""
    mask = torch.zeros(ids.shape[0], num_tokens, dtype=torch.bool, device=ids.device)
    return mask.scatter_(1, ids, True)


def mask_to_pixels(
    mask: Shaped[Tensor, "b t"], patch: tuple[int, int], grid: tuple[int, int]
) -> Shaped[Tensor, "b 1 h w"]:
    """Spread a mask, or any other value of each patch, over the pixels of its patches."""
    b = mask.shape[0]
    x = mask.reshape(b, 1, grid[0], 1, grid[1], 1).expand(-1, -1, -1, patch[0], -1, patch[1])
    return x.reshape(b, 1, grid[0] * patch[0], grid[1] * patch[1])


def draw_std(
    std: Range, shape: tuple[int, int], generator: Generator, law: NoiseLaw = "uniform"
) -> Float[Tensor, "b n"] | float:
    """Noise levels: the value itself, or a draw for each image (n = 1) or for each of its patches (n = t).

    Args:
        std: σ, or a pair of them.
        law: of a pair. "uniform": σ in [low, high]. "loguniform": ln σ in [ln low, ln high]. "lognormal": ln σ is
            normal, low and high lie one standard deviation on either side of its median (Karras et al. 2022 train
            with ln σ ~ N(-1.2, 1.2²) for data of standard deviation 0.5, which is (0.09, 1)).
    """
    if not isinstance(std, tuple):
        return std
    low, high = std
    if law == "uniform":
        return low + (high - low) * torch.rand(shape, generator=generator, device=generator.device)
    low, high = math.log(low), math.log(high)
    if law == "loguniform":
        return (low + (high - low) * torch.rand(shape, generator=generator, device=generator.device)).exp()
    normal = torch.randn(shape, generator=generator, device=generator.device)
    return ((low + high) / 2 + (high - low) / 2 * normal).exp()


class Grain(NamedTuple):
    """What makes noise alike within a patch: matrices whose products with their transposes are correlations.

    Attributes:
        rows: of a patch's rows.
        columns: of its columns and channels, channels innermost.
    """

    rows: Float[Tensor, "p p"]
    columns: Float[Tensor, "qc qc"]


def grain(patch: tuple[int, int], channels: int, correlation: float) -> Grain:
    """Noise whose neighbours within a patch are alike, as pixels of pictures are.

    The correlation of two values d rows and e columns apart is correlation^(d + e), times the correlation once more
    where their channels differ: a first-order Markov process along rows and along columns, the classical model of
    pictures (Jain 1989, "Fundamentals of Digital Image Processing", 2.9).

    Args:
        correlation: of neighbouring pixels and of channels, in [0, 1).
    """
    rows, columns = (_markov(side, correlation) for side in patch)
    # The symmetric root of (1 - ρ) I + ρ 11ᵀ: a I + b 11ᵀ, and the sum of its row is the root of that of the other.
    own = math.sqrt(1 - correlation)
    shared = (math.sqrt(1 - correlation + channels * correlation) - own) / channels
    mixed = own * torch.eye(channels) + shared * torch.ones(channels, channels)
    return Grain(rows, torch.kron(columns, mixed))


def _markov(count: int, correlation: float) -> Float[Tensor, "n n"]:
    """The Cholesky factor of correlation^|i - j|: each value is its predecessor's share and something of its own."""
    place = torch.arange(count, dtype=torch.float64)
    apart = place[:, None] - place
    factor = torch.tril(correlation ** apart.clamp(min=0))
    factor[:, 1:] *= math.sqrt(1 - correlation**2)
    return factor.float()


def grained(white: Float[Tensor, "b h w c"], how: Grain) -> Float[Tensor, "b h w c"]:
    """White noise, channels last, made alike within patches; its variance stays, patches stay independent."""
    b, h, w, c = white.shape
    rows, columns = len(how.rows), len(how.columns)
    with torch.autocast(white.device.type, enabled=False):
        mixed = how.rows @ white.reshape(b, h // rows, rows, w * c)
        return (mixed.reshape(b, h, w * c // columns, columns) @ how.columns.T).reshape(b, h, w, c)


def add_noise(
    images: Float[Tensor, "b c h w"],
    noisy: Bool[Tensor, "b 1 h w"],
    std: Float[Tensor, "#b 1 #h #w"] | float,
    kind: NoiseKind,
    generator: Generator,
    clip: bool = False,
    how: Grain | None = None,
) -> Float[Tensor, "b c h w"]:
    """Gaussian noise on the noisy pixels; the others come back bit for bit.

    Args:
        images: pixels in [-1, 1].
        noisy: True where noise goes.
        std: σ in the same units, one, one per image or one per pixel; for "mix" at most 1.
        kind: "add": x + σn. "replace": σn, nothing of x is left. "mix": sqrt(1-σ²)·x + σn, which keeps the variance
            of a signal of unit variance, as diffusion models do.
        clip: cut noisy pixels to [-1, 1], as every 8-bit file has been: in deep shadows and highlights such noise
            has neither zero mean nor the σ it was drawn with.
        how: makes n alike within patches; None leaves it white.
    """
    b, c, h, w = images.shape
    shape = (b, c, h, w) if how is None else (b, h, w, c)
    drawn = torch.randn(shape, generator=generator, device=generator.device, dtype=images.dtype)
    noise = std * (drawn if how is None else grained(drawn, how).permute(0, 3, 1, 2))
    if kind == "add":
        noise = images + noise
    elif kind == "mix":
        keep = (1 - std * std) ** 0.5
        noise = keep * images + noise
    if clip:
        noise = noise.clamp(-1, 1)
    return torch.where(noisy, noise, images)
