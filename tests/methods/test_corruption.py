"""Patches, masks, noise and position embeddings, against MAE's published formulas, numpy and statistics."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import toeplitz
from scipy.stats import binomtest, chisquare, kstest
from torch import Tensor

from dsdmae_cli.backbone import gather_tokens, sincos_positions
from dsdmae_cli.corruption import (
    NoiseKind,
    NoiseLaw,
    add_noise,
    denormalize_patches,
    draw_std,
    grain,
    ids_to_mask,
    mask_to_pixels,
    normalize_patches,
    num_masked,
    patchify,
    random_ids,
    unpatchify,
)

KINDS: list[NoiseKind] = ["add", "replace", "mix"]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def level(std: float | tuple[float, float], batch: int, generator: torch.Generator) -> Tensor | float:
    drawn = draw_std(std, (batch, 1), generator)
    return drawn[:, :, None, None] if isinstance(drawn, Tensor) else drawn


def bits(x: Tensor) -> Tensor:
    """Equality of floats takes -0 for 0; equality of their bits does not."""
    return x.view(torch.int32)


small = st.integers(1, 5)


@settings(max_examples=40, deadline=None)
@given(batch=small, channels=small, rows=small, columns=small, ph=small, pw=small)
def test_patchify_is_maes_and_unpatchify_its_inverse(
    batch: int, channels: int, rows: int, columns: int, ph: int, pw: int
) -> None:
    images = torch.randn(batch, channels, rows * ph, columns * pw)
    patches = patchify(images, (ph, pw))
    # facebookresearch/mae, models_mae.py, patchify and unpatchify.
    x = images.reshape(batch, channels, rows, ph, columns, pw)
    x = torch.einsum("nchpwq->nhwpqc", x)
    assert torch.equal(patches, x.reshape(batch, rows * columns, ph * pw * channels))
    assert torch.equal(unpatchify(patches, (ph, pw), (rows, columns)), images)
    foreign = torch.randn_like(patches)
    y = foreign.reshape(batch, rows, columns, ph, pw, channels)
    y = torch.einsum("nhwpqc->nchpwq", y).reshape(images.shape)
    assert torch.equal(unpatchify(foreign, (ph, pw), (rows, columns)), y)


def test_normalize_patches_is_maes_norm_pix_loss() -> None:
    patches = torch.randn(3, 5, 12) * 3 + 7
    patches[0, 0] = 0.25  # a flat patch: eps decides
    x = patches.double().numpy()
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, ddof=1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(normalize_patches(patches).numpy(), expected, rtol=1e-5, atol=1e-5)


def test_denormalize_patches_gives_mean_and_contrast_back() -> None:
    original, foreign = torch.randn(3, 5, 12) * 3 + 7, torch.randn(3, 5, 12)
    torch.testing.assert_close(denormalize_patches(normalize_patches(original), original), original)
    x = original.double().numpy()
    expected = foreign.numpy() * np.sqrt(x.var(-1, ddof=1, keepdims=True) + 1e-6) + x.mean(-1, keepdims=True)
    np.testing.assert_allclose(denormalize_patches(foreign, original).numpy(), expected, rtol=1e-5, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(ratio=st.floats(0, 1), num_tokens=st.integers(1, 400), seed=st.integers(0, 2**32))
def test_masks_hide_the_nearest_number_to_the_ratio(ratio: float, num_tokens: int, seed: int) -> None:
    g = seeded(seed)
    count = num_masked(ratio, num_tokens, g)
    exact = Fraction(ratio * num_tokens)
    assert abs(count - exact) <= Fraction(1, 2) or (count == 1 and exact < 1)
    ids, rest = random_ids(3, num_tokens, count, g)
    assert rest.shape == (3, num_tokens - count)
    mask = ids_to_mask(ids, num_tokens)
    assert mask.sum(1).tolist() == [count] * 3


@pytest.mark.parametrize(
    ("ratio", "num_tokens", "count"),
    [
        (0.9, 256, 230),
        (0.95, 256, 243),
        (0.75, 256, 192),
        (0.75, 196, 147),
        (0.4, 256, 102),
        (1.0, 256, 256),
        (0.0, 256, 1),
        (0.001, 256, 1),
    ],
)
def test_known_mask_sizes(ratio: float, num_tokens: int, count: int) -> None:
    assert num_masked(ratio, num_tokens, seeded(0)) == count


def test_a_range_of_mask_ratios_is_drawn_from_the_seed() -> None:
    low, high = 0.6, 0.95
    counts = [num_masked((low, high), 1000, seeded(seed)) for seed in range(400)]
    assert counts == [num_masked((low, high), 1000, seeded(seed)) for seed in range(400)]
    shares = np.array(counts) / 1000
    assert kstest(shares, "uniform", (low, high - low)).pvalue > 1e-3


def test_random_ids_split_the_tokens() -> None:
    ids, rest = random_ids(50, 64, 40, seeded(0))
    assert torch.equal(torch.cat([ids, rest], dim=1).sort(dim=1).values, torch.arange(64).expand(50, -1))
    assert (ids.diff(dim=1) > 0).all()
    assert (rest.diff(dim=1) > 0).all()
    assert len({tuple(row) for row in ids.tolist()}) == 50, "each image has a mask of its own"
    assert torch.equal(random_ids(50, 64, 40, seeded(0))[0], ids)
    assert not torch.equal(random_ids(50, 64, 40, seeded(1))[0], ids)
    same, fewer = random_ids(50, 64, 40, seeded(0), read=48)
    assert torch.equal(same, ids)
    assert fewer.shape == (50, 8)
    assert all(set(some.tolist()) < set(all_.tolist()) for some, all_ in zip(fewer, rest, strict=True))


def test_random_ids_favour_no_token_and_no_pair() -> None:
    batch, num_tokens, count = 20_000, 8, 3
    mask = ids_to_mask(random_ids(batch, num_tokens, count, seeded(0))[0], num_tokens)
    # All 56 subsets are equally likely: stronger than equal shares of each token.
    subsets = (mask * 2 ** torch.arange(num_tokens)).sum(1).unique(return_counts=True)[1]
    assert len(subsets) == math.comb(num_tokens, count)
    assert chisquare(subsets.numpy()).pvalue > 1e-3


def test_ids_and_masks_and_pixels_agree() -> None:
    patch, grid = (2, 3), (3, 4)
    ids = torch.tensor([[0, 5, 11], [1, 2, 3]])
    mask = ids_to_mask(ids, 12)
    assert [row.nonzero().flatten().tolist() for row in mask] == ids.tolist()
    pixels = mask_to_pixels(mask, patch, grid)
    assert pixels.shape == (2, 1, 6, 12)
    assert torch.equal(patchify(pixels.float(), patch).bool(), mask[:, :, None].expand(-1, -1, 6))
    tokens = torch.randn(2, 12, 4)
    assert torch.equal(gather_tokens(tokens, ids), torch.stack([tokens[0, ids[0]], tokens[1, ids[1]]]))


@pytest.mark.parametrize("std", [0.7, (0.1, 0.9)])
@pytest.mark.parametrize("kind", KINDS)
def test_clean_patches_are_untouched_bit_for_bit(kind: NoiseKind, std: float | tuple[float, float]) -> None:
    g = seeded(0)
    images = torch.rand(6, 3, 16, 16, generator=g) * 2 - 1
    images[:, :, ::5] = -0.0
    images[:, :, 1::5] = 1e-42
    before = images.clone()
    mask = ids_to_mask(random_ids(6, 16, 12, g)[0], 16)
    noisy = mask_to_pixels(mask, (4, 4), (4, 4))
    out = add_noise(images, noisy, level(std, 6, g), kind, g)
    clean = ~noisy.expand_as(images)
    assert torch.equal(bits(out)[clean], bits(images)[clean])
    assert (out != images)[~clean].float().mean() > 0.999
    assert torch.equal(bits(images), bits(before))


def noise_sample(kind: NoiseKind, std: float, images: Tensor) -> Tensor:
    everywhere = torch.ones(len(images), 1, *images.shape[2:], dtype=torch.bool)
    return add_noise(images, everywhere, std, kind, seeded(5))


@pytest.mark.parametrize("std", [0.25, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_noise_is_gaussian_of_the_given_level(kind: NoiseKind, std: float) -> None:
    images = torch.rand(8, 3, 32, 32, generator=seeded(1)) * 2 - 1
    out = noise_sample(kind, std, images)
    signal = {"add": 1.0, "replace": 0.0, "mix": math.sqrt(1 - std**2)}[kind]
    noise = (out - signal * images).flatten()
    assert kstest(noise.numpy(), "norm", (0, std)).pvalue > 1e-3
    # Pixels, channels and images are independent of the image and of each other.
    assert abs(torch.corrcoef(torch.stack([noise, images.flatten()]))[0, 1]) < 0.02
    per_map = noise.reshape(24, -1)
    assert (torch.corrcoef(per_map) - torch.eye(24)).abs().max() < 0.15


@pytest.mark.parametrize(("patch", "channels", "correlation"), [((4, 6), 3, 0.9), ((2, 2), 1, 0.5), ((3, 3), 5, 0.0)])
def test_noise_of_a_patch_is_a_markov_process(patch: tuple[int, int], channels: int, correlation: float) -> None:
    along_rows, along_columns = (toeplitz(correlation ** np.arange(side)) for side in patch)
    by_channel = np.full((channels, channels), correlation) + (1 - correlation) * np.eye(channels)
    how = grain(patch, channels, correlation)
    wanted = np.kron(along_rows, np.kron(along_columns, by_channel))
    mixing = torch.kron(how.rows, how.columns).double().numpy()
    np.testing.assert_allclose(mixing @ mixing.T, wanted, atol=1e-6)
    images = torch.zeros(4000, channels, 2 * patch[0], patch[1])
    everywhere = torch.ones(4000, 1, *images.shape[2:], dtype=torch.bool)
    drawn = add_noise(images, everywhere, 1.0, "add", seeded(3), how=how)
    values = patchify(drawn, patch)
    measured = np.corrcoef(values.flatten(0, 1).T.numpy())
    np.testing.assert_allclose(measured, wanted, atol=5 / math.sqrt(8000))
    assert values.std().item() == pytest.approx(1, abs=0.02)
    # Two patches of an image know nothing of each other.
    between = (values[:, 0, :, None] * values[:, 1, None, :]).mean(dim=0)
    assert between.abs().max() < 6 / math.sqrt(4000)
    assert kstest(values[:, 0, 0].numpy(), "norm").pvalue > 1e-3


def test_mix_keeps_the_variance_of_a_unit_signal() -> None:
    images = torch.randn(16, 3, 32, 32, generator=seeded(1))
    for std in (0.3, 0.8, 1.0):
        assert noise_sample("mix", std, images).var().item() == pytest.approx(1, abs=0.03)


def test_zero_noise_is_no_noise() -> None:
    images = torch.rand(2, 3, 8, 8)
    for kind in ("add", "mix"):
        assert torch.equal(noise_sample(kind, 0.0, images), images)


@pytest.mark.parametrize("count", [1, 16])
@pytest.mark.parametrize("law", ["uniform", "loguniform", "lognormal"])
def test_levels_follow_their_law(law: NoiseLaw, count: int) -> None:
    low, high = 0.2, 1.5
    many = draw_std((low, high), (5000, count), seeded(0), law)
    assert isinstance(many, Tensor)
    assert many.shape == (5000, count)
    value, distribution = many.flatten().double().numpy(), ("uniform", (low, high - low))
    if law != "uniform":
        value, low, high = np.log(value), math.log(low), math.log(high)
        distribution = ("uniform", (low, high - low))
    if law == "lognormal":  # the pair stands where the normal distribution has its 16th and 84th hundredth
        distribution = ("norm", ((low + high) / 2, (high - low) / 2))
    assert kstest(value[:20_000], *distribution).pvalue > 1e-3
    if count > 1:  # patches of an image are independent of each other
        assert (torch.corrcoef(many.T) - torch.eye(count)).abs().max() < 0.06


def test_edms_law_in_our_units() -> None:
    """ln σ ~ N(-1.2, 1.2²) where data have the standard deviation 0.5, about that of photographs in [-1, 1]."""
    drawn = draw_std((math.exp(-2.4), 1.0), (200_000, 1), seeded(0), "lognormal")
    assert isinstance(drawn, Tensor)
    assert drawn.log().mean().item() == pytest.approx(-1.2, abs=0.01)
    assert drawn.log().std().item() == pytest.approx(1.2, abs=0.01)


def test_every_image_or_pixel_gets_its_level() -> None:
    assert draw_std(0.5, (4, 1), seeded(0)) == 0.5
    std = draw_std((0.2, 1.5), (32, 1), seeded(2))
    assert isinstance(std, Tensor)
    everywhere = torch.ones(32, 1, 48, 48, dtype=torch.bool)
    out = add_noise(torch.zeros(32, 3, 48, 48), everywhere, std[:, :, None, None], "add", seeded(3))
    torch.testing.assert_close(out.std(dim=(1, 2, 3)), std.flatten(), rtol=0.04, atol=0)
    std = draw_std((0.2, 1.5), (32, 4), seeded(2))
    assert isinstance(std, Tensor)
    by_pixel = mask_to_pixels(std, (24, 24), (2, 2))
    out = add_noise(torch.zeros(32, 3, 48, 48), everywhere, by_pixel, "add", seeded(3))
    measured = patchify(out, (24, 24)).std(dim=2)
    torch.testing.assert_close(measured, std, rtol=0.06, atol=0)  # 1,728 values: 4 times 1/sqrt(2 * 1728)


def test_noise_comes_from_the_generator_alone() -> None:
    images = torch.rand(4, 3, 8, 8)
    noisy = torch.ones(4, 1, 8, 8, dtype=torch.bool)
    state = torch.get_rng_state()
    first = add_noise(images, noisy, 1.0, "add", seeded(0))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(add_noise(images, noisy, 1.0, "add", seeded(0)), first)
    assert not torch.equal(add_noise(images, noisy, 1.0, "add", seeded(1)), first)
    g = seeded(0)
    add_noise(images, noisy, 1.0, "add", g)
    assert not torch.equal(add_noise(images, noisy, 1.0, "add", g), first)


@pytest.mark.parametrize("kind", KINDS)
def test_noisy_pixels_are_noisy_in_all_channels_and_half_of_them_up(kind: NoiseKind) -> None:
    images = torch.zeros(8, 3, 16, 16)
    mask = ids_to_mask(random_ids(8, 16, 8, seeded(0))[0], 16)
    noisy = mask_to_pixels(mask, (4, 4), (4, 4))
    out = add_noise(images, noisy, 1.0, kind, seeded(1))
    assert torch.equal(out != 0, noisy.expand_as(out))
    assert binomtest(int((out > 0).sum()), int((out != 0).sum())).pvalue > 1e-3


@pytest.mark.parametrize(("grid", "width"), [((2, 2), 4), ((16, 16), 192), ((14, 14), 768), ((3, 5), 24)])
def test_sincos_positions_are_maes(grid: tuple[int, int], width: int) -> None:
    # facebookresearch/mae, util/pos_embed.py, feature by feature. Its variable for the first half is called
    # emb_h, but np.meshgrid(grid_w, grid_h)[0] varies along the row: it encodes the column.
    quarter = width // 4
    expected = np.empty((grid[0] * grid[1], width))
    for row in range(grid[0]):
        for column in range(grid[1]):
            for half, position in enumerate((column, row)):
                for i in range(quarter):
                    angle = position / 10000 ** (i / quarter)
                    features = expected[row * grid[1] + column, half * 2 * quarter :]
                    features[i], features[quarter + i] = math.sin(angle), math.cos(angle)
    out = sincos_positions(grid, width)
    assert out.shape == (1, grid[0] * grid[1], width)
    assert out.dtype == torch.float32
    np.testing.assert_allclose(out[0].numpy(), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("width", [2, 6, 190])
def test_sincos_positions_need_four_parts(width: int) -> None:
    with pytest.raises(ValueError, match=f"multiple of 4, got {width}"):
        sincos_positions((2, 2), width)
