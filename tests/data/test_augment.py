"""augment.py against torchvision: its resampling, and the distribution of its RandomResizedCrop."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import assert_never_waits
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, ks_2samp
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as tv

from dsdmae_cli.data.augment import (
    Augmentation,
    Boxes,
    Interpolation,
    augment,
    crop_boxes,
    prepare,
)

PLAIN = Augmentation(
    image_size=16, crop_scale=None, crop_ratio=(3 / 4, 4 / 3), interpolation="bicubic", flip=False, shift=0
)
FULL = replace(PLAIN, crop_scale=(0.2, 1.0), flip=True, shift=2)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_images(batch: int, height: int, width: int, channels: int = 3, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (batch, channels, height, width), generator=seeded(seed), dtype=torch.uint8)


def unit(images: Tensor) -> Tensor:
    return images.float() / 127.5 - 1


def torchvision_crops(images: Tensor, boxes: Boxes, size: int, interpolation: Interpolation) -> Tensor:
    mode = tv.InterpolationMode(interpolation)
    crops = [
        tv.resized_crop(image, *box, [size, size], interpolation=mode, antialias=True)
        for image, box in zip(images, torch.cat(boxes).T.tolist(), strict=True)
    ]
    return torch.stack(crops)


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 50),
    width=st.integers(1, 50),
    size=st.integers(1, 70),
    smallest=st.floats(0.001, 1),
    interpolation=st.sampled_from(["bicubic", "bilinear"]),
    seed=st.integers(0, 2**32),
)
def test_crops_equal_torchvisions(
    height: int, width: int, size: int, smallest: float, interpolation: Interpolation, seed: int
) -> None:
    images = random_images(6, height, width, channels=2, seed=seed)
    plan = replace(
        PLAIN, image_size=size, crop_scale=(smallest, 1.0), crop_ratio=(0.3, 3.0), interpolation=interpolation
    )
    assert_torchvisions(images, plan, seed)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_crops_of_large_images(interpolation: Interpolation) -> None:
    plan = replace(PLAIN, image_size=96, crop_scale=(0.08, 1.0), interpolation=interpolation)
    assert_torchvisions(random_images(4, 375, 500), plan, seed=1)


def assert_torchvisions(images: Tensor, plan: Augmentation, seed: int) -> None:
    """augment gives torchvision's antialiased crops of the boxes that it drew first, cut to the valid range."""
    assert plan.crop_scale is not None
    b, _, height, width = images.shape
    boxes = crop_boxes(b, height, width, plan.crop_scale, plan.crop_ratio, seeded(seed))
    expected = torchvision_crops(images.float(), boxes, plan.image_size, plan.interpolation).clamp(0, 255) / 127.5 - 1
    torch.testing.assert_close(augment(images, plan, seeded(seed)), expected, rtol=0, atol=1e-5)


def test_autocast_costs_no_precision() -> None:
    images = random_images(8, 24, 24)
    expected = augment(images, FULL, seeded(0))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(augment(images, FULL, seeded(0)), expected)


# From boxes that nearly always fit at once to images of which most end in the fallback.
CROPS = [
    (32, 32, (0.2, 1.0), (3 / 4, 4 / 3)),
    (32, 32, (0.85, 1.0), (3 / 4, 4 / 3)),
    (24, 60, (0.15, 1.0), (0.4, 1.0)),
    (96, 40, (0.3, 1.0), (3 / 4, 4 / 3)),
]


@pytest.mark.parametrize(("height", "width", "scale", "ratio"), CROPS)
def test_crop_boxes_are_distributed_as_torchvisions(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> None:
    ours = torch.cat(crop_boxes(20_000, height, width, scale, ratio, seeded(0))).double()
    image = torch.empty(1, height, width)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        drawn = [RandomResizedCrop.get_params(image, list(scale), list(ratio)) for _ in range(4_000)]
    theirs = torch.tensor(drawn, dtype=torch.float64).T

    def views(boxes: Tensor) -> dict[str, Tensor]:
        top, left, h, w = boxes
        names = {"top": top, "left": left, "height": h, "width": w}
        joint = {"area": h * w, "ratio": w / h, "right": width - left - w, "bottom": height - top - h}
        return names | joint | {"diagonal": top - left}

    p_values = {name: ks_2samp(mine.numpy(), views(theirs)[name].numpy()).pvalue for name, mine in views(ours).items()}
    assert min(p_values.values()) > 1e-3, p_values


@pytest.mark.parametrize(("height", "width"), [(10, 200), (200, 10), (31, 31), (7, 12)])
@pytest.mark.parametrize("ratio", [(0.9, 1.0), (3.0, 3.5), (0.2, 0.25)])
def test_crop_boxes_fall_back_as_torchvision_does(height: int, width: int, ratio: tuple[float, float]) -> None:
    scale = (4.0, 4.0)  # four times the image never fits
    boxes = torch.cat(crop_boxes(3, height, width, scale, ratio, seeded(0))).T.tolist()
    expected = RandomResizedCrop.get_params(torch.empty(1, height, width), list(scale), list(ratio))
    assert boxes == [list(expected)] * 3


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    scale=st.tuples(st.floats(1e-4, 1), st.floats(1e-4, 1)).map(sorted).map(tuple),
    ratio=st.tuples(st.floats(0.05, 20), st.floats(0.05, 20)).map(sorted).map(tuple),
    seed=st.integers(0, 2**32),
)
def test_crop_boxes_lie_in_the_image(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], seed: int
) -> None:
    top, left, h, w = torch.cat(crop_boxes(64, height, width, scale, ratio, seeded(seed)))
    assert (h >= 1).all()
    assert (w >= 1).all()
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + h <= height).all()
    assert (left + w <= width).all()


