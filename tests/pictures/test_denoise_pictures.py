"""Pictures in and out: what is kept of a file, and what is refused."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import png
import pytest
import tifffile
from PIL import Image, ImageCms, ImageOps

from dsdmae_cli.data.base import Refused, UnreadableImage
from dsdmae_cli.pictures import picture as pictures
from dsdmae_cli.pictures.metadata import Metadata
from dsdmae_cli.pictures.picture import Picture

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format=kind, **options)
    return stream.getvalue()


def round_trip(picture: Picture, suffix: str) -> Picture:
    stream = io.BytesIO()
    pictures.write([picture], stream, suffix)
    return pictures.read(stream.getvalue(), f"picture{suffix}")


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (40, 61)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_png_gives_back_every_bit(mode: str, dtype: Any, shape: tuple[int, int], random: np.random.Generator) -> None:
    pixels = random.integers(0, np.iinfo(dtype).max, (*shape, len(mode)), dtype, endpoint=True)
    back = round_trip(Picture(pixels, mode, Metadata(dpi=(300.0, 300.0))), ".png")
    assert (back.mode, back.depth) == (mode, 8 * np.dtype(dtype).itemsize)
    np.testing.assert_array_equal(back.pixels, pixels)
    assert back.metadata.dpi == pytest.approx((300, 300), rel=1e-3)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_deep_png_reads_the_same_elsewhere(channels: int, random: np.random.Generator, tmp_path: Path) -> None:
    mode = ["L", "LA", "RGB", "RGBA"][channels - 1]
    pixels = random.integers(0, 65536, (70, 33, channels), np.uint16)
    with (tmp_path / "deep.png").open("wb") as file:
        pictures.write([Picture(pixels, mode)], file, ".png")
    width, height, rows, about = png.Reader(bytes=(tmp_path / "deep.png").read_bytes()).read()
    assert (width, height, about["bitdepth"], about["planes"]) == (33, 70, 16, channels)
    np.testing.assert_array_equal(np.array([list(row) for row in rows]).reshape(70, 33, channels), pixels)


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("order", ["<", ">"])
def test_deep_tiff(channels: int, order: str, random: np.random.Generator, tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")  # comes with scikit-image
    pixels = random.integers(0, 65536, (31, 20, channels), np.uint16)
    extra = {"extrasamples": ["unassalpha"]} if channels == 4 else {}
    tifffile.imwrite(tmp_path / "deep.tif", pixels, byteorder=order, photometric="rgb", **extra)
    picture = pictures.read(tmp_path / "deep.tif", "deep.tif")
    assert (picture.mode, picture.depth) == ("RGBA"[:channels], 16)
    np.testing.assert_array_equal(picture.pixels, pixels)


def test_deep_planes_come_whole(random: np.random.Generator, tmp_path: Path) -> None:
    pixels = random.integers(0, 65536, (3, 31, 20), np.uint16)
    tifffile.imwrite(tmp_path / "planes.tif", pixels, photometric="rgb", planarconfig="separate")
    picture = pictures.read(tmp_path / "planes.tif", "planes.tif")
    np.testing.assert_array_equal(picture.pixels, np.moveaxis(pixels, 0, 2))


def test_16_bit_grey(random: np.random.Generator) -> None:
    pixels = random.integers(0, 65536, (9, 12), np.uint16)
    for kind in ("PNG", "TIFF", "PPM"):
        picture = pictures.read(saved(Image.fromarray(pixels), kind), "grey")
        assert (picture.mode, picture.depth) == ("L", 16)
        np.testing.assert_array_equal(picture.pixels[..., 0], pixels)
    np.testing.assert_array_equal(round_trip(picture, ".tif").pixels[..., 0], pixels)


def test_a_transparent_colour_becomes_alpha(random: np.random.Generator) -> None:
    pixels = random.integers(0, 256, (6, 8, 3), np.uint8)
    pixels[2, 3] = pixels[4, 4] = (9, 8, 7)
    picture = pictures.read(saved(Image.fromarray(pixels), "PNG", transparency=(9, 8, 7)), "keyed")
    assert picture.mode == "RGBA"
    np.testing.assert_array_equal(picture.pixels[..., 3] == 0, (pixels == (9, 8, 7)).all(axis=2))


@pytest.mark.parametrize(
    ("mode", "kept"), [("1", "L"), ("P", "RGB"), ("LA", "LA"), ("CMYK", "CMYK"), ("RGBA", "RGBA"), ("YCbCr", "RGB")]
)
def test_modes(mode: str, kept: str, random: np.random.Generator) -> None:
    image = Image.fromarray(random.integers(0, 256, (13, 11, 3), np.uint8)).convert(mode)
    picture = pictures.read(saved(image, "TIFF" if mode in {"CMYK", "YCbCr"} else "PNG"), mode)
    assert picture.mode == kept
    np.testing.assert_array_equal(picture.pixels.squeeze(), np.asarray(image.convert(kept)))
    assert picture.suffix == (".tif" if mode in {"CMYK", "YCbCr"} else ".png")
    np.testing.assert_array_equal(round_trip(picture, picture.suffix).pixels, picture.pixels)


def test_a_grey_palette_is_grey(random: np.random.Generator) -> None:
    image = Image.fromarray(random.integers(0, 256, (9, 9), np.uint8)).convert("P")
    image.putpalette([v for grey in range(256) for v in (grey, grey, grey)])
    assert pictures.read(saved(image, "GIF"), "gif").mode == "L"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_the_right_way_up(kind: str, orientation: int, tmp_path: Path) -> None:
    """The result looks as the source does in a viewer that heeds EXIF, and as it does in one that does not."""
    ramp = np.add.outer(np.arange(24) * 4, np.arange(16) * 8).astype(np.uint8)
    ramp[:6, :5] = 250
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = orientation, "Maker"
    options = {"lossless": True} if kind == "WEBP" else {}
    content = saved(Image.fromarray(ramp).convert("RGB"), kind, exif=exif, **options)
    picture = pictures.read(content, "turned")
    with Image.open(io.BytesIO(content)) as image:
        wanted = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(picture.pixels, wanted)
    stream = io.BytesIO()
    pictures.write([picture], stream, ".png")
    with Image.open(stream) as result:
        assert result.getexif().get(0x0112, 1) == 1
        assert result.getexif()[0x010F] == "Maker"
        np.testing.assert_array_equal(np.asarray(ImageOps.exif_transpose(result)), wanted)


def test_deep_pictures_turn_too(random: np.random.Generator) -> None:
    pixels = random.integers(0, 65536, (5, 8, 3), np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    pictures.write([Picture(pixels, "RGB", Metadata(exif=exif.tobytes().removeprefix(b"Exif\0\0")))], stream, ".png")
    np.testing.assert_array_equal(pictures.read(stream.getvalue(), "deep").pixels, np.rot90(pixels, -1))


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp", ".jpg"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_profile_exif_and_xmp_survive(suffix: str, dtype: Any, random: np.random.Generator) -> None:
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    exif.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0a comment"
    exif.get_ifd(0x8825)[0x0001] = "N"
    picture = Picture(
        random.integers(0, 255, (20, 30, 3), dtype),
        "RGB",
        Metadata(
            icc=PROFILE,
            exif=exif.tobytes().removeprefix(b"Exif\0\0"),
            xmp=b'<x:xmpmeta xmlns:x="adobe:ns:meta/"></x:xmpmeta>',
        ),
    )
    if dtype == np.uint16 and suffix != ".png":
        with pytest.raises(Refused, match=r"write \.png"):
            round_trip(picture, suffix)
        return
    back = round_trip(picture, suffix)
    assert back.metadata.icc == PROFILE
    assert back.metadata.xmp == picture.metadata.xmp
    found = Image.Exif()
    found.load(back.metadata.exif or b"")
    assert found[0x010F] == "Maker"
    assert found.get_ifd(0x8769)[0x9286] == b"ASCII\0\0\0a comment"
    assert found.get_ifd(0x8825)[0x0001] == "N"


def test_exif_keeps_every_other_byte() -> None:
    """A maker's note may say where in the file things lie; so nothing may move."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Maker"
    exif.get_ifd(0x8769)[0x927C] = bytes(range(200))
    raw = exif.tobytes().removeprefix(b"Exif\0\0")
    picture = pictures.read(saved(Image.new("RGB", (4, 4)), "JPEG", exif=exif), "jpeg")
    assert picture.metadata.exif is not None
    assert len(picture.metadata.exif) == len(raw)
    assert sum(a != b for a, b in zip(picture.metadata.exif, raw, strict=True)) == 1


