"""Masks: exact counts, every image its own, and the laws they are drawn by, against BEiT's loop over blocks."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from dsdmae_cli.data.source import seeded
from dsdmae_cli.masking import block_ids, multi_fold_ids

CPU = torch.device("cpu")


def is_partition(parts: list[Tensor], num_tokens: int) -> bool:
    return sorted(token for part in parts for token in part.flatten().tolist()) == list(range(num_tokens))


@pytest.mark.parametrize(
    ("grid", "count"),
    [((16, 16), 102), ((14, 14), 78), ((4, 4), 6), ((4, 4), 1), ((4, 4), 15), ((2, 9), 7), ((7, 3), 20), ((1, 8), 3)],
)
def test_blocks_mask_exactly_so_many(grid: tuple[int, int], count: int) -> None:
    masked, rest = block_ids(64, grid, count, seeded(CPU, 0))
    num_tokens = grid[0] * grid[1]
    assert masked.shape == (64, count)
    for ids in zip(masked, rest, strict=True):
        assert is_partition(list(ids), num_tokens)
        assert all(a < b for part in ids for a, b in pairwise(part.tolist()))
    assert len({tuple(ids) for ids in masked.tolist()}) > min(20, num_tokens - 1) / 2, "images share their masks"
    again, _ = block_ids(64, grid, count, seeded(CPU, 0))
    assert torch.equal(again, masked)
    assert not torch.equal(block_ids(64, grid, count, seeded(CPU, 1))[0], masked)


def beit(grid: tuple[int, int], count: int, rng: random.Random) -> list[list[bool]]:
    """Algorithm 1 of the paper, a block at a time; one that does not fit, or adds too much or nothing, is redrawn."""
    rows, columns = grid
    least = 16 / 196 * rows * columns
    mask = [[False] * columns for _ in range(rows)]
    done, tries = 0, 0
    while done < count and tries < 10:
        tries += 1
        area = rng.uniform(least, max(least, count - done))
        ratio = math.exp(rng.uniform(math.log(0.3), -math.log(0.3)))
        height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if height >= rows or width >= columns:
            continue
        top, left = rng.randint(0, rows - height), rng.randint(0, columns - width)
        places = [(y, x) for y in range(top, top + height) for x in range(left, left + width)]
        new = sum(not mask[y][x] for y, x in places)
        if not 0 < new <= count - done:
            continue
        for y, x in places:
            mask[y][x] = True
        done, tries = done + new, 0
    return mask


def neighbours_alike(mask: list[list[bool]]) -> float:
    """Fraction of masked tokens' neighbours (right, below) that are masked too: 0.4 if there were no blocks."""
    pairs = [(a, b) for line in mask for a, b in pairwise(line)]
    pairs += [(a, b) for upper, lower in pairwise(mask) for a, b in zip(upper, lower, strict=True)]
    either = [a and b for a, b in pairs if a or b]
    return sum(either) / len(either)


def test_blocks_are_as_beits() -> None:
    """The same lumps and, seen over many images, tokens masked about as often in the middle and at the edges."""
    grid, count, many = (14, 14), 78, 1500
    ids, _ = block_ids(many, grid, count, seeded(CPU, 0))
    flat = torch.zeros(many, 196).scatter_(1, ids, 1.0).bool()
    ours: list[list[list[bool]]] = flat.reshape(many, *grid).tolist()
    rng = random.Random(0)
    theirs = [beit(grid, count, rng) for _ in range(many)]
    lumps = [sum(map(neighbours_alike, masks)) / many for masks in (ours, theirs)]
    assert lumps[0] == pytest.approx(lumps[1], abs=0.04)
    assert lumps[0] > 0.6
    often = [torch.tensor(masks).float().mean(dim=0) for masks in (ours, theirs)]
    scaled = [table / table.mean() for table in often]
    assert (scaled[0] - scaled[1]).abs().max() < 0.25


@pytest.mark.slow
def test_blocks_prefer_no_direction() -> None:
    """Where a block is cut, it is cut from any corner: masks are as often lumped across as down."""
    ids, _ = block_ids(20_000, (14, 14), 75, seeded(CPU, 0))
    mask = torch.zeros(20_000, 196).scatter_(1, ids, 1.0).reshape(-1, 14, 14)
    across = (mask[:, :, 1:] * mask[:, :, :-1]).sum() / mask[:, :, :-1].sum()
    down = (mask[:, 1:] * mask[:, :-1]).sum() / mask[:, :-1].sum()
    # BEiT's public code has 0.866 across and 0.864 down.
    assert across.item() == pytest.approx(0.866, abs=0.005)
    assert down.item() == pytest.approx(across.item(), abs=0.003)
    often = mask.mean(dim=0)
    for turned in (often.flip(0), often.flip(1), often.T):
        assert (often - turned).abs().max() < 0.02


def test_a_first_block_has_the_area_and_shape_it_should() -> None:
    """As many tokens as the least block has, so that a mask is one block, or one and a bit where sides were rounded."""
    ids, _ = block_ids(2000, (20, 20), 32, seeded(CPU, 0))
    row, column = ids // 20, ids % 20
    height = (row.amax(1) - row.amin(1) + 1).double()
    width = (column.amax(1) - column.amin(1) + 1).double()
    single = (height * width - 32).abs() <= torch.maximum(height, width)
    assert single.double().mean() > 0.5
    ratio = (height / width)[single].log()
    assert ratio.mean().abs() < 0.1  # as often high as wide
    assert -math.log(5.5) < ratio.min() < -math.log(2)  # 0.3 before sides are rounded to whole tokens
    assert math.log(2) < ratio.max() < math.log(5.5)


@pytest.mark.parametrize(("num_tokens", "count", "folds"), [(196, 147, 3), (256, 192, 3), (16, 12, 1), (10, 7, 2)])
def test_folds_deal_out_the_masked_tokens(num_tokens: int, count: int, folds: int) -> None:
    drawn = multi_fold_ids(32, num_tokens, count, folds, seeded(CPU, 0))
    assert drawn.ids_folds.shape == (32, folds, count // folds)
    assert drawn.ids_keep.shape == (32, num_tokens - count)
    for groups, keep in zip(*drawn, strict=True):
        dealt = groups.flatten().tolist()
        assert len({*dealt, *keep.tolist()}) == len(dealt) + len(keep)
        assert all(a < b for part in [*groups, keep] for a, b in pairwise(part.tolist()))
    assert len({tuple(keep) for keep in drawn.ids_keep.tolist()}) > 10
    assert torch.equal(multi_fold_ids(32, num_tokens, count, folds, seeded(CPU, 0)).ids_folds, drawn.ids_folds)


def test_folds_are_random_and_not_parts_of_the_image() -> None:
    """Sorted ids cut into thirds would give the teacher the top, the middle and the bottom of each image."""
    folds = multi_fold_ids(500, 256, 192, 3, seeded(CPU, 0)).ids_folds.double()
    assert (folds.mean(dim=(0, 2)) - 127.5).abs().max() < 3
    assert folds.std(dim=2).mean().item() == pytest.approx(256 / math.sqrt(12), rel=0.03)
