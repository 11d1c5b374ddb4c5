"""TIFFs of instruments: floats, wide integers, bands and stacks go in and come back as they were."""

import io
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from dsdmae_cli.data.base import Refused
from dsdmae_cli.pictures import instrument
from dsdmae_cli.pictures.depths import brought_back, is_itself, limits_of, seen
from dsdmae_cli.pictures.picture import Picture, check_format, read, read_pages, write

RANDOM = np.random.default_rng(3)


def tif(values: np.ndarray, **how: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **how)
    return buffer.getvalue()


def written(picture: Picture) -> bytes:
    buffer = io.BytesIO()
    write([picture], buffer, ".tif")
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["float32", "float64", "float16", "int16", "uint32", "int32", "int64", "uint64"])
@pytest.mark.parametrize("bands", [1, 3, 13])
def test_numbers_of_every_kind_come_back(kind: str, bands: int) -> None:
    scale = {"float16": 1000, "int16": 9000}.get(kind, 70000)
    values = (RANDOM.normal(size=(19, 23, bands)) * scale).astype(np.float64 if kind.startswith("f") else np.int64)
    values = (np.abs(values) if kind.startswith("u") else values).astype(kind)
    how = {"photometric": "rgb" if bands == 3 else "minisblack", "planarconfig": "contig"} if bands > 1 else {}
    content = tif(
        values if bands > 1 else values[..., 0], **how, description="seen at 488 nm", resolution=(300, 150),
        resolutionunit="INCH", metadata=None,
    )  # fmt: skip
    picture = read(content, "x")
    np.testing.assert_array_equal(picture.pixels, values)
    assert picture.suffix == ".tif"
    again = read(written(picture), "x")
    np.testing.assert_array_equal(again.pixels, values)
    assert again.pixels.dtype == values.dtype
    assert again.mode == picture.mode
    if bands > 1:  # Pillow keeps the description of the others among EXIF's tags
        assert again.metadata.description == "seen at 488 nm"
    assert again.metadata.dpi == picture.metadata.dpi == (300, 150)


def test_what_holds_them() -> None:
    picture = read(tif(np.zeros((4, 4), np.float64)), "x")
    with pytest.raises(Refused, match=r"PNG cannot hold 64-bit L pixels as they are; write .tif"):
        check_format(picture, ".png")
    nir = tif(np.zeros((5, 6, 4), np.uint8), photometric="rgb", extrasamples=["unspecified"])
    assert read(nir, "x").mode == "4 bands"
    assert read(nir, "x").color_groups == [(0, 1, 2), (3,)]
    assert read(nir, "x").num_colors == 4


@pytest.mark.parametrize("shape", [(5, 9, 8), (2, 5, 9, 8)])
def test_tifffile_does_not_doubt_what_it_wrote_as_planes(
    shape: tuple[int, ...], caplog: pytest.LogCaptureFixture
) -> None:
    values = RANDOM.integers(0, 65535, shape, dtype=np.uint16)
    content = tif(values, photometric="minisblack", planarconfig="separate")
    buffer = io.BytesIO()
    write([read(content, "x", page=page) for page in range(len(values) if values.ndim == 4 else 1)], buffer, ".tif")
    again = tifffile.imread(io.BytesIO(buffer.getvalue()))
    np.testing.assert_array_equal(again, np.moveaxis(values, -3, -1))
    assert not caplog.records


def test_pages_of_a_stack() -> None:
    stack = RANDOM.integers(100, 1000, (5, 12, 9), np.uint16)
    for compressed in ({}, {"compression": "zlib"}):
        content = tif(stack, **compressed)
        pages = [read(content, "x", page=number) for number in range(5)]
        assert pages[0].pages == (0, 1, 2, 3, 4)
        np.testing.assert_array_equal(np.stack([page.pixels[..., 0] for page in pages]), stack)
    buffer = io.BytesIO()
    instrument.write(pages, buffer)
    np.testing.assert_array_equal(tifffile.imread(io.BytesIO(buffer.getvalue())), stack)
    assert pages[0].suffix == ".tif"


