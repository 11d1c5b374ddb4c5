"""Each witness on pictures made for it, and the sums over bands against the same sums over the whole picture."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter
from skimage import data

from dsdmae_cli.pictures import traces as T
from dsdmae_cli.pictures.noise import color_noise_level
from dsdmae_cli.pictures.traces import COMPRESSED, STRONG, WHITE, Taken, bright_noise, is_white_noise, judge

Rgb = np.ndarray


def _clean() -> Rgb:
    """A photograph shrunk by two, so that its own noise is gone."""
    pixels = data.astronaut().astype(float)
    return np.rint(pixels.reshape(256, 2, 256, 2, 3).mean(axis=(1, 3))).astype(np.uint8)


def _plus(pixels: Rgb, noise: Rgb) -> Rgb:
    return np.rint(pixels + noise).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("sigma", [2, 5, 15, 40])
def test_the_level_of_white_noise_is_read_off_the_colours(sigma: float) -> None:
    noise = np.random.default_rng(0).normal(0, sigma, (256, 256, 3))
    flat = np.full((256, 256, 3), (90, 140, 110), np.uint8)
    assert color_noise_level(_plus(flat, noise)) == pytest.approx(sigma, rel=0.05)
    assert color_noise_level(_plus(_clean(), noise)) == pytest.approx(sigma, abs=max(0.4, 0.1 * sigma))
    assert color_noise_level(_clean()) < 1


def test_texture_that_all_colours_share_is_no_white_noise() -> None:
    texture = np.random.default_rng(0).normal(0, 12, (128, 128, 1))
    assert color_noise_level(_plus(np.full((128, 128, 3), 120), texture)) < 0.5


@pytest.mark.parametrize("depth", [1, 257])
@pytest.mark.parametrize(("sigma", "channels"), [(5, 3), (15, 3), (40, 3), (15, 1), (40, 1)])
def test_white_noise_halves_with_the_picture(sigma: float, channels: int, depth: int) -> None:
    """In grey there is texture beside it, so that it is seen from a higher level on."""
    clean = _clean()[..., :channels]
    noise = np.random.default_rng(0).normal(0, sigma, clean.shape)
    given = _plus(clean, noise).astype(np.uint8 if depth == 1 else np.uint16) * depth
    assert is_white_noise(given)
    assert is_white_noise(np.ascontiguousarray(given[:, :200].transpose(1, 0, 2)))
    if channels == 1:
        assert is_white_noise(np.repeat(given, 3, axis=2))  # black and white, stored as colour


@pytest.mark.parametrize("sigma", [5, 15, 40])
def test_noise_that_neighbours_or_colours_share_is_not_white(sigma: float) -> None:
    clean, draw = _clean(), np.random.default_rng(0)
    smoothed = gaussian_filter(draw.normal(0, 1, clean.shape), (0.8, 0.8, 0))
    enlarged = np.kron(draw.normal(0, sigma, (128, 128, 3)), np.ones((2, 2, 1)))
    for noise in (sigma * smoothed / smoothed.std(), enlarged, draw.normal(0, sigma, clean.shape[:2])[..., None]):
        assert not is_white_noise(_plus(clean, noise))
    assert not is_white_noise(clean)
    assert not is_white_noise(np.zeros((1, 1, 3), np.uint8))


@pytest.mark.parametrize("quality", [50, 90])
def test_noise_under_jpeg_is_not_white(quality: int) -> None:
    file = io.BytesIO()
    noise = np.random.default_rng(0).normal(0, 15, (256, 256, 3))
    Image.fromarray(_plus(_clean(), noise)).save(file, "jpeg", quality=quality)
    assert not is_white_noise(np.asarray(Image.open(file)))


def test_fine_noise_that_colours_do_not_have_is_brightness_s() -> None:
    clean, draw = _clean(), np.random.default_rng(0)
    for sigma, sure in ((1, 0), (15, 1)):
        given = _plus(clean, draw.normal(0, sigma, (256, 256, 1)))
        assert bright_noise(given) == sure
        assert judge(given, given).strength >= sure  # a network that takes nothing: the picture alone speaks
    file = io.BytesIO()
    Image.fromarray(_plus(clean, draw.normal(0, 15, clean.shape))).save(file, "jpeg", quality=90)
    assert bright_noise(np.asarray(Image.open(file))) > 0.5  # of colour noise JPEG leaves brightness's
    assert bright_noise(_plus(clean, draw.normal(0, 15, clean.shape))) == 0
    assert bright_noise(clean) == bright_noise(np.repeat(clean[..., :1], 3, axis=2)) == 0


@pytest.mark.parametrize(("sigma", "share"), [(1, 0.1), (3, 0.5), (9, 0.9)])
def test_white_noise_is_believed_by_its_level(sigma: float, share: float) -> None:
    noise = np.random.default_rng(0).normal(0, sigma, (256, 256, 3))
    given = _plus(np.full((256, 256, 3), 120), noise)
    verdict = judge(given, given)  # a network that takes nothing: the level alone speaks
    assert verdict.strength == pytest.approx(share, abs=0.03)
    assert verdict.kind == WHITE
    assert verdict.removed == 0


def test_what_has_a_grid_was_compressed() -> None:
    steps = np.kron(np.random.default_rng(0).normal(0, 3, (32, 32)), np.ones((8, 8)))
    given = _plus(_clean(), steps[..., None])
    assert judge(given, _clean()).kind == COMPRESSED
    # The same steps of seven pixels are no blocks of JPEG's.
    sevens = np.kron(np.random.default_rng(0).normal(0, 3, (37, 37)), np.ones((7, 7)))[:256, :256]
    taken = Taken()
    taken.add(_plus(_clean(), sevens[..., None]), _clean(), last=True)
    assert taken.grid < 1.2


def test_what_is_smooth_is_a_cameras_and_what_is_rough_is_not() -> None:
    rough = np.random.default_rng(0).normal(0, 3, (258, 258))
    smooth = sum(rough[i : i + 256, j : j + 256] for i in range(3) for j in range(3)) / 3
    verdict = judge(_plus(_clean(), smooth[..., None]), _clean())
    assert (verdict.kind, verdict.strength) == (COMPRESSED, 1)
    assert judge(_plus(_clean(), rough[:256, :256, None]), _clean()).kind != COMPRESSED


def test_more_than_texture_where_it_is_calm_is_strong_noise() -> None:
    """But called white where it is."""
    flat = np.zeros((256, 256, 3), np.uint8) + np.uint8([120, 121, 122])
    draw = np.random.default_rng(0)
    for colours, kind in ((3, WHITE), (1, STRONG)):
        noise = draw.normal(0, 12, (256, 256, colours))
        verdict = judge(_plus(flat, noise), flat)
        assert (verdict.kind, verdict.strength) == (kind, 1)
        assert verdict.removed == pytest.approx(12, rel=0.05)


def test_a_clean_picture_of_which_texture_is_taken_stays() -> None:
    clean = _clean()
    around = sum(np.roll(clean.astype(float), step, axis) for step in (1, -1) for axis in (0, 1)) / 4
    softened = np.rint(clean + 0.3 * (around - clean)).astype(np.uint8)
    assert judge(clean, softened).strength < 0.1


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (5, 7), (16, 16)])
@pytest.mark.parametrize("channels", [1, 3])
def test_small_pictures(shape: tuple[int, int], channels: int) -> None:
    given = np.random.default_rng(0).integers(0, 256, (*shape, channels), np.uint8)
    verdict = judge(given, given // 2)
    assert 0 <= verdict.strength <= 1
    assert np.isfinite(verdict.removed)


def test_nothing_taken_is_nothing_found() -> None:
    flat = np.full((64, 64, 3), 80, np.uint8)
    assert judge(flat, flat) == T.Verdict(0.0, "", 0.0)


def test_bands_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    given = _plus(_clean(), np.random.default_rng(0).normal(0, 6, (256, 256, 3)))
    whole = judge(given, _clean())
    one = Taken()
    one.add(given, _clean(), last=True)
    parts = Taken()
    for top in range(0, 256, 32):
        parts.add(given[top : top + 33], _clean()[top : top + 33], last=top == 224)
    for name in ("removed", "calm", "grid", "alike"):
        assert getattr(parts, name) == pytest.approx(getattr(one, name), rel=1e-5), name
    monkeypatch.setattr(T, "rows_of", lambda width: 32)
    assert judge(given, _clean()).strength == pytest.approx(whole.strength)


def test_sixteen_bits_are_judged_as_eight() -> None:
    given = _plus(_clean(), np.random.default_rng(0).normal(0, 6, (256, 256, 3)))
    eight, sixteen = judge(given, _clean()), judge(given.astype(np.uint16) * 257, _clean().astype(np.uint16) * 257)
    assert sixteen.strength == pytest.approx(eight.strength, abs=1e-6)
    assert sixteen.removed == pytest.approx(eight.removed, rel=1e-6)
