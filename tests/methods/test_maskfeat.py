"""MaskFeat and its histograms of oriented gradients, against loops over pixels in float64."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import cli, one_line
from reference import CONVNEXT, SWIN, blocks, images, linear, tiny
from sklearn.datasets import load_sample_image
from torch import Tensor

from dsdmae_builtin.hog import BINS, cells_per_patch, hog, hog_features, hog_picture
from dsdmae_builtin.methods.maskfeat import MaskFeat
from dsdmae_cli.data.source import seeded

CPU = torch.device("cpu")
SOBEL = ((1, 2, 1), (0, 0, 0), (-1, -2, -1))


def photo(height: int, width: int) -> Tensor:
    """Parts of a real photograph, whole numbers from 0 to 255, [2, 3, h, w]."""
    picture = torch.from_numpy(np.array(load_sample_image("china.jpg"))).permute(2, 0, 1).double()
    return torch.stack([picture[:, 60 : 60 + height, 150 : 150 + width], picture[:, -height:, :width]])


def reflected(index: int, length: int) -> int:
    return -index if index < 0 else 2 * (length - 1) - index if index >= length else index


def histogram_loops(image: np.ndarray, patch: tuple[int, int], gaussian: bool) -> np.ndarray:
    """[h, w] -> [patch row, patch column, cell row, cell column, bin]; a pixel at a time."""
    height, width = image.shape
    cells = [2 if side % 2 == 0 and side >= 4 else 1 for side in patch]
    sums = np.zeros((height // patch[0], width // patch[1], *cells, 9))
    for y in range(height):
        for x in range(width):
            down = across = 0.0
            for i in range(3):
                for j in range(3):
                    pixel = image[reflected(y + i - 1, height), reflected(x + j - 1, width)]
                    down += SOBEL[i][j] * pixel
                    across += SOBEL[j][i] * pixel
            degrees = math.degrees(math.atan2(across, down)) % 180  # unsigned: an edge and its negative are one
            weight = math.hypot(down, across)
            inner = (y % patch[0], x % patch[1])
            if gaussian:
                for at, side in zip(inner, patch, strict=True):
                    weight *= math.exp(-(((at - (side - 1) / 2) / (side / 2)) ** 2) / 2)
            cell = [at * n // side for at, n, side in zip(inner, cells, patch, strict=True)]
            sums[y // patch[0], x // patch[1], cell[0], cell[1], int(degrees // 20) % 9] += weight
    length = np.sqrt((sums**2).sum(axis=-1, keepdims=True))
    return sums / np.where(length == 0, 1, length)


def hog_loops(image: Tensor, patch: tuple[int, int], gaussian: bool) -> Tensor:
    channels = np.stack([histogram_loops(channel.numpy(), patch, gaussian) for channel in image])
    rows = channels.transpose(1, 2, 0, 5, 3, 4)  # patch row, patch column, channel, bin, cell row, cell column
    return torch.from_numpy(rows.reshape(rows.shape[0] * rows.shape[1], -1).copy())


@pytest.mark.parametrize("gaussian", [True, False], ids=["weighted", "even"])
@pytest.mark.parametrize(
    ("size", "patch"),
    [((32, 48), (16, 16)), ((24, 36), (6, 6)), ((16, 20), (2, 2)), ((16, 16), (4, 4)), ((15, 21), (3, 3)),
     ((28, 14), (14, 14)), ((20, 24), (4, 6)), ((10, 15), (5, 5))],
    ids=str,
)  # fmt: skip
def test_histograms_are_those_of_loops(size: tuple[int, int], patch: tuple[int, int], gaussian: bool) -> None:
    pictures = photo(*size)
    expected = torch.stack([hog_loops(picture, patch, gaussian) for picture in pictures])
    found = hog(pictures, patch, gaussian)
    assert found.shape[-1] == hog_features(patch) == 3 * 9 * math.prod(cells_per_patch(patch))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    # In float32 and in the units of the program, off the whole numbers, whose gradients often lie between two bins.
    other = pictures + torch.rand(pictures.shape, generator=seeded(CPU, 0))
    single = hog((other / 127.5 - 1).float(), patch, gaussian).double()
    assert ((single - hog(other, patch, gaussian)).abs() < 1e-4).double().mean() > 0.999


def test_cells_have_the_sizes_of_the_paper() -> None:
    cells = {side: side // cells_per_patch((side, side))[0] for side in (2, 3, 4, 6, 8, 14, 16)}
    assert cells == {2: 2, 3: 3, 4: 2, 6: 3, 8: 4, 14: 7, 16: 8}
    assert hog_features((16, 16)) == 108


def test_edges_have_directions_and_no_sign() -> None:
    ramp = torch.arange(16.0).expand(16, 16)
    for image, bin_ in ((ramp, 4), (ramp.T, 0), (ramp + ramp.T, 2), (ramp - ramp.T, 6)):
        for turned in (image, -image):
            histograms = hog(turned.expand(1, 3, 16, 16), (4, 4)).reshape(16, 3, BINS, 2, 2)[5]  # an inner patch
            torch.testing.assert_close(histograms[:, bin_], torch.ones(3, 2, 2))
            assert histograms.sum() == pytest.approx(12)


def test_what_is_even_has_no_histogram_and_stripes_have_one_bin() -> None:
    """Equal pixels have no gradient to the last bit: were there a rounding error, its sign would choose a bin."""
    assert not hog(torch.full((1, 3, 8, 8), 0.3), (2, 2)).any()
    stripes = (torch.rand(12, 1, generator=seeded(CPU, 0)) * 2 - 1).expand(2, 3, 12, 12)
    histograms = hog(stripes, (6, 6)).reshape(2, 4, 3, BINS, 2, 2)
    assert not histograms[:, :, :, 1:].any()


def test_contrast_and_brightness_change_nothing() -> None:
    pictures = photo(16, 16)
    torch.testing.assert_close(hog(2 * pictures - 40, (4, 4)), hog(pictures, (4, 4)))


def test_autocast_does_not_round_the_target() -> None:
    pictures = (photo(16, 16) / 127.5 - 1).float()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(hog(pictures, (4, 4)), hog(pictures, (4, 4)).float())
        under = hog(pictures, (4, 4))
    assert torch.equal(under, hog(pictures, (4, 4)))


def test_a_picture_of_a_histogram_shows_the_edge() -> None:
    """A vertical edge: bright along a column, dark beside it."""
    across = torch.arange(16.0).expand(1, 3, 16, 16)
    drawn = hog_picture(hog(across, (4, 4)), (4, 4), (4, 4), cell=7)
    assert drawn.shape == (1, 3, 56, 56)
    cell = drawn[0, 0, 21:28, 21:28]
    assert (cell[:, 3] > 0.9).all()
    assert (cell[:, [0, 1, 5, 6]] == -1).all()


# -- the method


def reference(method: MaskFeat, clean: Tensor, masked: Tensor) -> float:
    w = {name: tensor.double() for name, tensor in method.state_dict().items()}
    errors = []
    for image, ids in zip(clean.double(), masked, strict=True):
        kernel = w["backbone.vit.patch_embed.proj.weight"].flatten(1)
        tokens = []
        for token in range(16):
            top, left = 4 * (token // 4), 4 * (token % 4)
            pixels = image[:, top : top + 4, left : left + 4].flatten()
            seen = kernel @ pixels + w["backbone.vit.patch_embed.proj.bias"]
            tokens.append(w["mask_token"][0, 0] if token in ids.tolist() else seen)
        x = torch.stack(tokens)
        places = w["backbone.vit.pos_embed"][0]
        if "backbone.vit.cls_token" in w:
            x = torch.cat([w["backbone.vit.cls_token"][0], x])
        features = blocks(x + places, w, "backbone.vit", heads=2)[-16:]
        target = hog_loops(image, (4, 4), method.settings.gaussian)
        errors.append((linear(features, w, "head") - target)[ids].pow(2).mean())
    return float(sum(errors) / len(errors))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "more",
    [(), ("method.gaussian=false", "backbone.class_token=true"), ("method.mask=random", "method.mask_ratio=0.75")],
    ids=" ".join,
)
def test_maskfeat_is_its_formulas(more: tuple[str, ...]) -> None:
    method = tiny(*more, name="maskfeat")
    clean = images()
    masked = method.corrupt(clean, seeded(CPU, 1))
    count = round(method.settings.mask_ratio * 16)
    assert masked.ids_masked.shape == (4, count)
    expected = reference(method, clean, masked.ids_masked)
    exact = copy.deepcopy(method).double()
    for losses, tolerance in ((exact(clean.double(), masked), 1e-6), (method(clean, masked), 2e-5)):
        assert losses.keys() == {"loss", "hog"}
        for name, value in losses.items():
            assert value.item() == pytest.approx(expected, rel=tolerance), name
            assert value.requires_grad == (name == "loss")


def test_masked_pixels_are_not_seen() -> None:
    method = tiny(name="maskfeat")
    clean = images(1)
    masked = method.corrupt(clean, seeded(CPU, 1))
    before = method._predict(clean, masked)[0]
    for token in range(16):
        y, x = 4 * (token // 4), 4 * (token % 4)
        other = clean.clone()
        other[:, :, y : y + 4, x : x + 4] += 1
        hidden = token in masked.ids_masked[0].tolist()
        assert torch.equal(method._predict(other, masked)[0], before) == hidden


@pytest.mark.parametrize("backbone", [SWIN, CONVNEXT], ids=["swin", "convnext"])
def test_networks_without_a_mask_token_are_refused(
    backbone: tuple[str, ...], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    name = backbone[0].split("=")[1]
    code, out, err = cli(capfd, "pretrain", "--method", "maskfeat", "--backbone", name, "--out", tmp_path / "run")
    assert (code, out) == (2, "")
    assert f"method 'maskfeat' replaces patches by a mask token, and backbone '{name}' cannot" in one_line(err)


@torch.no_grad()
def test_its_pictures() -> None:
    method = tiny(name="maskfeat")
    clean = images(2)
    masked = method.corrupt(clean, seeded(CPU, 1))
    shown = method.show(clean, masked)
    assert list(shown) == ["given", "predicted HOG", "true HOG"]
    assert shown["true HOG"].shape == (2, 3, 64, 64)  # two cells of 8 px a patch
    hidden = (shown["given"] == 0).all(dim=1).unflatten(1, (4, 4)).unflatten(3, (4, 4)).all(dim=4).all(dim=2)
    assert hidden.sum().item() == 12
    differs = (shown["predicted HOG"] != shown["true HOG"]).any(dim=1).unflatten(1, (4, 16)).unflatten(3, (4, 16))
    assert torch.equal(differs.any(dim=4).any(dim=2), hidden)
