"""The image policy of docs/datasets.md, one kind of image at a time, against files that Pillow wrote."""

import contextlib
import io
import pickle
import struct
import sys
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
import tifffile
from PIL import Image
from sklearn.datasets import load_sample_image

from dsdmae_cli.data import files
from dsdmae_cli.data.base import UnreadableImage
from dsdmae_cli.data.decode import IMAGE_SUFFIXES, MAX_PIXELS, decode, image_size
from dsdmae_cli.data.to_rgb import to_rgb


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    """A real photograph, wider than high so that a wrong rotation shows."""
    return Image.fromarray(load_sample_image("flower.jpg")[100:148, 200:264])


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises `width` x `height` pixels and holds a few bytes."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")


def reason(source: bytes | Path) -> str:
    with pytest.raises(UnreadableImage) as caught:
        decode(source, "picture")
    message = str(caught.value)
    assert message == f"unreadable image picture: {caught.value.reason}"
    assert "\n" not in message
    assert pickle.loads(pickle.dumps(caught.value)).reason == caught.value.reason
    return caught.value.reason


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_lossless_formats_give_the_pixels_back(photo: Image.Image, kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    got = decode(saved(photo, kind, **options), "x")
    assert got.dtype == np.uint8
    assert got.shape == (48, 64, 3)
    assert got.flags.writeable
    assert got.flags.c_contiguous
    np.testing.assert_array_equal(got, np.asarray(photo))


def test_jpeg_is_close_and_sources_agree(photo: Image.Image, tmp_path: Path) -> None:
    content = saved(photo, "JPEG", quality=95)
    path = tmp_path / "flower.jpg"
    path.write_bytes(content)
    got = decode(content, "x")
    assert np.abs(got.astype(int) - np.asarray(photo)).mean() < 4
    np.testing.assert_array_equal(got, decode(path, "x"))
    with path.open("rb") as file:
        np.testing.assert_array_equal(got, decode(file, "x"))
        assert image_size(file, "x") == (64, 48)
        assert not file.closed


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied(photo: Image.Image, kind: str, orientation: int) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    content = saved(photo, kind, exif=exif)
    got = decode(content, "x")
    with Image.open(io.BytesIO(content)) as image:
        expected = ImageOps.exif_transpose(image).convert("RGB")
    np.testing.assert_array_equal(got, np.asarray(expected))
    assert image_size(content, "x") == (got.shape[1], got.shape[0])
    assert got.shape[:2] == ((64, 48) if orientation > 4 else (48, 64))


def test_damaged_exif_is_ignored(photo: Image.Image) -> None:
    whole = saved(photo, "JPEG")
    for junk in (
        b"Exif\0\0",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12" * 30,
    ):
        np.testing.assert_array_equal(decode(saved(photo, "JPEG", exif=junk), "x"), decode(whole, "x"))


def test_first_frame_of_animations(photo: Image.Image) -> None:
    frames = [photo, photo.rotate(180), photo.rotate(90)]
    for kind, options in {
        "GIF": {"duration": 20},
        "WEBP": {"lossless": True, "duration": 20},
        "PNG": {"duration": 20},
        "TIFF": {},
    }.items():
        still = decode(saved(photo, kind, **({"lossless": True} if kind == "WEBP" else {})), "x")
        moving = decode(saved(photo, kind, save_all=True, append_images=frames[1:], **options), "x")
        np.testing.assert_array_equal(moving, still, err_msg=kind)


def test_palette_and_one_bit(photo: Image.Image) -> None:
    palette = photo.quantize(64)
    np.testing.assert_array_equal(decode(saved(palette, "PNG"), "x"), np.asarray(palette.convert("RGB")))
    one_bit = photo.convert("1")
    np.testing.assert_array_equal(decode(saved(one_bit, "PNG"), "x"), np.asarray(one_bit.convert("RGB")))


def test_grey_is_repeated(photo: Image.Image) -> None:
    grey = np.asarray(photo.convert("L"))
    got = decode(saved(photo.convert("L"), "PNG"), "x")
    np.testing.assert_array_equal(got, np.repeat(grey[..., None], 3, axis=2))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_laid_over_white(photo: Image.Image, mode: str) -> None:
    image = photo.convert(mode)
    alpha = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (48, 1))
    image.putalpha(Image.fromarray(alpha))
    colour = np.asarray(image.convert("RGBA"), dtype=float)[..., :3]
    share = alpha[..., None] / 255.0
    got = decode(saved(image, "PNG"), "x")
    assert np.abs(got - (colour * share + 255 * (1 - share))).max() <= 1
    assert (got[:, 0] == 255).all()