def test_xmp_orientation_is_said_to_be_upright() -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    picture = pictures.read(saved(Image.new("RGB", (4, 2)), "JPEG", xmp=xmp), "jpeg")
    assert (picture.height, picture.width) == (4, 2)
    assert picture.metadata.xmp == xmp.replace(b'"6"', b'"1"')


def _bomb() -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">L", len(body)) + name + body + struct.pack(">L", zlib.crc32(name + body))
        for name, body in (
            (b"IHDR", struct.pack(">LLBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)),
            (b"IDAT", zlib.compress(b"\0" * 1000)),
        )
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"hello", "not a JPEG"),
        (saved(Image.effect_noise((64, 64), 50), "PNG")[:900], "truncated"),
        (saved(Image.effect_noise((64, 64), 50), "JPEG")[:700], "truncated"),
        (_bomb(), "50000x50000 is more than 100 million pixels|more than 100 million pixels"),
        (saved(Image.new("LAB", (4, 4)), "TIFF"), "colour mode LAB"),
    ],
)
def test_refused(content: bytes, reason: str) -> None:
    with pytest.raises(UnreadableImage, match=reason):
        pictures.read(content, "it")


def test_the_limit_can_be_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    content = saved(Image.new("L", (300, 300)), "PNG")
    with pytest.raises(UnreadableImage, match=r"is more than 0\.05 million pixels"):
        pictures.read(content, "it", max_pixels=50_000)
    # Pillow has a guard of its own, which raises above twice its limit, and is lifted by more than our default alone.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(content))
    assert pictures.read(content, "it", max_pixels=150_000_000).width == 300
    assert Image.MAX_IMAGE_PIXELS == 1000