@pytest.mark.parametrize("subifds", [0, 2])
@pytest.mark.parametrize("count", [1, 3])
def test_overviews_and_masks_are_no_pages(count: int, subifds: int) -> None:
    """As maps are written for the cloud, copies between the pages; as OME writes them, below the pages."""
    pages, buffer = RANDOM.integers(0, 255, (count, 64, 48, 3), np.uint8), io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        for page in pages:
            writer.write(page, photometric="rgb", subifds=subifds, metadata=None)
            for step in (2, 4):
                writer.write(page[::step, ::step], photometric="rgb", subfiletype=1, metadata=None)
        if not subifds:
            writer.write(pages[0][..., 0] > 99, photometric="mask", subfiletype=4, metadata=None)
    first = read(buffer.getvalue(), "x")
    assert len(first.pages) == first.frames == count
    assert first.beside == 2 * count + (not subifds)
    for page, number in zip(pages, first.pages, strict=True):
        np.testing.assert_array_equal(read(buffer.getvalue(), "x", page=number).pixels, page)


@pytest.mark.parametrize("kind", ["uint16", "float32", "int32"])
def test_only_what_was_changed_goes_back(kind: str) -> None:
    values = RANDOM.uniform(100, 1000, (40, 30, 1)).astype(kind)
    values[0, 0], values[5, 5] = 60000, -3000 if kind != "uint16" else 0
    given = Picture.of(values) if kind == "uint16" else Picture(values, "L")
    limits = limits_of([given])
    assert limits is not None
    assert limits[1] < 1100
    before = seen(given, limits)
    expected = np.clip((values.astype(np.float64) - limits[0]) / (limits[1] - limits[0]) * 65535, 0, 65535)
    assert np.abs(before.pixels - expected).max() <= 0.5
    np.testing.assert_array_equal(brought_back(given, before, before, limits).pixels, values)
    change = RANDOM.integers(-900, 900, values.shape)
    after = before.with_pixels((before.pixels.astype(int) + change).clip(0, 65535).astype(np.uint16))
    moved = (after.pixels.astype(int) - before.pixels) * (limits[1] - limits[0]) / 65535
    wanted = values + moved if kind == "float32" else np.rint(values + moved)
    assert np.abs(brought_back(given, before, after, limits).pixels - wanted).max() < (0.01 if kind == "float32" else 1)


def test_pictures_that_use_all_of_their_bits_are_left_alone() -> None:
    full = Picture.of(RANDOM.integers(0, 65535, (8, 8, 3), np.uint16))
    assert limits_of([full]) == (0, 65535)
    assert seen(full, (0, 65535)) is full
    assert brought_back(full, full, full, (0, 65535)) is full
    eight = Picture.of(np.zeros((3, 3, 3), np.uint8))
    assert limits_of([eight]) is None
    assert is_itself(eight, (10, 20))


def test_colours_are_called_what_they_were() -> None:
    """CMYK stacks and RGB with a band more are what every viewer opens; of five samples the last stays alpha."""
    cmyk = tif(RANDOM.integers(0, 255, (2, 9, 8, 4), np.uint8), photometric="separated", metadata=None)
    pages = [read(cmyk, "x", page=number) for number in range(2)]
    buffer = io.BytesIO()
    write(pages, buffer, ".tif")
    nir = tif(RANDOM.integers(0, 255, (9, 8, 4), np.uint8), photometric="rgb", extrasamples=["unspecified"])
    five = tif(
        RANDOM.integers(0, 9999, (9, 8, 5), np.uint16), photometric="rgb", extrasamples=["unspecified", "unassalpha"]
    )
    for content, again in ((cmyk, buffer.getvalue()), (nir, written(read(nir, "x"))), (five, written(read(five, "x")))):
        with tifffile.TiffFile(io.BytesIO(content)) as one, tifffile.TiffFile(io.BytesIO(again)) as other:
            assert one.pages.first.photometric == other.pages.first.photometric
            assert one.pages.first.extrasamples == other.pages.first.extrasamples
            np.testing.assert_array_equal(one.asarray(), other.asarray())
    with Image.open(io.BytesIO(buffer.getvalue())) as image:
        assert (image.mode, image.n_frames) == ("CMYK", 2)  # type: ignore[attr-defined]


