"""Values that say that nothing was measured, and saturated ones: they decide no range, and stay what they are."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import image_files as F
import numpy as np
import pytest
import tifffile
from helpers import cli

from dsdmae_cli.data.decode import decode, deep_values, image_form
from dsdmae_cli.data.nodata import TAG, apart, parsed, unmeasured
from dsdmae_cli.data.open import open_dataset
from dsdmae_cli.data.values import Reading, Values, sampled, sampled_range, sampled_ranges
from dsdmae_cli.pictures.depths import brought_back, left_out, limits_of, seen
from dsdmae_cli.pictures.picture import Picture, read, write

LEAST = -3.4028234663852886e38  # of float32


def tif(values: np.ndarray, tag: str | None = None, **how: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, extratags=[(TAG, "s", 0, tag, True)] if tag else [], **how)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def grey() -> np.ndarray:
    """A photograph in 0..1."""
    return F.crops(1, 64)[0].astype(np.float64).mean(axis=2) / 255


def temperatures(grey: np.ndarray, nodata: float, kind: str = "float32", rows: int = 8) -> np.ndarray:
    """270 to 320 with some rows of nothing."""
    values = (270 + 50 * grey).astype(kind)
    values[:rows] = nodata
    return values


CASES = [
    ("float32", -9999, "-9999"), ("float32", -9999, None), ("float32", LEAST, None), ("float32", LEAST, "-3.4028235e+38"),
    ("float64", -1.7976931348623157e308, None), ("float32", -LEAST, None), ("int16", -32768, None),
    ("int16", 32767, "32767"), ("uint16", 0, "0"), ("uint16", 65535, "65535"), ("float32", 9999, "9999"),
    ("float32", 300, "300"), ("float16", -9999, None), ("float32", np.nan, "nan"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "nodata", "tag"), CASES)
def test_nothing_is_no_end_of_the_range_and_black(grey: np.ndarray, kind: str, nodata: float, tag: str | None) -> None:
    content = tif(temperatures(grey, nodata, kind), tag)
    found = deep_values(content, "x")
    assert found is not None
    low, high = sampled_range([found]) or (0, 0)
    assert 265 < low < high < 325
    shown = decode(content, "x", Reading((low, high)))
    assert shown[:8].max() == 0
    assert 60 < shown[8:].mean() < 200
    assert shown[8:].std() > 30


@pytest.mark.parametrize(("kind", "nodata", "tag"), CASES)
def test_it_comes_back_and_its_neighbours_are_seen_beside_their_like(
    grey: np.ndarray, kind: str, nodata: float, tag: str | None
) -> None:
    values = temperatures(grey, nodata, kind)
    picture = read(tif(values, tag), "x")
    limits = limits_of([picture])
    assert limits is not None
    before = seen(picture, limits)
    known = picture.pixels[16:8:-1] != nodata  # of those that are mirrored at the edge
    np.testing.assert_array_equal(before.pixels[:8][known], before.pixels[16:8:-1][known])
    after = before.with_pixels(np.full_like(before.pixels, 30000))
    back = brought_back(picture, before, after, limits)
    np.testing.assert_array_equal(back.pixels[:8], picture.pixels[:8])
    low, high = limits
    wanted = low + 30000 / 65535 * (high - low)
    still = picture.pixels[8:] == nodata  # elsewhere too
    assert np.abs(back.pixels[8:].astype(np.float64) - wanted)[~still].max() < 1
    assert left_out(picture, limits) == (() if np.isnan(nodata) else (float(values[0, 0]),))
    buffer = io.BytesIO()
    write([back], buffer, ".tif")
    again = read(buffer.getvalue(), "x")
    np.testing.assert_array_equal(again.pixels, back.pixels)
    assert again.nodata == picture.nodata == (parsed(tag) if tag else None)


def test_what_is_saturated_decides_no_range(grey: np.ndarray) -> None:
    values = np.rint(100 + 900 * np.tile(grey, (2, 2))).astype(np.uint16)
    values.flat[::500] = 65535
    found = sampled([Values(values[..., None])])
    assert found is not None
    assert found.left_out == (65535,)
    assert 90 < found.range[0] < found.range[1] <= 1000
    assert decode(tif(values), "x", Reading(found.range)).reshape(-1, 3)[::500].min() == 255
    hot = values.copy()  # and a few hot pixels between
    hot.flat[7::9000] = 20000
    assert (sampled_range([Values(hot[..., None])]) or (0, 0))[1] < 1100


def test_what_is_meant_stays(grey: np.ndarray) -> None:
    full = np.rint(65535 * np.clip(grey * 1.4, 0, 1)).astype(np.uint16)  # clipped highlights
    assert (full == 65535).mean() > 0.01
    assert sampled([Values(full[..., None])]) == sampled([Values(np.rint(grey * 65535).astype(np.uint16)[..., None])])
    assert sampled_range([Values(full[..., None])]) == (0, 65535)
    hounsfield = (grey * 3000 - 1024).astype(np.int16)
    hounsfield[:20] = -1024  # air
    assert (sampled_range([Values(hounsfield[..., None])]) or (0, 0))[0] == -1024
    dark = np.rint(np.linspace(0, 1, 4096) ** 8 * 65535).astype(np.uint16)  # few values between, but some
    assert apart(np.append(dark, [65535] * 30).astype(np.float64), None) == ()
    mask = np.repeat(np.array([0, 1, 2, 65535], np.uint16), 99)
    assert apart(mask.astype(np.float64), None) == ()
    assert apart(np.empty(0), None) == apart(np.full(99, 7.0), None) == ()


def test_both_ends_and_each_band(grey: np.ndarray) -> None:
    both = temperatures(grey, -32768, "int16")
    both[-4:] = 32767
    assert (sampled([Values(both[..., None])]) or pytest.fail()).left_out == (-32768, 32767)
    bands = np.stack([temperatures(grey, -9999), 1000 + 10 * temperatures(grey, -9999)], axis=2)
    limits = sampled_ranges([Values(bands)], Reading(channels=2))
    assert limits is not None
    assert limits[0][0] > 265
    assert 3600 < limits[1][0] < limits[1][1] < 4300


@pytest.mark.parametrize(
    ("tag", "value"),
    [("-9999", -9999), ("-9999 \0", -9999), (b"0", 0), ("nan", None), ("", None), ("none", None), (7, None)],
)
def test_what_the_tag_says(tag: Any, value: float | None) -> None:
    assert parsed(tag) == value
    assert not unmeasured(np.array([1, 2], np.uint8), 300).any()
    assert unmeasured(np.array([1, 2], np.uint8), 2).tolist() == [False, True]
    assert not unmeasured(np.array([1, 2], np.int16), 1.5).any()


def test_a_picture_of_nothing_alone() -> None:
    picture = read(tif(np.full((9, 9), -9999, np.float32), "-9999"), "x")
    assert limits_of([picture]) is None
    assert decode(tif(np.full((9, 9), -9999, np.float32), "-9999"), "x", Reading((0, 1))).max() == 0
    assert seen(picture, (0, 1)).pixels.max() == 0
    nothing = Picture(np.full((9, 9, 1), np.nan, np.float32), "L")
    assert np.isnan(brought_back(nothing, seen(nothing, (0, 1)), seen(nothing, (0, 1)), (0, 1)).pixels).all()
