"""Strong views of a batch: colour jitter, grey, blur and solarisation, each image with a draw of its own.

The augmentations of MoCo v3 (which are BYOL's), on the device the images are on and in the units of this program,
[-1, 1]. Crops and flips are dsdmae_cli/data/augment.py: a method that wants several crops of an image asks for them
with Method.num_views.

Why not torchvision's transforms: on a batch they draw one set of numbers for all of it, and one call per image leaves
a GPU idle. Each function here takes one factor per image, and equals torchvision's of the same name image by image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Generator, Tensor

# ITU-R 601-2 luma as torchvision rounds it.
_LUMA = (0.2989, 0.587, 0.114)
# SimCLR (arXiv:2002.05709) leaves blur out on CIFAR-10: of so few pixels it takes more than the finest detail.
NO_BLUR_UP_TO = 32
# Taps each way in units of the largest sigma; beyond lie 0.3% of a Gaussian.
_BLUR_REACH = 3


@dataclass(frozen=True)
class Strength:
    """How strong a view is; every probability is per image.

    Attributes:
        jitter: largest change of brightness, contrast, saturation (factors in [1-x, 1+x]) and hue (in turns).
        jitter_probability: of all four together, in a random order.
        grey_probability: of dropping the colour.
        blur_probability: of a Gaussian blur.
        blur_std: range of the blur's sigma, in pixels.
        solarize_probability: of inverting the pixels above the middle grey.
    """

    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    jitter_probability: float = 0.8
    grey_probability: float = 0.2
    blur_probability: float = 0.0
    blur_std: tuple[float, float] = (0.1, 2.0)
    solarize_probability: float = 0.0


def strong_view(images: Float[Tensor, "b c h w"], strength: Strength, generator: Generator) -> Float[Tensor, "b c h w"]:
    """A strong view of each image, in the order of MoCo v3: jitter, grey, blur, solarisation.

    Of other images than RGB only the blur has a meaning; the rest must be off (`MethodSpec.colour`).

    Args:
        images: in [-1, 1], as what comes back.
        generator: on the images' device; the only source of randomness.
    """
    s, b = strength, len(images)
    x = (images + 1) / 2
    if images.shape[1] == 3:
        x = color_jitter(x, draw_jitter(b, s.jitter, s.jitter_probability, generator))
        x = torch.where(_chosen(b, s.grey_probability, generator), _luma(x), x)
    else:
        assert s.jitter_probability == s.grey_probability == s.solarize_probability == 0
    if s.blur_probability:
        low, high = s.blur_std
        std = low + (high - low) * _uniform(b, generator=generator)
        x = torch.where(_chosen(b, s.blur_probability, generator), gaussian_blur(x, std, high), x)
    if s.solarize_probability:
        x = torch.where(_chosen(b, s.solarize_probability, generator), solarize(x), x)
    return x * 2 - 1


@dataclass(frozen=True)
class Jitter:
    """What colour jitter does to each image.

    Attributes:
        brightness, contrast, saturation: factors; 1 changes nothing.
        hue: in turns of the colour circle; 0 changes nothing.
        order: which of (brightness, contrast, saturation, hue) comes first, second, third and fourth.
    """

    brightness: Float[Tensor, " b"]
    contrast: Float[Tensor, " b"]
    saturation: Float[Tensor, " b"]
    hue: Float[Tensor, " b"]
    order: Int64[Tensor, "b 4"]


def draw_jitter(
    batch: int, largest: tuple[float, float, float, float], probability: float, generator: Generator
) -> Jitter:
    """Draw what torchvision's RandomApply([ColorJitter(*largest)], probability) would draw for each image."""
    jittered = _uniform(batch, generator=generator) < probability
    draws = _uniform(4, batch, generator=generator)
    # Row by row: a tensor of the four numbers would be copied from the host, and waited for.
    change = torch.stack([most * row for most, row in zip(largest, (2 * draws - 1).unbind(), strict=True)])
    # An image that is not jittered gets factors that change no bit.
    brightness, contrast, saturation = torch.where(jittered, (1 + change[:3]).clamp(min=0), 1.0)
    order = _uniform(batch, 4, generator=generator).argsort(dim=1)
    return Jitter(brightness, contrast, saturation, torch.where(jittered, change[3], 0.0), order)


def color_jitter(images: Float[Tensor, "b 3 h w"], jitter: Jitter) -> Float[Tensor, "b 3 h w"]:
    """Brightness, contrast, saturation and hue, each image in its own order; pixels in [0, 1].

    Hue, the costly one, is turned once for the batch: what an image wants before it comes before, the rest after. A
    change whose turn it is not has the factor 1, which leaves every bit.
    """
    place = jitter.order.argsort(dim=1)  # of each change in the order
    before_hue = place[:, :3] < place[:, 3:]
    factors = torch.stack([jitter.brightness, jitter.contrast, jitter.saturation], dim=1)
    # The first three changes in the order that an image wants them.
    ranks = place[:, :3].argsort(dim=1)
    factors, before_hue = factors.gather(1, ranks), before_hue.gather(1, ranks)
    x = _blends(images, ranks, torch.where(before_hue, factors, 1.0))
    x = torch.where(_column(jitter.hue != 0), adjust_hue(x, jitter.hue), x)
    return _blends(x, ranks, torch.where(before_hue, 1.0, factors))


