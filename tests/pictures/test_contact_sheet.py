"""The sheet: which part is magnified, and what is drawn."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from dsdmae_cli.pictures.contact_sheet import Panel, Region, draw, telling_region, with_magnified
from dsdmae_cli.pictures.noise import color_noise_level, noise_level
from dsdmae_cli.pictures.picture import Picture
from dsdmae_cli.pictures.traces import judge


def pictures(height: int, width: int, top: int, left: int, side: int) -> tuple[Picture, Picture]:
    """Noise and its absence; detail that is kept stands at one place."""
    draw_from = np.random.default_rng(0)
    after = np.full((height, width, 3), 128.0)
    after[top : top + side, left : left + side] += draw_from.choice([-60, 60], (side, side, 1))
    before = after + draw_from.normal(0, 10, after.shape)
    given, restored = (Picture(np.clip(x, 0, 255).astype(np.uint8), "RGB") for x in (before, after))
    return given, restored


def test_the_part_with_change_and_detail_is_magnified() -> None:
    before, after = pictures(600, 900, 390, 720, 120)
    region = telling_region(before, after, 120)
    assert abs(region.top - 390) <= 15
    assert abs(region.left - 720) <= 15
    assert telling_region(after, after, 120) == region  # by its detail alone


def test_a_change_counts_more_than_detail_elsewhere() -> None:
    _, after = pictures(400, 400, 40, 40, 100)
    pixels = after.pixels.copy()
    pixels[250:350, 250:350, 1] += np.random.default_rng(0).integers(0, 5, (100, 100), np.uint8)
    region = telling_region(after, after.with_pixels(pixels), 100)
    assert region.top >= 175
    assert region.left >= 175


def test_a_large_picture_is_cut_around_it() -> None:
    before, after = pictures(700, 1000, 570, 870, 120)
    above, below = with_magnified([Panel(before, "given"), Panel(after, "restored")])
    assert [panel.picture.pixels.shape for panel in above] == [(480, 480, 3)] * 2
    framed = above[0].framed
    assert framed is not None
    np.testing.assert_array_equal(framed.cut(above[1].picture).pixels, below[1].picture.pixels)
    page = draw([above, below])
    assert page.width > 2 * 480
    # Four times as large, pixel by pixel.
    large = np.asarray(page)[-8 - 480 : -8, 8 : 8 + 480]
    np.testing.assert_array_equal(large[::4, ::4], below[0].picture.pixels)


@pytest.mark.parametrize("shape", [(1, 1), (23, 900), (24, 24), (37, 50), (130, 3000)])
@pytest.mark.parametrize("mode", ["L", "RGBA"])
def test_any_size(mode: str, shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 65536, (*shape, len(mode)), np.uint16)
    rows = with_magnified([Panel(Picture(pixels, mode), "given"), Panel(Picture(pixels, mode), "restored")])
    assert len(rows) == (2 if min(shape) >= 24 else 1)
    assert all(max(panel.picture.pixels.shape[:2]) <= 480 for row in rows for panel in row)
    assert draw(rows).height > 30


def test_a_region_is_a_square() -> None:
    picture = Picture(np.arange(100, dtype=np.uint8).reshape(10, 10, 1), "L")
    np.testing.assert_array_equal(Region(2, 3, 2).cut(picture).pixels[..., 0], [[23, 24], [33, 34]])


def test_large_pictures_are_looked_at_a_part_at_a_time() -> None:
    """Which part is magnified, how loud noise is and what was taken: each in far less than the picture's own 12 MB."""
    given = Picture(np.random.default_rng(0).integers(0, 255, (400, 10_000, 3), np.uint8), "RGB")
    after = given.with_pixels(given.pixels // 2)
    for look, most in (
        (lambda: telling_region(given, after, 100), 10),
        (lambda: noise_level(given.pixels), 90),
        (lambda: color_noise_level(given.pixels), 90),
        (lambda: judge(given.pixels, after.pixels), 100),
    ):
        tracemalloc.start()
        look()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < most * 2**20, look