def test_transparent_colours_become_white(photo: Image.Image) -> None:
    palette = photo.quantize(16)
    indices = np.asarray(palette)
    plain = np.asarray(palette.convert("RGB"))
    for transparency in (3, bytes([255, 255, 255, 0])):
        got = decode(saved(palette, "PNG", transparency=transparency), "x")
        np.testing.assert_array_equal(got, np.where((indices == 3)[..., None], 255, plain))
    solid = Image.new("RGB", (4, 4), (10, 20, 30))
    assert (decode(saved(solid, "PNG", transparency=(10, 20, 30)), "x") == 255).all()
    assert (decode(saved(Image.new("L", (4, 4), 9), "PNG", transparency=9), "x") == 255).all()


def test_cmyk_and_ycbcr(photo: Image.Image) -> None:
    for kind in ("JPEG", "TIFF"):
        got = decode(saved(photo.convert("CMYK"), kind), "x")
        assert np.abs(got.astype(int) - np.asarray(photo)).mean() < 6, kind
    np.testing.assert_array_equal(to_rgb(photo.convert("YCbCr")), np.asarray(photo.convert("YCbCr").convert("RGB")))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_keeps_the_upper_byte(kind: str) -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    got = decode(saved(Image.fromarray(values), kind), "x")
    np.testing.assert_array_equal(got, np.repeat((values >> 8).astype(np.uint8)[..., None], 3, axis=2))


def test_16_bit_transparent_grey_is_white() -> None:
    values = np.full((4, 4), 700, dtype=np.uint16)
    assert (decode(saved(Image.fromarray(values), "PNG", transparency=700), "x") == 255).all()


def test_32_bit_grey_only_within_16_bits() -> None:
    inside = np.array([[0, 65535]], dtype=np.int32)
    np.testing.assert_array_equal(decode(saved(Image.fromarray(inside), "TIFF"), "x")[0, :, 0], [0, 255])
    for outside in ([[0, 65536]], [[-1, 0]]):
        content = saved(Image.fromarray(np.array(outside, dtype=np.int32)), "TIFF")
        assert "outside 0..65535" in reason(content)


def test_kinds_without_a_defined_range_are_refused() -> None:
    assert "floating-point" in reason(saved(Image.fromarray(np.ones((3, 3), np.float32)), "TIFF"))
    lab = Image.new("LAB", (3, 3))
    assert reason(saved(lab, "TIFF")) == "colour mode LAB is not supported; convert it to RGB"
    with pytest.raises(ValueError, match="LAB"):
        to_rgb(lab)


