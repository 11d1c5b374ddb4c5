"""Which tokens of an image are masked: samplers beyond a plain random choice, which is corruption.random_ids.

Each image has its own draw, the whole batch is drawn at once on the generator's device, and the counts are exact, so
that shapes are static. Complementary masks (TSCAE) need no sampler of their own: random_ids returns both parts.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Generator, Tensor

# BEiT's least block is 16 of 14x14 tokens; other grids scale it.
_LEAST_BLOCK = 16 / 196
# Blocks drawn for an image. The first few fill the mask; the rest are there for draws that overlap a lot.
_NUM_BLOCKS = 32


class Folds(NamedTuple):
    """Masked tokens in disjoint random groups, and the tokens that stay; each row sorted ascending."""

    ids_folds: Int64[Tensor, "b folds n"]
    ids_keep: Int64[Tensor, "b k"]


def multi_fold_ids(batch: int, num_tokens: int, count: int, folds: int, generator: Generator) -> Folds:
    """SdAE's multi-fold masking: `count` random tokens are masked and dealt into `folds` groups of count // folds.

    What is left over when `folds` does not divide `count` is masked but in no group, as in SdAE's code.
    """
    order = torch.rand(batch, num_tokens, generator=generator, device=generator.device).argsort(dim=1)
    size = count // folds
    groups = order[:, : folds * size].reshape(batch, folds, size)
    return Folds(groups.sort(dim=2).values, order[:, count:].sort(dim=1).values)


def block_ids(
    batch: int,
    grid: tuple[int, int],
    count: int,
    generator: Generator,
    aspect: tuple[float, float] = (0.3, 1 / 0.3),
) -> tuple[Int64[Tensor, "b count"], Int64[Tensor, "b rest"]]:
    """BEiT's block-wise masking (Bao et al. 2022, Algorithm 1): rectangles until exactly `count` tokens are masked.

    A block has an area of 16/196 of the grid or more, at most `count`, and a height over width in `aspect`, narrowed
    to what fits the grid. BEiT rejects a block that is too large for what is missing and may end short of its aim;
    here the last block is cut to what is missing, by rows or by columns from one of its four corners.

    Args:
        grid: (rows, columns) of tokens.
        count: tokens to mask, of rows times columns.

    Returns:
        Masked tokens and the others, each sorted ascending.
    """
    rows, columns = grid
    num_tokens = rows * columns
    least = min(count, max(1, round(_LEAST_BLOCK * num_tokens)))
    draw = torch.rand(5, batch, _NUM_BLOCKS, generator=generator, device=generator.device)
    area = least + (count - least) * draw[0]
    # sqrt(area * ratio) rows and sqrt(area / ratio) columns must fit the grid: draw from the ratios that do.
    lowest = (area / columns**2).clamp(min=aspect[0])
    highest = torch.maximum(lowest, (rows**2 / area).clamp(max=aspect[1]))
    ratio = lowest * (highest / lowest) ** draw[1]
    height = (area * ratio).sqrt().round().clamp(1, rows)
    width = (area / ratio).sqrt().round().clamp(1, columns)
    top = (draw[2] * (rows - height + 1)).floor()
    left = (draw[3] * (columns - width + 1)).floor()
    order = _order(grid, top, left, height, width, (8 * draw[4]).floor())
    # Tokens in no block come last, in a random order: they fill up the rare mask that the blocks leave short.
    spare = torch.rand(batch, num_tokens, generator=generator, device=generator.device)
    order = torch.where(order.isinf(), _NUM_BLOCKS * num_tokens + spare, order).argsort(dim=1, stable=True)
    return order[:, :count].sort(dim=1).values, order[:, count:].sort(dim=1).values


def _order(
    grid: tuple[int, int],
    top: Float[Tensor, "b k"],
    left: Float[Tensor, "b k"],
    height: Float[Tensor, "b k"],
    width: Float[Tensor, "b k"],
    way: Float[Tensor, "b k"],
) -> Float[Tensor, "b t"]:
    """When each token's turn comes: by the first block that has it, then by row and column (or the other way round) as
    counted from a corner of that block; infinity if none has it.

    Args:
        way: 0 to 7: from the bottom (1, 3, 5, 7) or the top, from the right (2, 3, 6, 7) or the left, and by columns
            first (4 to 7) or by rows.
    """
    rows, columns = grid
    row = torch.arange(rows, device=top.device).repeat_interleave(columns)
    column = torch.arange(columns, device=top.device).repeat(rows)
    down, across = row - top.unsqueeze(-1), column - left.unsqueeze(-1)
    inside = (down >= 0) & (down < height.unsqueeze(-1)) & (across >= 0) & (across < width.unsqueeze(-1))
    way = way.unsqueeze(-1)
    down = torch.where(way % 2 == 1, height.unsqueeze(-1) - 1 - down, down)
    across = torch.where(way // 2 % 2 == 1, width.unsqueeze(-1) - 1 - across, across)
    place = torch.where(way >= 4, across * rows + down, down * columns + across)
    block = torch.arange(top.shape[1], device=top.device).unsqueeze(-1)
    return torch.where(inside, block * rows * columns + place, math.inf).amin(dim=1)
