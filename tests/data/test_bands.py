"""Which bands of a picture become channels: pages, transparency, grey made of RGB, and what most pictures say."""

from __future__ import annotations

import io
import tracemalloc
from pathlib import Path

import image_files as F
import numpy as np
import pytest
import tifffile
from helpers import cli
from PIL import Image

from dsdmae_cli.config.resolve import resolve_data
from dsdmae_cli.data.account import take_account
from dsdmae_cli.data.arrays import ArrayImages
from dsdmae_cli.data.base import UnreadableImage
from dsdmae_cli.data.beyond import range_notes
from dsdmae_cli.data.channels import Grey
from dsdmae_cli.data.decode import decode
from dsdmae_cli.data.mask_views import MaskedSubset
from dsdmae_cli.data.masks import MaskedImages
from dsdmae_cli.data.open import open_dataset
from dsdmae_cli.data.values import Reading, luma, pairs
from dsdmae_cli.errors import DataError

SIDE = 16


def test_pages_as_bands(tmp_path: Path) -> None:
    """What ImageJ and tifffile's default write: a page for each channel; a number asks for them."""
    rng = np.random.default_rng(0)
    for number in range(6):
        stack = rng.integers(0, 4000, (5, SIDE, SIDE)).astype(np.uint16)
        tifffile.imwrite(tmp_path / f"{number}.tif", stack)
        how = Reading((0, 4000), channels=5)
        shown = decode(tmp_path / f"{number}.tif", "x", how)
        np.testing.assert_array_equal(
            shown, np.rint(np.moveaxis(stack, 0, 2) * np.float32(255 / 4000)).astype(np.uint8)
        )
    settings = resolve_data(F.of(tmp_path, channels=5))
    assert isinstance(settings.range, tuple)
    assert len(settings.range) == 5
    assert resolve_data(F.of(tmp_path)).channels == 3
    tifffile.imwrite(tmp_path / "odd.tif", stack[0])
    with tifffile.TiffWriter(tmp_path / "odd.tif", append=True) as writer:
        writer.write(stack[0, :8])
    with pytest.raises(UnreadableImage, match="pages of several sizes"):
        decode(tmp_path / "odd.tif", "x", how)


@pytest.mark.parametrize(("mode", "bands"), [("RGBA", 4), ("LA", 2)])
def test_transparency_as_a_band(mode: str, bands: int, tmp_path: Path) -> None:
    """Of 8 and of 16 bits; laid over white by default."""
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, bands), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels, mode=None).save(buffer, format="PNG")
    np.testing.assert_array_equal(decode(buffer.getvalue(), "x", Reading(channels=bands)), pixels)
    assert decode(buffer.getvalue(), "x").shape == (9, 7, 3)
    with pytest.raises(UnreadableImage, match=f"{bands} bands and not the 5"):
        decode(buffer.getvalue(), "x", Reading(channels=5))


def test_the_kinds_of_most_pictures_decide(tmp_path: Path) -> None:
    pixels = np.zeros((8, 8, 4), np.uint8)
    for number in range(5):
        tifffile.imwrite(tmp_path / f"{number}.tif", pixels, photometric="minisblack", planarconfig="contig")
    assert resolve_data(F.of(tmp_path)).channels == 4
    assert resolve_data(F.of(tmp_path, bands=(1, 2, 3))).channels == 3
    assert resolve_data(F.of(tmp_path, bands=(2,))).channels == 3
    assert resolve_data(F.of(tmp_path, bands=(2, 4))).channels == 2
    for number in range(5):
        Image.fromarray(pixels[..., :3]).save(tmp_path / f"{number}.png")
    assert resolve_data(F.of(tmp_path)).channels == 3


def test_grey_made_of_rgb(tmp_path: Path) -> None:
    """As Pillow does it."""
    rgb = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    np.testing.assert_array_equal(luma(rgb)[..., 0], np.asarray(Image.fromarray(rgb).convert("L")))