def _blends(
    images: Float[Tensor, "b 3 h w"], kinds: Int64[Tensor, "b 3"], factors: Float[Tensor, "b 3"]
) -> Float[Tensor, "b 3 h w"]:
    """Brightness (0), contrast (1) or saturation (2) of each image, three times.

    All three are factor·x + (1 - factor)·other, cut to [0, 1], with black, the mean luma or the luma for other.
    """
    for kind, factor in zip(_columns(kinds), _columns(factors), strict=True):
        luma = _luma(images)
        other = torch.where(kind == 2, luma, luma.mean(dim=(2, 3), keepdim=True) * (kind == 1))
        images = (factor * images + (1 - factor) * other).clamp(0, 1)
    return images


def adjust_hue(images: Float[Tensor, "b 3 h w"], turns: Float[Tensor, " b"]) -> Float[Tensor, "b 3 h w"]:
    """Turn the colour circle of each image; pixels in [0, 1], HSV's value and chroma stay."""
    r, g, b = images.unbind(dim=1)
    value, chroma = images.amax(dim=1), images.amax(dim=1) - images.amin(dim=1)
    width = torch.where(chroma == 0, 1.0, chroma)
    # In sixths of a turn from red; where two channels share the maximum, both formulas agree.
    sixths = torch.where(value == r, (g - b) / width, torch.where(value == g, 2 + (b - r) / width, 4 + (r - g) / width))
    sixths = sixths + 6 * turns[:, None, None]
    channels = []
    for start in (5, 3, 1):  # each channel falls and rises once a turn, by the chroma
        place = (start + sixths) % 6
        channels.append(value - chroma * torch.minimum(place, 4 - place).clamp(0, 1))
    return torch.stack(channels, dim=1)


def gaussian_blur(
    images: Float[Tensor, "b c h w"], std: Float[Tensor, " b"], largest_std: float
) -> Float[Tensor, "b c h w"]:
    """Blur each image with its own sigma, in pixels; edges are reflected.

    A blur is linear and separable: two batched products with [h, h] and [w, w] matrices do a whole batch of different
    ones, as in data/augment.py. torchvision's kernel of 2·reach + 1 taps, reach = 3 of the largest sigma.
    """
    b, c, h, w = images.shape
    reach = max(1, round(_BLUR_REACH * largest_std))
    with torch.autocast(images.device.type, enabled=False):  # bf16 weights would be off by grey levels
        x = _blur_matrix(h, std, reach) @ images.transpose(1, 2).reshape(b, h, c * w)
        x = x.reshape(b, h * c, w) @ _blur_matrix(w, std, reach).mT
    return x.reshape(b, h, c, w).transpose(1, 2)


def _blur_matrix(side: int, std: Float[Tensor, " b"], reach: int) -> Float[Tensor, "b {side} {side}"]:
    """Row o says what output pixel o takes of each input pixel: directly, and beyond the edges by reflection."""
    reach = min(reach, side - 1)  # one reflection, as torchvision's padding allows
    at = torch.arange(side, device=std.device)
    out, into = at[:, None], at[None, :]
    left = torch.where(into == 0, side + reach, -into)  # edge pixels are not repeated: out of reach
    right = torch.where(into == side - 1, 2 * side + reach, 2 * (side - 1) - into)
    taps = torch.stack([place - out for place in (into, left, right)])
    variance = 2 * std.square()[:, None, None, None]
    weights = (torch.exp(-(taps.square()) / variance) * (taps.abs() <= reach)).sum(dim=1)
    return weights / weights.sum(dim=-1, keepdim=True)


def solarize(images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Invert what is brighter than the middle grey; pixels in [0, 1]."""
    return torch.where(images >= 0.5, 1 - images, images)


def _luma(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 h w"]:
    r, g, b = images.split(1, dim=1)
    return _LUMA[0] * r + _LUMA[1] * g + _LUMA[2] * b


def _chosen(batch: int, probability: float, generator: Generator) -> Bool[Tensor, "b 1 1 1"]:
    return _column(_uniform(batch, generator=generator) < probability)


def _uniform(*shape: int, generator: Generator) -> Float[Tensor, "*shape"]:
    return torch.rand(shape, generator=generator, device=generator.device)


def _column(x: Tensor) -> Tensor:
    return x[:, None, None, None]


def _columns(x: Tensor) -> list[Tensor]:
    return [_column(column) for column in x.unbind(dim=1)]
