"""Random erasing (Zhong et al. 2020, arXiv:1708.04896), each image with a draw of its own, the batch at once."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Generator, Tensor

# timm's, which are what MAE and BEiT fine-tune with: shares of the area, height over width, and how often it tries.
_AREA = (0.02, 1 / 3)
_ASPECT = (0.3, 1 / 0.3)
_TRIES = 10


def erased(images: Float[Tensor, "b c h w"], probability: float, generator: Generator) -> Float[Tensor, "b c h w"]:
    """A rectangle of some images becomes Gaussian noise, distributed as timm's RandomErasing(mode="pixel").

    Its loop over the images launches a kernel or more for each; here all tries are drawn at once, and of those that are
    smaller than the image the first is taken, as in data/augment.py. Where none is, nothing is erased.

    Args:
        probability: that an image has a rectangle.
        generator: on the images' device; the only source of randomness.
    """
    b, _, h, w = images.shape
    device = generator.device
    draws = torch.rand(5, _TRIES, b, generator=generator, device=device)
    area = h * w * (_AREA[0] + (_AREA[1] - _AREA[0]) * draws[0])
    log_low, log_high = (math.log(aspect) for aspect in _ASPECT)
    aspect = (log_low + (log_high - log_low) * draws[1]).exp()
    height, width = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    found, first = ((height < h) & (width < w)).max(dim=0)
    chosen = found & (draws[4, 0] < probability)
    inside = chosen[:, None, None, None]
    for side, full, draw, ndim in ((height, h, draws[2, 0], 2), (width, w, draws[3, 0], 1)):
        length = side.gather(0, first[None])[0]
        start = (draw * (full + 1 - length)).floor()
        place = torch.arange(full, device=device).view(-1, *[1] * (ndim - 1))
        inside = inside & (place >= start[:, None, None, None]) & (place < (start + length)[:, None, None, None])
    noise = torch.randn(images.shape, generator=generator, device=device, dtype=images.dtype)
    return torch.where(inside, noise, images)
