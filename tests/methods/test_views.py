"""views.py against torchvision's functional transforms, image by image with the same drawn numbers."""

from __future__ import annotations

import colorsys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import assert_never_waits
from PIL import Image
from scipy.stats import chisquare, kstest
from torch import Tensor
from torchvision.transforms import ColorJitter
from torchvision.transforms import functional as tv

from dsdmae_cli.views import (
    Jitter,
    Strength,
    adjust_hue,
    color_jitter,
    draw_jitter,
    gaussian_blur,
    solarize,
    strong_view,
)

LARGEST = (0.4, 0.4, 0.2, 0.1)
NOTHING = Strength(jitter_probability=0, grey_probability=0)
EVERYTHING = Strength(blur_probability=0.5, solarize_probability=0.2)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def images(cifar_folder: Path) -> Tensor:
    """48 CIFAR-10 photographs in [0, 1], and a grey, a black, a white and a saturated image."""
    paths = sorted((cifar_folder / "train").rglob("*.jpg"))[::4][:48]
    pixels = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])
    real = torch.from_numpy(pixels).permute(0, 3, 1, 2).double() / 255
    odd = torch.rand(4, 3, 32, 32, generator=seeded(0), dtype=torch.float64)
    odd[0], odd[1], odd[2] = odd[0, :1], 0, 1
    odd[3] = odd[3].round()
    return torch.cat([real, odd])


