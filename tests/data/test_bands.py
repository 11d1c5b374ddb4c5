"""Which bands of a picture become channels: pages, transparency, grey made of RGB, and what most pictures say."""

from __future__ import annotations

import io
from pathlib import Path

import image_files as F
import numpy as np
import pytest
import tifffile
from PIL import Image

from dsdmae_cli.config.resolve import resolve_data
from dsdmae_cli.data.base import UnreadableImage
from dsdmae_cli.data.decode import decode
from dsdmae_cli.data.values import Reading, luma

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
