"""Residual convolutions on a grid of tokens, and the decoder and regressor made of them.

Tokens [b, t, d] and the feature map [b, d, rows, columns] in channels-last order are the same memory: going from one
to the other moves nothing.
"""

from __future__ import annotations

from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from dsdmae_cli.backbone import gather_tokens, to_autocast_dtype

# How much of a block's input the block adds at first: small, or without norms a deep stack starts far too loud.
_FIRST_GAIN = 0.2


def to_map(tokens: Float[Tensor, "b t d"], grid: tuple[int, int]) -> Float[Tensor, "b d r c"]:
    """Tokens as a feature map, channels last in memory."""
    return tokens.unflatten(1, grid).permute(0, 3, 1, 2)


def to_tokens(features: Float[Tensor, "b d r c"]) -> Float[Tensor, "b t d"]:
    """The inverse of to_map."""
    return features.permute(0, 2, 3, 1).flatten(1, 2)


class ResidualConv(nn.Module):
    """x + conv(relu(conv(x))), 3x3 and without norms: a norm over the image would hide the level of the noise."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        nn.init.kaiming_normal_(self.conv1.weight, nonlinearity="relu")
        nn.init.kaiming_normal_(self.conv2.weight, nonlinearity="relu")
        self.conv2.weight.data.mul_(_FIRST_GAIN)
        nn.init.zeros_(self.conv1.bias)  # type: ignore[arg-type]
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: Float[Tensor, "b d r c"]) -> Float[Tensor, "b d r c"]:
        return x + self.conv2(F.relu(self.conv1(x), inplace=True))


class GridConvolutions(nn.Module):
    """Residual convolutions over the grid on which tokens stand; positions that are not given are zeros.

    Args:
        grid: the encoder's (rows, columns).
        width: features per token.
        depth: number of residual blocks.
        out_features: width of a last 3x3 convolution, which starts at zero, or None for none.
    """

    def __init__(self, grid: tuple[int, int], width: int, depth: int, out_features: int | None = None) -> None:
        super().__init__()
        self.grid = grid
        self.blocks = nn.Sequential(*(ResidualConv(width) for _ in range(depth)))
        self.project = nn.Conv2d(width, out_features, 3, padding=1) if out_features else nn.Identity()
        if isinstance(self.project, nn.Conv2d):
            nn.init.zeros_(self.project.weight)
            nn.init.zeros_(self.project.bias)  # type: ignore[arg-type]

    def forward(self, tokens: Float[Tensor, "b k d"], ids: Int64[Tensor, "b k"]) -> Float[Tensor, "b k out"]:
        """Transform tokens that stand at the positions `ids` of the grid, in ascending order."""
        tokens = to_autocast_dtype(tokens)
        b, k, d = tokens.shape
        total = self.grid[0] * self.grid[1]
        if k < total:
            tokens = tokens.new_zeros(b, total, d).scatter(1, ids.unsqueeze(-1).expand(-1, -1, d), tokens)
        out = self.on_grid(tokens, self.grid)
        return gather_tokens(out, ids) if k < total else out

    def on_grid(self, tokens: Float[Tensor, "b t d"], grid: tuple[int, int]) -> Float[Tensor, "b t out"]:
        """Transform all tokens of a grid, which may be another than the one this was built for."""
        tokens = to_autocast_dtype(tokens)
        return to_tokens(self.project(self.blocks(to_map(tokens, grid))))
