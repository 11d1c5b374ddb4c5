"""How near restored pixels are to the original ones."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def psnr(
    images: Float[Tensor, "b c h w"], reference: Float[Tensor, "b c h w"], data_range: float = 2.0
) -> Float[Tensor, " b"]:
    """Peak signal-to-noise ratio of each image, in dB; data_range is 2 for pixels in [-1, 1]."""
    mse = (images - reference).pow(2).flatten(1).mean(dim=1)
    return 10 * torch.log10(data_range**2 / mse)
