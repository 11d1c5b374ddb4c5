"""What a backbone is to this program, and what its author must read.

A backbone maps an image to a grid of features. One that can also encode a subset of its patches sets
`encodes_subset` in its spec and overrides `forward_subset`.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn


class Backbone(nn.Module):
    """An image encoder with a grid of tokens.

    Attributes:
        grid: (rows, columns) of tokens.
        width: features per token.
        image_size: side of the images it takes, in pixels.
        timm_name, timm_kwargs: `timm.create_model(timm_name, **timm_kwargs)` builds the same network, and
            `timm_state()` fits it. An empty timm_name means an architecture that timm does not have; `timm_state()`
            is then its own state_dict.
    """

    grid: tuple[int, int]
    width: int
    image_size: int
    timm_name: str
    timm_kwargs: dict[str, Any]

    @property
    def num_tokens(self) -> int:
        """Tokens per image, rows times columns."""
        return self.grid[0] * self.grid[1]

    @property
    def patch_shape(self) -> tuple[int, int]:
        """(height, width) in pixels of the part of the image that stands behind one token."""
        return self.image_size // self.grid[0], self.image_size // self.grid[1]

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b t d"]:
        """Final features of all tokens, row by row, normalised as the architecture does last."""
        raise AssertionError("a backbone overrides forward")

    def forward_subset(
        self, images: Float[Tensor, "b c h w"], ids_keep: Int64[Tensor, "b k"]
    ) -> Float[Tensor, "b k d"]:
        """Final features of the tokens `ids_keep` alone; the others are never computed."""
        raise AssertionError("the spec says that this backbone cannot encode a subset")

    def timm_state(self) -> dict[str, Tensor]:
        """Weights under timm's own parameter names."""
        raise AssertionError("a backbone overrides timm_state")


def to_autocast_dtype(x: Tensor) -> Tensor:
    """Cast to autocast's dtype where autocast is on, so that a residual stream runs in it.

    Half the memory traffic of the pointwise work; docs/design/performance.md has the figures.
    """
    kind = x.device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return x
    return x.to(torch.get_autocast_dtype(kind))


def gather_tokens(x: Float[Tensor, "b t d"], ids: Int64[Tensor, "b k"]) -> Float[Tensor, "b k d"]:
    """The tokens `ids` of each image."""
    return x.gather(1, ids.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def sincos_positions(grid: tuple[int, int], width: int) -> Float[Tensor, "1 t d"]:
    """Fixed 2-D sine-cosine position embedding, as MAE (He et al. 2022) has it.

    The first half of the features encodes the column, the second the row; each half is sin then cos of
    position / 10000^(i / (width/4)).

    Raises:
        ValueError: width is not a multiple of 4.
    """
    if width % 4:
        raise ValueError(f"a sine-cosine embedding needs a width that is a multiple of 4, got {width}")
    omega = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    rows, columns = (torch.arange(n, dtype=torch.float64) for n in grid)
    parts = []
    for positions in (columns.repeat(grid[0]), rows.repeat_interleave(grid[1])):
        angles = positions[:, None] * omega
        parts += [angles.sin(), angles.cos()]
    return torch.cat(parts, dim=1).float().unsqueeze(0)