def assert_equal(ours: Tensor, theirs: list[Tensor], tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(ours, torch.stack(theirs), rtol=0, atol=tolerance)


def jittered(image: Tensor, jitter: Jitter, i: int) -> Tensor:
    """By torchvision, what is drawn for the image of that number, in the order that is drawn for it."""
    changes = [tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue]
    draws = [jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue]
    for change in jitter.order[i].tolist():
        image = changes[change](image, float(draws[change][i]))
    return image


def test_color_jitter_is_torchvisions_in_every_order(images: Tensor) -> None:
    jitter = draw_jitter(len(images), (0.8, 0.8, 0.8, 0.5), 1.0, seeded(1))
    assert len({tuple(order) for order in jitter.order.tolist()}) > 18  # of 24
    expected = [jittered(image, jitter, i) for i, image in enumerate(images)]
    assert_equal(color_jitter(images.float(), jitter).double(), expected, 2e-5)


@pytest.mark.parametrize("turns", [-0.5, -0.1, -1e-3, 0.1, 1 / 3, 0.5])
def test_hue_is_torchvisions(images: Tensor, turns: float) -> None:
    ours = adjust_hue(images, torch.full((len(images),), turns, dtype=torch.float64))
    assert_equal(ours, [tv.adjust_hue(image, turns) for image in images], 2e-5)  # which goes through float32
    for image, turned in zip(images[-8:], ours[-8:], strict=True):
        expected = []
        for pixel in image.flatten(1).T.tolist():
            hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
            expected.append(colorsys.hsv_to_rgb((hue + turns) % 1, saturation, value))
        torch.testing.assert_close(turned.flatten(1).T, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("largest", [2.0, 0.7])
def test_blur_is_torchvisions(images: Tensor, largest: float) -> None:
    std = torch.rand(len(images), generator=seeded(0), dtype=torch.float64) * (largest - 0.1) + 0.1
    taps = 2 * round(3 * largest) + 1
    expected = [tv.gaussian_blur(x, [taps, taps], [s, s]) for x, s in zip(images, std.tolist(), strict=True)]
    assert_equal(gaussian_blur(images, std, largest), expected)
    assert_equal(gaussian_blur(images.float(), std.float(), largest).double(), expected, 2e-6)


def test_blur_of_other_shapes_and_of_images_smaller_than_its_kernel() -> None:
    std = torch.tensor([0.3, 1.9], dtype=torch.float64)
    for height, width in ((20, 33), (33, 20)):
        wide = torch.rand(2, 3, height, width, generator=seeded(0), dtype=torch.float64)
        assert_equal(
            gaussian_blur(wide, std, 2.0),
            [tv.gaussian_blur(x, [13, 13], [s, s]) for x, s in zip(wide, std.tolist(), strict=True)],
        )
    small = torch.rand(2, 3, 4, 4, generator=seeded(0), dtype=torch.float64)
    expected = [tv.gaussian_blur(x, [7, 7], [s, s]) for x, s in zip(small, std.tolist(), strict=True)]
    assert_equal(gaussian_blur(small, std, 2.0), expected)


def test_blur_is_near_pils_as_the_public_code_has_it(images: Tensor) -> None:
    """PIL, which MoCo v3 uses, draws near a Gaussian with three boxes, in whole grey levels."""
    from PIL import ImageFilter

    for std in (0.5, 1.0, 2.0):
        ours = gaussian_blur(images, torch.full((len(images),), std, dtype=torch.float64), 2.0)
        for image, blurred in zip(images[:8], ours[:8], strict=True):
            pil = Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy())
            theirs = torch.from_numpy(np.asarray(pil.filter(ImageFilter.GaussianBlur(std))).copy()) / 255
            inner = (blurred.permute(1, 2, 0) - theirs)[6:-6, 6:-6]  # at edges PIL repeats, torchvision reflects
            assert inner.abs().mean() < 0.01


def test_solarize_is_torchvisions(images: Tensor) -> None:
    assert_equal(solarize(images), [tv.solarize(image, 0.5) for image in images])


# -- what is drawn


def test_jitter_is_drawn_as_torchvision_draws_it() -> None:
    jitter = draw_jitter(20_000, LARGEST, 1.0, seeded(0))
    for name, largest in zip(("brightness", "contrast", "saturation"), LARGEST[:3], strict=True):
        factor = getattr(jitter, name).double().numpy()
        assert kstest(factor, "uniform", (1 - largest, 2 * largest)).pvalue > 1e-3, name
    assert kstest(jitter.hue.double().numpy(), "uniform", (-0.1, 0.2)).pvalue > 1e-3
    orders, counts = torch.unique(jitter.order, dim=0, return_counts=True)
    assert len(orders) == 24
    assert chisquare(counts.numpy()).pvalue > 1e-3
    both = torch.stack([jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue])
    assert (both.corrcoef() - torch.eye(4)).abs().max() < 0.03
    # The ranges are those of torchvision's own constructor, cut at zero too.
    for given in ((0.4, 0.4, 0.2, 0.1), (3.0, 0.0, 1.0, 0.5)):
        theirs, drawn = ColorJitter(*given), draw_jitter(4000, given, 1.0, seeded(1))
        for name in ("brightness", "contrast", "saturation", "hue"):
            values = getattr(drawn, name)
            low, high = getattr(theirs, name) or ((0, 0) if name == "hue" else (1, 1))
            assert low <= values.min() <= values.max() <= high, name


def test_probabilities_are_per_image(images: Tensor) -> None:
    one = (images[:1, :, 8:20, 8:20].float() * 2 - 1).expand(2000, -1, -1, -1)

    def share(strength: Strength) -> float:
        return (strong_view(one, strength, seeded(0)) - one).abs().flatten(1).amax(1).gt(1e-6).double().mean().item()

    assert share(NOTHING) == 0
    for name in ("jitter", "grey", "blur", "solarize"):
        for probability in (0.2, 0.8):
            found = share(replace(NOTHING, **{f"{name}_probability": probability}))
            assert found == pytest.approx(probability, abs=0.04), name


def test_a_strong_view_is_its_parts_in_order(images: Tensor) -> None:
    """The same draws, applied by torchvision to one image after the other."""
    given = images.float() * 2 - 1
    b = len(given)
    strong = Strength(blur_probability=0.5, solarize_probability=0.5, grey_probability=0.5)
    g = seeded(5)
    jitter = draw_jitter(b, strong.jitter, strong.jitter_probability, g)
    grey = torch.rand(b, generator=g) < 0.5
    std = 0.1 + 1.9 * torch.rand(b, generator=g)
    blur, solar = torch.rand(b, generator=g) < 0.5, torch.rand(b, generator=g) < 0.5
    expected = []
    for i, image in enumerate(images):
        image = jittered(image, jitter, i)
        if grey[i]:
            image = tv.rgb_to_grayscale(image, 3)
        if blur[i]:
            image = tv.gaussian_blur(image, [13, 13], [float(std[i])] * 2)
        if solar[i]:
            # Within rounding of the middle grey both answers are right.
            near = (image - 0.5).abs() < 1e-5
            image = torch.where(near, torch.nan, tv.solarize(image, 0.5))
        expected.append(image * 2 - 1)
    theirs, ours = torch.stack(expected), strong_view(given, strong, seeded(5)).double()
    known = ~theirs.isnan()
    assert known.double().mean() > 0.99
    torch.testing.assert_close(ours[known], theirs[known], rtol=0, atol=3e-5)


def test_views_stay_in_range_and_leave_what_they_were_given(images: Tensor) -> None:
    given = images.float() * 2 - 1
    before = given.clone()
    for seed in range(5):
        assert strong_view(given, EVERYTHING, seeded(seed)).abs().max() <= 1 + 1e-6
    assert torch.equal(given, before)


def test_the_generator_is_the_only_source_of_randomness(images: Tensor) -> None:
    given = images.float() * 2 - 1
    state = torch.get_rng_state()
    first = strong_view(given, EVERYTHING, seeded(3))
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    assert torch.equal(strong_view(given, EVERYTHING, seeded(3)), first)
    assert not torch.equal(strong_view(given, EVERYTHING, seeded(4)), first)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(strong_view(given, EVERYTHING, seeded(3)), first)


def test_no_operator_waits_for_the_device_and_none_runs_per_image() -> None:
    def work(batch: int) -> Tensor:
        return strong_view(torch.rand(batch, 3, 16, 16, generator=seeded(0)), EVERYTHING, seeded(0))

    assert_never_waits(work)
