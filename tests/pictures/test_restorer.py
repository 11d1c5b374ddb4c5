"""What a restorer makes of a network: which of two it takes, and when brightness goes through it alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from skimage import data

from dsdmae_cli.pictures.brightness import add_brightness, brightness
from dsdmae_cli.pictures.network import Network
from dsdmae_cli.pictures.picture import Picture
from dsdmae_cli.pictures.restore import Restorer, corrected, widened
from dsdmae_cli.pictures.traces import BRIGHT, COMPRESSED, STRONG


class _Smoothing:
    """A network that takes what differs between colours by a Gaussian, whatever its tiles; it counts what it was given.

    What all colours share it takes for something depicted, as networks do that learned from noise of each colour.
    """

    image_size, batch_size = 128, 1
    engine, device, origin, sha256, patch = "torch", "cpu", "a test", "0", (2, 2)

    def __init__(self, size_multiple: int | None = None) -> None:
        self.tiles = 0
        self.size_multiple = size_multiple

    def begin(self, tiles: np.ndarray) -> Callable[[], np.ndarray]:
        self.tiles += len(tiles)
        smooth = gaussian_filter(tiles, (0, 0, 1, 1))
        detail = tiles - smooth
        apart = (detail - detail.mean(axis=1, keepdims=True)).std() > 0.003
        return lambda: smooth if apart else tiles


def _noisy(width: float, shared: bool, sigma: float = 12) -> tuple[np.ndarray, np.ndarray]:
    """A smooth picture, and the same with noise as wide, in all colours or each of them."""
    clean = gaussian_filter(data.astronaut()[:256, :256].astype(float), (8, 8, 0))
    noise = np.random.default_rng(2).normal(0, 1, (256, 256, 1 if shared else 3))
    noise = gaussian_filter(noise, (width, width, 0))
    return clean, np.rint(clean + sigma * noise / noise.std()).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_brightness_is_the_mean_and_comes_back(dtype: type) -> None:
    peak = np.iinfo(dtype).max
    pixels: np.ndarray = np.random.default_rng(0).integers(0, peak, (700, 30, 3), endpoint=True).astype(dtype)
    before = brightness(pixels)
    assert np.abs(before[..., 0] - pixels.mean(axis=2) * (65535 / peak)).max() <= 0.51
    after = np.random.default_rng(1).integers(0, 65535, before.shape).astype(np.uint16)
    wanted = np.clip(pixels + (after.astype(float) - before) * (peak / 65535), 0, peak)
    add_brightness(pixels, before, after)
    assert np.abs(pixels - wanted).max() <= 0.51


def test_noise_that_all_colours_share_goes_through_the_network_as_grey() -> None:
    clean, noisy = _noisy(width=0, shared=True)
    result = Restorer(network := _Smoothing())(Picture.of(noisy))
    errors = [
        np.square(pixels - clean).mean()
        for pixels in (noisy, corrected(_Smoothing(), Picture.of(noisy)), result.picture.pixels)
    ]
    assert errors[2] < 0.25 * errors[1]
    assert result.found in (BRIGHT, STRONG)
    assert result.strength == 1
    once = _Smoothing()
    corrected(once, Picture.of(noisy))
    assert network.tiles == 2 * once.tiles


def test_found_in_what_was_taken_it_goes_afterwards() -> None:
    """Noise that neighbours share, which the picture alone does not show."""
    clean, noisy = _noisy(width=0.9, shared=False)
    result = Restorer(network := _Smoothing())(Picture.of(noisy))
    at_once = corrected(once := _Smoothing(), Picture.of(noisy))
    assert result.found == COMPRESSED
    assert network.tiles == 2 * once.tiles
    errors = [np.square(pixels - clean).mean() for pixels in (noisy, at_once, result.picture.pixels)]
    assert errors[2] < 0.95 * errors[1] < 0.95 * errors[0]


def test_a_network_of_any_size_looks_at_smaller_pictures_too_where_noise_is_not_white() -> None:
    """Of 256 pixels at 128 and 64, in colour alone; and nothing is rounded to 8 bits between two corrections."""
    clean, noisy = _noisy(width=1.5, shared=False)
    fixed = Restorer(_Smoothing())(Picture.of(noisy))
    network = _Smoothing(size_multiple=2)
    result = Restorer(cast(Network, network))(Picture.of(noisy))
    assert fixed.found == result.found == COMPRESSED
    assert network.tiles == 2 + 2
    errors = [np.square(found.picture.pixels - clean).mean() for found in (fixed, result)]
    assert errors[1] < 0.97 * errors[0]
    for others in (_noisy(width=0, shared=False)[1], np.rint(clean).astype(np.uint8)):
        Restorer(cast(Network, one := _Smoothing(size_multiple=2)))(Picture.of(others))
        assert one.tiles == 1


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_correction_in_16_bits_is_the_one_that_is_rounded(dtype: type) -> None:
    noisy: np.ndarray = (_noisy(width=0.9, shared=False)[1].astype(int) * (np.iinfo(dtype).max // 255)).astype(dtype)
    assert np.array_equal(widened(noisy).astype(float) / 65535, noisy / np.iinfo(dtype).max)
    deep, rounded = (corrected(_Smoothing(), Picture.of(noisy), deep=d) for d in (True, False))
    assert deep.dtype == np.uint16
    assert rounded.dtype == dtype
    assert np.abs(deep / 65535 - rounded / np.iinfo(dtype).max).max() <= 0.501 / np.iinfo(dtype).max


class _Recording:
    """A network of any size that changes nothing but by where a pixel lies in its tile; it keeps the shapes it saw."""

    image_size, batch_size, size_multiple = 16, 4, 8
    engine, device, origin, sha256, patch = "torch", "cpu", "a test", "0", (2, 2)

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def begin(self, tiles: np.ndarray) -> Callable[[], np.ndarray]:
        self.shapes.append(tiles.shape)
        return lambda: tiles


@pytest.mark.parametrize("passes", [1, 8])
@pytest.mark.parametrize("shape", [(50, 90), (90, 50), (9, 200)])
def test_tiles_of_any_size_lie_as_the_picture_does(shape: tuple[int, int], passes: int) -> None:
    """In every way they are laid down, those on their side among them, all comes back to its place."""
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    network = _Recording()
    result = corrected(cast(Network, network), Picture.of(pixels), passes)
    np.testing.assert_array_equal(result, pixels)
    for n, _, h, w in network.shapes:
        assert max(h, w) <= 4 * 16
        assert h % 8 == w % 8 == 0
        assert n == 1 or n * h * w <= 4 * 16 * 16
    sides = {(h, w) for _, _, h, w in network.shapes}
    assert (len(sides) == 2) == (passes == 8 and len(set(next(iter(sides)))) == 2)
    seen = sum(n * h * w for n, _, h, w in network.shapes)
    fixed = _Recording()
    fixed.size_multiple = None  # type: ignore[assignment]
    corrected(cast(Network, fixed), Picture.of(pixels), passes)
    assert {shape[2:] for shape in fixed.shapes} == {(16, 16)}
    assert seen <= sum(n * h * w for n, _, h, w in fixed.shapes)


@pytest.mark.parametrize("mode", ["white", "grey", "grey stored as colour", "clean"])
def test_others_go_through_it_once(mode: str) -> None:
    clean, noisy = _noisy(width=0, shared=mode.startswith("grey"))
    if mode == "clean":
        noisy = np.rint(clean).astype(np.uint8)
    if mode.startswith("grey"):
        noisy = noisy[..., :1] if mode == "grey" else np.repeat(noisy[..., :1], 3, axis=2)
    strength = None if mode == "clean" else 1.0
    result = Restorer(network := _Smoothing())(Picture.of(noisy), strength)
    once = corrected(one := _Smoothing(), Picture.of(noisy))
    assert network.tiles == one.tiles
    assert np.array_equal(result.picture.pixels, noisy if mode == "clean" else once)


def test_white_noise_goes_through_the_network_for_it_which_is_opened_once() -> None:
    opened: list[Any] = []

    def open_white() -> Any:
        opened.append(_Smoothing())
        return opened[-1]

    other = _Smoothing()
    restorer: Any = Restorer(cast(Network, other), 1, open_white)
    assert restorer(Picture.of(_noisy(width=1.2, shared=False)[1])).network is cast(Any, other)
    assert len(opened) == 0
    other.tiles = 0
    for _ in range(2):
        assert restorer(Picture.of(_noisy(width=0, shared=False)[1])).network is opened[0]
    assert restorer(Picture.of(_noisy(width=1.2, shared=False)[1]), white=True).network is opened[0]
    assert (len(opened), other.tiles) == (1, 0)


@pytest.mark.parametrize("shared", [True, False])
def test_alpha_depth_and_progress(shared: bool) -> None:
    _, noisy = _noisy(width=0 if shared else 0.9, shared=shared)
    deep = np.dstack([noisy.astype(np.uint16) * 257, np.arange(256 * 256, dtype=np.uint16).reshape(256, 256)])
    told: list[float] = []
    result = Restorer(_Smoothing())(Picture.of(deep), 1.0, lambda done, total: told.append(done / total)).picture.pixels
    assert np.array_equal(result[..., 3], deep[..., 3])
    shallow = Restorer(_Smoothing())(Picture.of(noisy), 1.0).picture.pixels
    assert np.abs(result[..., :3] / 257 - shallow).max() <= 1.5
    assert told == sorted(told)
    assert told[-1] == 1