def test_nothing_asked_for_changes_no_pixel() -> None:
    every_byte = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).repeat(2, 3, 1, 1)
    before = every_byte.clone()
    out = augment(every_byte, PLAIN, seeded(0))
    assert torch.equal(out, unit(every_byte))
    assert (out.min(), out.max()) == (-1, 1)
    assert torch.equal(every_byte, before)


def moved(images: Tensor, shift: int) -> dict[tuple[bool, int, int], Tensor]:
    """Every way to mirror and translate a batch, by (mirrored, down, right), with torch's own padding."""
    ways = {}
    for mirrored in (False, True):
        x = images.flip(3) if mirrored else images
        padded = F.pad(x, (shift,) * 4, mode="replicate")
        for down in range(2 * shift + 1):
            for right in range(2 * shift + 1):
                h, w = images.shape[2:]
                ways[mirrored, down, right] = padded[:, :, down : down + h, right : right + w]
    return ways


@pytest.mark.parametrize(("flip", "shift"), [(True, 0), (False, 1), (True, 2)])
def test_flip_and_shift_move_pixels_and_do_no_more(flip: bool, shift: int) -> None:
    batch = 2000
    images = random_images(batch, 12, 12, channels=2)
    out = augment(images, replace(PLAIN, image_size=12, flip=flip, shift=shift), seeded(0))
    ways = {way: (out == x).flatten(1).all(1) for way, x in moved(unit(images), shift).items()}
    assert torch.equal(sum(ways.values()), torch.ones(batch)), "each image is moved in exactly one way"
    counts = {way: int(hits.sum()) for way, hits in ways.items() if hits.any()}
    expected = {way for way in ways if flip or not way[0]}
    assert set(counts) == expected, "every way occurs, each image drawing its own"
    assert chisquare(list(counts.values())).pvalue > 1e-3, counts


def test_a_shift_beyond_the_image_shows_its_edge() -> None:
    images = random_images(50, 4, 4)
    out = augment(images, replace(PLAIN, image_size=4, shift=40), seeded(0))
    corners = [(out == unit(images)[:, :, y, x][:, :, None, None]).flatten(1).all(1) for y in (0, 3) for x in (0, 3)]
    assert torch.stack(corners).any(0).float().mean() > 0.7


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [12, 16, 24])
def test_flip_and_shift_follow_the_crop(size: int, interpolation: Interpolation) -> None:
    # The only box with the whole area and ratio 1 is the whole image, so that the crop itself is known.
    plan = Augmentation(size, (1.0, 1.0), (1.0, 1.0), interpolation, flip=True, shift=1)
    images = random_images(40, 16, 16)
    resized = tv.resize(images.float(), [size, size], tv.InterpolationMode(interpolation), antialias=True)
    out = augment(images, plan, seeded(0))
    ways = moved(resized.clamp(0, 255) / 127.5 - 1, 1)
    matches = [((out - x).abs() < 1e-5).flatten(1).all(1) for x in ways.values()]
    assert torch.equal(sum(matches), torch.ones(40))


def test_each_image_gets_a_crop_of_its_own() -> None:
    same = random_images(1, 32, 32).expand(64, -1, -1, -1)
    out = augment(same, replace(PLAIN, crop_scale=(0.2, 1.0)), seeded(0))
    assert len({image.numpy().tobytes() for image in out}) >= 63


@pytest.mark.parametrize("size", [20, 48])
def test_pixels_stay_in_range_where_bicubic_overshoots(size: int) -> None:
    stripes = (torch.arange(32) // 4 % 2 * 255).to(torch.uint8).expand(4, 3, 32, 32)
    assert tv.resize(stripes.float(), [size, size], tv.InterpolationMode.BICUBIC, antialias=True).max() > 256
    plan = Augmentation(size, (0.2, 1.0), (3 / 4, 4 / 3), "bicubic", flip=False, shift=0)
    for out in (augment(stripes, plan, seeded(0)), prepare(stripes, size, "bicubic")):
        assert out.abs().max() == 1


def test_the_generator_is_the_only_source_of_randomness() -> None:
    images = random_images(16, 24, 24)
    state = torch.get_rng_state()
    first = augment(images, FULL, seeded(3))
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    assert torch.equal(augment(images, FULL, seeded(3)), first)
    assert not torch.equal(augment(images, FULL, seeded(4)), first)


def test_strides_do_not_matter() -> None:
    images = random_images(8, 24, 24)
    channels_last = images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    for plan in (FULL, replace(FULL, crop_scale=None, image_size=24)):
        out = augment(channels_last, plan, seeded(0))
        assert torch.equal(out, augment(images, plan, seeded(0)))
        assert out.is_contiguous()


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [8, 16, 40])
def test_prepare_is_torchvisions_resize(size: int, interpolation: Interpolation) -> None:
    images = random_images(5, 16, 16)
    before = images.clone()
    resized = tv.resize(images.float(), [size, size], tv.InterpolationMode(interpolation), antialias=True)
    out = prepare(images, size, interpolation)
    torch.testing.assert_close(out, resized.clamp(0, 255) / 127.5 - 1, rtol=0, atol=1e-5)
    if size == 16:
        assert torch.equal(out, unit(images))
    assert torch.equal(images, before)
    # Without a crop, training differs from evaluation in nothing but flip and shift.
    plan = replace(PLAIN, image_size=size, interpolation=interpolation)
    assert torch.equal(augment(images, plan, seeded(0)), out)


@pytest.mark.parametrize("plan", [FULL, replace(FULL, crop_scale=None), replace(FULL, image_size=24)])
def test_no_operator_waits_for_the_device_and_none_runs_per_image(plan: Augmentation) -> None:
    assert_never_waits(lambda batch: augment(random_images(batch, 24, 24), plan, seeded(0)))
