"""Tiles: every pixel is covered, blending is exact where it must be, and memory stays small."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsdmae_cli.pictures.tiling import (
    Corner,
    Tile,
    blended,
    grids,
    reflected,
    side_of_tiles,
    starts,
    turn,
    turn_back,
    window,
)

TILE, OVERLAP = 16, 4
SQUARE = Tile(TILE, TILE)
tiles = st.sampled_from([SQUARE, Tile(24, 16), Tile(16, 40)])


@given(
    length=st.integers(1, 200), shift=st.integers(0, 12), slack=st.integers(0, 12), overlap=st.sampled_from([1, 4, 8])
)
def test_starts_cover_and_overlap(length: int, shift: int, slack: int, overlap: int) -> None:
    begins = starts(length, TILE, overlap, min(shift, slack), slack)
    covered = {at for begin in begins for at in range(begin, begin + TILE)}
    assert set(range(length)) <= covered
    gaps = np.diff(begins)
    assert (gaps >= 1).all()
    assert (gaps <= TILE - overlap).all()
    if not slack and length >= TILE:
        assert (begins[0], begins[-1]) == (0, length - TILE)
    elif TILE - length >= slack:
        assert len(begins) == 1


@given(length=st.integers(1, 3000), multiple=st.sampled_from([1, 8]), most=st.sampled_from([128, 256, 512]))
def test_the_fewest_tiles_and_no_larger_than_they_must_be(length: int, multiple: int, most: int) -> None:
    side = side_of_tiles(length, 128, 32, multiple, most)
    assert side % multiple == 0
    assert 128 <= side <= most
    count = len(starts(length, side, 32))
    assert count == len(starts(length, most, 32))  # no smaller number would do
    if side > 128:
        assert len(starts(length, side - multiple, 32)) > count


def test_large_tiles_see_fewer_pixels_twice() -> None:
    assert [side_of_tiles(length, 128, 32, 8, 512) for length in (60, 128, 500, 512, 768)] == [128, 128, 504, 512, 400]
    assert len(starts(768, 400, 32)) == 2
    assert len(starts(768, 128, 32)) == 8


def test_mirrored_indices() -> None:
    for length in (2, 3, 7):
        wanted = np.pad(np.arange(length), (20, 20), mode="reflect")
        np.testing.assert_array_equal(reflected(-20, length + 40, length), wanted)
    assert (reflected(-3, 9, 1) == 0).all()


def test_the_window_is_symmetric_and_never_zero() -> None:
    weight = window(SQUARE)
    np.testing.assert_allclose(weight, weight[::-1], rtol=1e-5)
    np.testing.assert_array_equal(weight, weight.T)
    assert weight.min() > 0
    assert weight.argmax() in range(TILE * TILE // 2 - TILE, TILE * TILE // 2 + TILE)
    one, other = window(Tile(16, 1))[:, 0], window(Tile(40, 1))[:, 0]
    np.testing.assert_allclose(window(Tile(16, 40)), np.outer(one, other), rtol=1e-6)


def gather(picture: np.ndarray, corners: list[Corner], tile: Tile) -> np.ndarray:
    rows = [reflected(c.y, tile.height, picture.shape[1]) for c in corners]
    columns = [reflected(c.x, tile.width, picture.shape[2]) for c in corners]
    return np.stack([picture[:, r][:, :, c] for r, c in zip(rows, columns, strict=True)])


@settings(deadline=None, max_examples=40)
@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    passes=st.integers(1, 5),
    batch_size=st.sampled_from([1, 3, 64]),
    tile=tiles,
)
def test_a_network_that_changes_nothing_changes_nothing(
    height: int, width: int, passes: int, batch_size: int, tile: Tile
) -> None:
    picture = np.random.default_rng(0).random((2, height, width), np.float32)
    grid = grids(height, width, tile, OVERLAP, passes)
    bands = list(blended(height, width, tile, grid, lambda corners: lambda: gather(picture, corners, tile), batch_size))
    np.testing.assert_allclose(np.concatenate([band.pixels for band in bands], axis=1), picture, rtol=0, atol=1e-6)
    assert [band.top for band in bands] == [0, *np.cumsum([band.pixels.shape[1] for band in bands])[:-1]]
    assert bands[-1].tiles == sum(map(len, grid))


@pytest.mark.parametrize("tile", [SQUARE, Tile(24, 16)])
def test_blending_is_the_weighted_mean_of_all_tiles(tile: Tile) -> None:
    """Against the same computed for the whole picture at once, in float64."""
    height, width, far = 37, 45, max(tile)
    passes = grids(height, width, tile, OVERLAP, 3)
    corners = [corner for grid in passes for corner in grid.corners()]
    draw = np.random.default_rng(0)
    answers = {corner: draw.standard_normal((1, *tile), np.float32) for corner in corners}
    total, weights = (np.zeros((height + 2 * far, width + 2 * far)) for _ in range(2))
    for corner in corners:
        y, x = corner.y + far, corner.x + far
        place = np.s_[y : y + tile.height, x : x + tile.width]
        total[place] += window(tile).astype(float) * answers[corner][0].astype(float)
        weights[place] += window(tile)
    wanted = (total / np.where(weights, weights, 1))[far:-far, far:-far]
    bands = blended(height, width, tile, passes, lambda batch: lambda: np.stack([answers[c] for c in batch]), 5)
    found = np.concatenate([band.pixels for band in bands], axis=1)[0]
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_no_two_passes_are_the_same() -> None:
    passes = grids(200, 200, SQUARE, 8, 16)
    assert len({grid.way for grid in passes}) == 8
    assert len({(grid.ys[0], grid.xs[0], grid.way) for grid in passes}) == 16


def test_eight_ways_and_back() -> None:
    image = np.arange(84).reshape(4, 7, 3)
    ways = [turn(image, way) for way in range(8)]
    assert len({way.tobytes() for way in ways}) == 8
    for way, turned in enumerate(ways):
        back = turn_back(turned.transpose(2, 0, 1).astype(np.float32), way)
        np.testing.assert_array_equal(back.transpose(1, 2, 0), image)


@pytest.mark.parametrize("passes", [1, 3])
def test_memory_does_not_grow_with_the_height(passes: int) -> None:
    def peak(height: int) -> int:
        tracemalloc.start()  # which counts NumPy's arrays too
        grid = grids(height, 64, SQUARE, OVERLAP, passes)
        for _ in blended(height, 64, SQUARE, grid, lambda c: lambda: np.ones((len(c), 3, 16, 16), np.float32), 8):
            pass
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    # Ten times the rows may cost the lists of where tiles begin, and no more.
    assert peak(20_000) - peak(2_000) < 40 * 18_000 * passes / (TILE - OVERLAP) + 100_000