def test_formats_that_cannot_hold_it() -> None:
    rgba = Picture(np.zeros((2, 2, 4), np.uint8), "RGBA")
    with pytest.raises(Refused, match="JPEG cannot hold 8-bit RGBA"):
        pictures.check_format(rgba, ".jpg")
    grey = Picture(np.zeros((2, 2, 1), np.uint8), "L")
    with pytest.raises(Refused, match="WEBP cannot hold 8-bit L"):
        pictures.check_format(grey, ".webp")
    cmyk = Picture(np.zeros((2, 2, 4), np.uint8), "CMYK")
    with pytest.raises(Refused, match=r"write \.tif"):
        pictures.check_format(cmyk, ".png")


def test_frames_are_counted() -> None:
    frames = [Image.new("L", (5, 5), grey) for grey in (0, 100, 200)]
    assert pictures.read(saved(frames[0], "GIF", save_all=True, append_images=frames[1:]), "gif").frames == 3


# -- pictures that are no files


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(("shape", "mode"), [((5, 7), "L"), ((5, 7, 1), "L"), ((5, 7, 2), "LA"), ((5, 7, 3), "RGB"),
                                             ((5, 7, 4), "RGBA")])  # fmt: skip
def test_an_array_is_a_picture(shape: tuple[int, ...], mode: str, dtype: Any, random: np.random.Generator) -> None:
    array = random.integers(0, 255, shape, dtype)
    picture = Picture.of(array)
    assert (picture.mode, picture.depth) == (mode, 8 * array.itemsize)
    np.testing.assert_array_equal(picture.pixels, array.reshape(5, 7, -1))