@pytest.mark.parametrize(("most", "odd"), [(5, 4), (3, 5)])
def test_pictures_of_other_bands_among_deep_ones(tmp_path: Path, most: int, odd: int) -> None:
    """The account of them ended in a traceback; it names them, as a dry run does that decodes them."""
    rng = np.random.default_rng(0)
    for number in range(8):
        bands = odd if number < 2 else most
        kind = {"photometric": "rgb" if bands == 3 else "minisblack", "planarconfig": "contig"}
        tifffile.imwrite(tmp_path / f"{number}.tif", rng.integers(100, 1000, (16, 16, bands)).astype(np.uint16), **kind)
    settings = resolve_data(F.of(tmp_path))
    assert settings.channels == most
    parts = {name: open_dataset(settings, split) for name, split in (("training", "train"), ("held-out", "test"))}
    for decoded in (False, True):
        account = take_account(parts, settings.range, decoded=decoded)
        assert sorted(Path(name).name for name in account.unreadable) == ["0.tif", "1.tif"]
        assert all(f"{odd} bands" in reason for reason in account.unreadable.values())
        assert list(account.kinds.values()) == [6]


def test_pictures_with_masks_say_their_range(tmp_path: Path) -> None:
    """A part of them had none: what is said of a range, and refused, was neither said nor refused."""
    rng = np.random.default_rng(0)
    for kind, most in (("images", 900), ("masks", 2)):
        (tmp_path / kind).mkdir()
        for number in range(6):
            values = rng.integers(0, most, (16, 16)).astype(np.uint16 if kind == "images" else np.uint8)
            Image.fromarray(values).save(tmp_path / kind / f"{number}.png")
    (tmp_path / "classes.txt").write_text("paper\nink\n")
    fits, other = (open_dataset(F.of(tmp_path, range=limits), "train") for limits in ((0, 900), (5000, 9000)))
    assert isinstance(fits, MaskedImages)
    assert isinstance(other, MaskedImages)
    assert range_notes(MaskedSubset(fits, np.arange(3))) == ("values of 0 to 900 are seen as black to white",)
    with pytest.raises(DataError, match="beyond the range of 5000 to 9000"):
        range_notes(MaskedSubset(other, np.arange(3)))


@pytest.mark.parametrize("bands", [(3, 2, 1), (2,), (1, 2)])
def test_the_range_is_that_of_the_bands_that_are_seen(bands: tuple[int, ...], tmp_path: Path) -> None:
    """One of another instrument, or of other pictures, left three that were chosen nearly black."""
    rng = np.random.default_rng(0)
    for number in range(6):
        values = rng.integers(100, 1000, (16, 16, 5)).astype(np.uint16)
        values[..., 4] = rng.integers(20000, 60000, (16, 16))
        tifffile.imwrite(tmp_path / f"{number}.tif", values, photometric="minisblack", planarconfig="contig")
    found = open_dataset(F.of(tmp_path, bands=bands), "train")
    assert found.reading is not None
    assert found.reading.range is not None
    assert all(limits == pytest.approx((100, 999), abs=2) for limits in pairs(found.reading.range))
    assert 110 < found.load(0).mean() < 145


def test_grey_of_a_dataset_in_memory_is_made_once_and_by_pieces() -> None:
    """Each question made all of it anew, in seven times the memory of the pictures: 18 GB of STL-10."""
    rgb = np.random.default_rng(0).integers(0, 256, (4000, 16, 16, 3), dtype=np.uint8)
    grey = Grey(ArrayImages(rgb, np.zeros(4000, np.int64), ("a", "b"), "x"))
    tracemalloc.start()
    found = grey.arrays()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * rgb.nbytes
    assert found is not None
    np.testing.assert_array_equal(found, luma(rgb))
    assert grey.arrays() is found


def test_packed_pictures_that_are_not_made_smaller_are_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Bands that were asked for are chosen when the images are read: the files keep all of them, and their size."""
    images = tmp_path / "images"
    images.mkdir()
    for number in range(6):
        Image.new("RGB", (90, 80), (40 * number, 10, 20)).save(images / f"{number}.png")
    given = ("data", "pack", images, "--size", "32", "--out")
    code, _, err = cli(capfd, *given, tmp_path / "bands", "--set", "data.bands=[3, 1]")
    assert code == 0, err
    assert "6 of 6 images are kept as the files they were, at their own size" in err
    assert "of whose bands a run reads [3, 1]" in err
    assert "packed at 32" not in err
    code, _, err = cli(capfd, *given, tmp_path / "rgb")
    assert code == 0, err
    assert "kept as the files they were" not in err