def test_one_pixel() -> None:
    assert decode(saved(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG"), "x").tolist() == [[[1, 2, 3]]]


def test_a_bomb_is_refused_from_its_header() -> None:
    import tracemalloc

    tracemalloc.start()
    for width, height in [(50_000, 50_000), (10_001, 10_000), (2**31 - 1, 2**31 - 1)]:
        assert "million pixels" in reason(png_header(width, height))
        with pytest.raises(UnreadableImage, match="million pixels"):
            image_size(png_header(width, height), "x")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**22
    assert image_size(png_header(10_000, 10_000), "x") == (10_000, 10_000)
    assert MAX_PIXELS == 100_000_000


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
def test_truncated_files(photo: Image.Image, kind: str) -> None:
    content = saved(photo, kind)
    for keep in (0.1, 0.5, 0.9):
        why = reason(content[: int(len(content) * keep)])
        assert len(why) < 120
    if kind in ("JPEG", "PNG"):
        assert reason(content[: len(content) * 9 // 10]) == "truncated file"


def test_what_is_no_image(tmp_path: Path, photo: Image.Image) -> None:
    assert reason(b"") == "empty file"
    assert reason(b"hello, world").startswith("not a JPEG")
    assert reason(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n").startswith("a PDF or PostScript file")
    (tmp_path / "pointer.jpg").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    assert "`git lfs pull`" in reason(tmp_path / "pointer.jpg")
    assert "it is a web page" in reason(b"<html><body>404</body></html>")
    assert reason(tmp_path / "gone.jpg") == "no such file or directory"
    assert reason(tmp_path) == "is a directory"
    reason(png_header(0, 5))
    icon = saved(photo, "ICO")
    assert reason(icon).startswith("an icon; convert")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF"])
def test_flipped_bytes_never_escape(photo: Image.Image, kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Damage gives an image or an UnreadableImage: no warning (they are errors here), no other exception."""
    content = saved(photo, kind)
    random = np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(content)
        for position in random.integers(0, min(len(content), 400), 4):
            damaged[position] = random.integers(256)
        with contextlib.suppress(UnreadableImage):
            assert decode(bytes(damaged), "x").ndim == 3
    assert capfd.readouterr().out == ""


def test_pillow_warnings_stay_inside_and_filters_come_back(photo: Image.Image) -> None:
    before = list(warnings.filters)
    limit = Image.MAX_IMAGE_PIXELS
    # At 95 million pixels Pillow warns of a bomb; the policy allows them.
    assert image_size(png_header(9_500, 10_000), "x") == (9_500, 10_000)
    content = saved(photo, "JPEG")
    errors: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(50):
                decode(content, "x")
                image_size(png_header(9_500, 10_000), "x")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert list(warnings.filters) == before
    assert limit == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("kind", ["AVIF", "HEIF"])
def test_what_phones_write(kind: str) -> None:
    pillow_heif.register_heif_opener()
    image = np.zeros((48, 64, 3), np.uint8)
    image[:, :32] = (200, 60, 30)
    got = decode(saved(Image.fromarray(image), kind), "x")
    assert got.shape == image.shape
    assert np.abs(got.astype(int) - image)[:, [5, 60]].max() < 12


def test_an_avif_whose_brand_is_that_of_any_picture_of_its_container(monkeypatch: pytest.MonkeyPatch) -> None:
    content = saved(Image.new("RGB", (16, 16), (200, 60, 30)), "AVIF")
    assert content[4:12] == b"ftypavif"
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    got = decode(content[:8] + b"mif1" + content[12:], "x")
    assert np.abs(got.astype(int) - (200, 60, 30)).max() < 12


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000 file; convert it to PNG or TIFF"),
        (b"\xff\x0a", "a JPEG XL file; convert it to PNG or TIFF"),
        (b"8BPS\0\x01", "a Photoshop document; convert it to PNG or TIFF"),
        (b"%PDF-1.7", "a PDF or PostScript file; draw its pages as PNG"),
        (b"<?xml version='1.0'?>\n<!-- by -- hand -->\n<svg/>", "an SVG drawing; draw it as PNG"),
        (b"<!-- -->" * 60, "not a JPEG, PNG"),  # looked through in no time
        (b"\0" * 128 + b"DICM", "a DICOM file"),
        (b"\x5c\x01\0\0" + b"\0" * 340 + b"n+1\0", "a NIfTI volume"),
        (b"\0\0\0\x18ftypcrx ", "a camera's raw file"),
        (b"\0\0\0\x18ftypmp42", "a film"),
        (b"PK\x03\x04", "an archive; unpack it"),
        (b"\xff\xd8\xff\xe0", "begins as a JPEG does, and is damaged or only part of one"),
        (saved(Image.new("L", (2, 2)), "PNG").replace(b"IHDR", b"IHDX"), "begins as a PNG does"),
    ],
)
def test_what_a_file_is_that_is_no_picture(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(content + b"\1" * 600)
    assert reason(content + b"\1" * 600).startswith(said)
    assert reason(tmp_path / "x").startswith(said)


def raw(kind: str) -> bytes:
    if kind == "canon":  # what lies before the first page says it, after the bytes that every TIFF begins with
        tags = {256: 2, 257: 2, 258: 8, 259: 1, 262: 1, 273: 130, 277: 1, 278: 2, 279: 4}
        page = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, 4, 1, n) for tag, n in tags.items())
        return b"II*\0" + struct.pack("<I", 16) + b"CR\2\0\0\0\0\0" + page + b"\0" * 8
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as file:
        if kind == "below":
            file.write(np.zeros((4, 4, 3), np.uint8), photometric="rgb", subfiletype=1, subifds=1)
        file.write(np.zeros((16, 16), np.uint16), photometric=32803)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["below", "first", "canon"])
def test_a_cameras_raw_file_is_not_its_preview(kind: str) -> None:
    """Cameras put a preview before what the sensor saw, which hangs below it (NEF, ARW, DNG) or behind it (CR2)."""
    assert reason(raw(kind)).startswith("a camera's raw file; develop it to TIFF or JPEG")
    if kind == "canon":
        assert decode(raw(kind).replace(b"CR\2", b"\0\0\0"), "plain").shape == (2, 2, 3)


def test_heif_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    pillow_heif.register_heif_opener()
    content = saved(Image.new("RGB", (16, 16)), "HEIF")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    assert reason(content) == "HEIC needs another package: pip install 'dsdmae[heif]'"
    monkeypatch.setattr(files, "IMAGE_SUFFIXES", IMAGE_SUFFIXES - {".heic", ".heif", ".hif"})
    assert files.passed_over_words({".heic": 12, ".txt": 3}) == "12 .heic: pip install 'dsdmae[heif]', 3 .txt"
    assert files.passed_over_words({".nef": 2}) == "2 .nef: develop to TIFF or JPEG"


def test_suffixes_cover_what_is_decoded() -> None:
    assert {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"} <= IMAGE_SUFFIXES
    assert {".avif", ".heic", ".heif", ".hif"} <= IMAGE_SUFFIXES  # the tests' extra has HEIF's
    assert not IMAGE_SUFFIXES & {".eps", ".pdf", ".svg", ".ps", ".psd"}


def test_a_jpeg_by_the_name_that_windows_gives_it(tmp_path: Path, photo: Image.Image) -> None:
    for number in range(3):
        photo.save(tmp_path / f"{number}.JFIF", "JPEG")
    assert len(files.open_files(tmp_path).names) == 3