@pytest.mark.parametrize(
    "array",
    [np.zeros((4, 4, 3)), np.zeros((4, 4, 5), np.uint8), np.zeros(4, np.uint8), np.zeros((0, 4, 3), np.uint8),
     np.zeros((1, 4, 4, 3), np.uint8), np.zeros((4, 4), bool)],
)  # fmt: skip
def test_an_array_that_is_no_picture(array: np.ndarray) -> None:
    with pytest.raises(Refused, match=rf"an array of {array.dtype} \[.*\] is no picture; it takes uint8 or uint16"):
        Picture.of(array)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "CMYK", "I;16"])
def test_a_pillow_image_is_what_its_file_is(mode: str, random: np.random.Generator) -> None:
    pixels = random.integers(0, 256, (13, 11, 3), np.uint8)
    image = Image.fromarray(pixels).convert("I" if mode == "I;16" else mode).convert(mode)
    wanted = pictures.read(saved(image, "TIFF"), mode)
    picture = Picture.of(image)
    assert picture.mode == wanted.mode
    np.testing.assert_array_equal(picture.pixels, wanted.pixels)


def test_an_opened_image_is_turned_and_keeps_what_is_known_of_it(random: np.random.Generator) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Maker"
    image = Image.fromarray(random.integers(0, 256, (13, 11, 3), np.uint8))
    content = saved(image, "PNG", exif=exif, icc_profile=PROFILE, dpi=(300, 300))
    wanted = pictures.read(content, "png")
    with Image.open(io.BytesIO(content)) as opened:
        picture = Picture.of(opened)
    assert (picture.height, picture.width) == (11, 13)
    np.testing.assert_array_equal(picture.pixels, wanted.pixels)
    assert picture.metadata == wanted.metadata
    assert picture.metadata.icc == PROFILE


def test_an_opened_image_is_not_halved(random: np.random.Generator) -> None:
    stream = io.BytesIO()
    pictures.write([Picture(random.integers(0, 65536, (5, 8, 3), np.uint16), "RGB")], stream, ".png")
    with Image.open(stream) as image, pytest.raises(Refused, match="name its file instead"):
        Picture.of(image)


@pytest.mark.parametrize(
    ("shape", "known", "suffix", "reason"),
    [
        ((1, 17000, 3), Metadata(), ".webp", r"WEBP cannot hold 17000x1, but 16383 a side; write .png"),
        ((66000, 1, 3), Metadata(), ".jpg", r"JPEG cannot hold 1x66000, but 65500 a side; write .png"),
        ((2, 2, 3), Metadata(xmp=b"x" * 70_000), ".jpg", r"JPEG cannot hold 70,000 bytes of XMP, but 65,504"),
        ((2, 2, 3), Metadata(exif=b"x" * 65_528), ".jpeg", r"JPEG cannot hold 65,528 bytes of EXIF data, but 65,527"),
    ],
)
def test_what_is_too_much_for_a_format(shape: tuple[int, ...], known: Metadata, suffix: str, reason: str) -> None:
    picture = Picture(np.zeros(shape, np.uint8), "RGB", known)
    with pytest.raises(Refused, match=reason):
        pictures.check_format(picture, suffix)
    pictures.check_format(picture, ".png")


def test_as_much_as_a_jpeg_holds() -> None:
    exif = Image.Exif()
    exif[305] = "x" * 60_000
    exif[305] += "x" * (65527 - len(exif.tobytes().removeprefix(b"Exif\0\0")))
    raw = exif.tobytes().removeprefix(b"Exif\0\0")
    assert 65525 <= len(raw) <= 65527
    known = Metadata(exif=raw, xmp=b"x" * 65504)
    back = round_trip(Picture(np.zeros((65500, 1, 3), np.uint8), "RGB", known), ".jpg")
    assert (back.metadata.xmp, back.height) == (b"x" * 65504, 65500)
    assert back.metadata.exif == raw


def test_what_a_writer_finds_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def save(*_: Any, **__: Any) -> None:
        raise ValueError("too much")

    monkeypatch.setattr(Image.Image, "save", save)
    with pytest.raises(Refused, match=r"PNG cannot hold it: too much; write .png"):
        pictures.write([Picture(np.zeros((2, 2, 3), np.uint8), "RGB")], io.BytesIO(), ".png")