@pytest.mark.parametrize("shape", [(9, 8), (2, 9, 8), (9, 8, 3)])
@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32"])
def test_size_words_and_place_come_back(kind: str, shape: tuple[int, ...]) -> None:
    """As ImageJ, OME and GDAL write them: pixels per µm with no unit, words of a microscope, where on Earth."""
    geo = [
        (33550, "d", 3, (0.5, 0.5, 0.0), True), (33922, "d", 6, (0.0, 0.0, 0.0, 4e5, 5e6, 0.0), True),
        (34735, "H", 8, (1, 1, 0, 1, 1024, 0, 1, 1), True), (34737, "s", 0, "WGS 84|", True),
    ]  # fmt: skip
    content = tif(
        RANDOM.integers(0, 255, shape).astype(kind), resolution=((46511, 3000), (46511, 3000)), resolutionunit=1,
        photometric="rgb" if shape[-1] == 3 else "minisblack", extratags=geo, metadata=None,
        description="unit=µm".encode(),
    )  # fmt: skip
    pages = [read(content, "x", page=number) for number in read(content, "x").pages]
    assert pages[0].suffix == ".tif"
    buffer = io.BytesIO()
    write(pages, buffer, ".tif")
    with tifffile.TiffFile(io.BytesIO(content)) as one, tifffile.TiffFile(io.BytesIO(buffer.getvalue())) as other:
        np.testing.assert_array_equal(one.asarray(), other.asarray())
        first = other.pages.first.tags
        for code in (282, 283, 296, 33550, 33922, 34735, 34737):
            was = one.pages.first.tags[code]
            assert (first[code].dtype, first[code].value) == (was.dtype, was.value), code
        assert first[270].value == "unit=µm"


def test_a_page_of_a_stack_is_read_without_counting_all(monkeypatch: pytest.MonkeyPatch) -> None:
    stack = RANDOM.integers(0, 999, (3, 9, 8), np.uint16)
    content = tif(stack, photometric="minisblack", metadata=None)
    monkeypatch.setattr(tifffile.TiffPages, "__len__", lambda _: pytest.fail("counted"))
    np.testing.assert_array_equal(read(content, "x", page=1).pixels[..., 0], stack[1])


def test_a_stack_is_opened_once_whatever_its_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each opening walks through all pages before the one that is asked for."""
    stack = RANDOM.integers(0, 999, (5, 9, 8), np.uint16)
    opened: list[Any] = []
    made = tifffile.TiffFile.__init__

    def make(self: tifffile.TiffFile, file: Any, *given: Any, **more: Any) -> None:
        opened.append(file)
        made(self, file, *given, **more)

    monkeypatch.setattr(tifffile.TiffFile, "__init__", make)
    for content in (tif(stack, photometric="minisblack", metadata=None), stack_of_palettes(stack)):
        opened.clear()
        pages = read_pages(content, "x")
        assert len(opened) == 2  # to count the pages, and to read all behind the first
        alone = [read(content, "x", page=number) for number in (1, 2, 3, 4)]
        for page, known in zip(pages[1:], alone, strict=True):
            np.testing.assert_array_equal(page.pixels, known.pixels)
            assert page.metadata == known.metadata
    np.testing.assert_array_equal(np.stack([page.pixels[..., 0] for page in pages]), stack % 7 * 40)


def stack_of_palettes(stack: np.ndarray) -> bytes:
    """Which Pillow reads page by page."""
    pages = []
    for values in stack:
        page = Image.fromarray((values % 7).astype(np.uint8), "P")
        page.putpalette([40 * (number % 7) for number in range(256) for _ in range(3)])
        pages.append(page)
    buffer = io.BytesIO()
    pages[0].save(buffer, "TIFF", save_all=True, append_images=pages[1:])
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["uint8", "int32", "int64", "uint64"])
def test_what_is_beyond_a_type_becomes_its_end(kind: str) -> None:
    info = np.iinfo(kind)
    least, most = instrument.lossless(np.array([-1e30, 1e30]), np.zeros(1, kind)).tolist()
    assert least == info.min
    assert most == pytest.approx(info.max, rel=1e-15)
    assert most <= info.max
