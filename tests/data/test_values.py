"""Pictures of more than 8 bits and of other bands: what is black and white is said by the data."""

import io
import struct
import tomllib
import zlib
from pathlib import Path
from typing import Any

import image_files as F
import numpy as np
import pytest
import tifffile
from helpers import cli
from PIL import Image

from dsdmae_builtin import folder
from dsdmae_cli.config.resolve import resolve_data
from dsdmae_cli.data.account import take_account
from dsdmae_cli.data.base import UnreadableImage
from dsdmae_cli.data.decode import decode, deep_values, image_form, image_size
from dsdmae_cli.data.open import open_dataset
from dsdmae_cli.data.values import Reading, Values, sampled_range
from dsdmae_cli.pictures.picture import read
from dsdmae_cli.settings.models import DataSettings


def tif(values: np.ndarray, **how: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **how)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def grey() -> np.ndarray:
    """A photograph in 0..1."""
    return F.crops(1, 48)[0].astype(np.float64).mean(axis=2) / 255


def microscope(grey: np.ndarray, low: float = 100, high: float = 1000) -> np.ndarray:
    return np.rint(low + grey * (high - low)).astype(np.uint16)


def test_the_range_of_twelve_bits_in_sixteen(grey: np.ndarray) -> None:
    values = microscope(grey)
    low, high = sampled_range([Values(values[..., None])]) or (0, 0)
    assert values.min() <= low < np.percentile(values, 1)
    assert np.percentile(values, 99) < high <= values.max()
    shown = decode(tif(values), "x", Reading((low, high)))[..., 0]
    assert shown.min() == 0
    assert shown.max() == 255
    assert np.corrcoef(shown.ravel(), values.ravel())[0, 1] > 0.999


def test_a_hot_pixel_decides_nothing(grey: np.ndarray) -> None:
    values = microscope(np.tile(grey, (2, 2)))
    values[3, 3] = 65535
    limits = sampled_range([Values(values[..., None])])
    assert limits is not None
    assert limits[1] < 1100


def test_values_that_use_sixteen_bits_keep_them(grey: np.ndarray) -> None:
    values = microscope(grey, 0, 65535)
    assert sampled_range([Values(values[..., None])]) == (0.0, 65535.0)
    by_format, by_range = decode(tif(values), "x"), decode(tif(values), "x", Reading((0, 65535)))
    assert np.abs(by_format.astype(int) - by_range).max() <= 1


def test_one_range_for_all_and_none_for_eight_bits(grey: np.ndarray) -> None:
    dark, bright = microscope(grey, 100, 300), microscope(grey, 700, 900)
    low, high = sampled_range([Values(x[..., None]) for x in (dark, bright)]) or (0, 0)
    assert low < 110
    assert high > 890
    assert sampled_range([Values(np.zeros((4, 4, 1), np.uint8))]) is None
    assert sampled_range([]) is None
    assert sampled_range([Values(np.full((4, 4, 1), 700, np.uint16))]) == (700.0, 701.0)
    assert sampled_range([Values(np.full((4, 4, 1), np.nan, np.float32))]) is None


@pytest.mark.parametrize("kind", ["float16", "float32", "float64", "int16", "int32", "uint32", "uint16"])
def test_every_type_by_the_formula(grey: np.ndarray, kind: str) -> None:
    values = (grey * 2000 - (0 if kind.startswith("u") else 1000)).astype(kind)
    got = decode(tif(values), "x", Reading((-500, 1500)))
    wanted = np.clip((values.astype(np.float64) + 500) / 2000 * 255, 0, 255)
    assert np.abs(got[..., 0] - wanted).max() <= 0.51
    assert (got[..., 0] == got[..., 2]).all()
    found = deep_values(tif(values), "x")
    assert found is not None
    np.testing.assert_array_equal(found.pixels[..., 0], values)
    form = image_form(tif(values), "x")
    assert (form.width, form.height, form.is_deep, form.floating) == (48, 48, True, kind.startswith("f"))


def test_what_is_no_number_is_black(grey: np.ndarray) -> None:
    values = grey.astype(np.float32)
    values[0, :3] = [np.nan, np.inf, -np.inf]
    assert decode(tif(values), "x", Reading((0, 1)))[0, :3, 0].tolist() == [0, 255, 0]


@pytest.mark.parametrize("planes", ["contig", "separate"])
def test_bands_are_chosen_and_never_dropped(grey: np.ndarray, planes: str) -> None:
    bands = np.stack([grey * 100, grey * 200, 255 - grey * 255, grey * 50], axis=2).astype(np.uint8)
    laid = bands if planes == "contig" else np.moveaxis(bands, 2, 0)
    content = tif(laid, photometric="rgb", planarconfig=planes, extrasamples=["unspecified"])
    with pytest.raises(UnreadableImage, match=r"4 bands, neither grey nor RGB; .* data.bands"):
        decode(content, "x")
    np.testing.assert_array_equal(decode(content, "x", Reading(bands=(4, 3, 1))), bands[..., [3, 2, 0]])
    np.testing.assert_array_equal(decode(content, "x", Reading(bands=(4,)))[..., 1], bands[..., 3])
    with pytest.raises(UnreadableImage, match="names band 5 and the picture has 4"):
        decode(content, "x", Reading(bands=(5,)))
    assert image_size(content, "x") == (48, 48)
    assert str(image_form(content, "x")) == "4 bands of 8 bits"


def test_thirteen_bands_of_a_satellite(grey: np.ndarray) -> None:
    bands = np.stack([microscope(grey, 10 * n, 900) for n in range(13)], axis=2)
    content = tif(bands, photometric="minisblack", planarconfig="contig", compression="zlib")
    shown = decode(content, "x", Reading((0, 900), (4, 3, 2)))
    assert np.abs(shown[..., 0] - bands[..., 3] / 900 * 255).max() <= 0.51
    assert decode(F.png(F.crops(1, 8)[0]), "x", Reading(bands=(2,))).shape == (8, 8, 3)


def test_colour_of_sixteen_bits_in_planes_with_alpha_and_turned(grey: np.ndarray) -> None:
    rgb = np.stack([microscope(grey), microscope(1 - grey), microscope(grey, 0, 500)], axis=2)
    how = Reading((0, 1000))
    plain = decode(tif(rgb, photometric="rgb"), "x", how)
    assert np.abs(plain - np.clip(rgb / 1000 * 255, 0, 255)).max() <= 0.51
    planes = tif(np.moveaxis(rgb, 2, 0), photometric="rgb", planarconfig="separate")
    np.testing.assert_array_equal(decode(planes, "x", how), plain)
    opaque = np.where(grey > grey.mean(), 65535, 0).astype(np.uint16)[..., None]
    over_white = decode(
        tif(np.concatenate([rgb, opaque], axis=2), photometric="rgb", extrasamples=["unassalpha"]), "x", how
    )
    np.testing.assert_array_equal(over_white, np.where(opaque > 0, plain, 255))
    turned = tif(np.moveaxis(rgb[:40], 2, 0), photometric="rgb", planarconfig="separate",
                 extratags=[(274, "H", 1, 6, True)])  # fmt: skip
    assert image_size(turned, "x") == (40, 48)
    np.testing.assert_array_equal(decode(turned, "x", how), np.rot90(plain[:40], -1))


def test_png_of_sixteen_bits_keeps_what_the_upper_byte_loses(grey: np.ndarray) -> None:
    buffer = io.BytesIO()
    Image.fromarray(microscope(grey)).save(buffer, "PNG")
    shown = decode(buffer.getvalue(), "x", Reading((100, 1000)))
    assert np.abs(shown[..., 0] - grey * 255).max() <= 0.7
    assert decode(buffer.getvalue(), "x").max() <= 3  # what the format says is nearly black


def test_damaged_and_hostile_tiffs_are_the_files_fault(grey: np.ndarray) -> None:
    whole = tif(grey.astype(np.float64), compression="zlib")
    for cut in (5, 60, len(whole) // 2):
        with pytest.raises(UnreadableImage):
            decode(whole[:cut], "x", Reading((0, 1)))
    with pytest.raises(UnreadableImage, match="type complex64 have no grey value"):
        decode(tif(grey.astype(np.complex64)), "x", Reading((0, 1)))
    big = bytearray(tif(np.zeros((4, 4), np.float64)))
    with tifffile.TiffFile(io.BytesIO(big)) as file:
        places = [file.pages.first.tags[name].valueoffset for name in ("ImageWidth", "ImageLength")]
    for place in places:
        big[place : place + 2] = b"\xff\xff"  # 65535 columns and rows
    with pytest.raises(UnreadableImage, match="65535x65535 is more than 100 million pixels"):
        decode(bytes(big), "x", Reading((0, 1)))


# -- a folder of them


@pytest.fixture(scope="module")
def slides(grey: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 12-bit pictures."""
    root = tmp_path_factory.mktemp("slides")
    crops = F.crops(24, 16).mean(axis=3) / 255
    return F.write(root, {f"{'ab'[n % 2]}/{n:02}.tif": tif(microscope(crop)) for n, crop in enumerate(crops)})


def test_a_folder_has_one_range_which_is_printed_kept_and_used(
    slides: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    limits = folder.value_range(F.of(slides))
    assert limits is not None
    assert 90 <= limits[0] < 250
    assert 700 < limits[1] <= 1000
    images = open_dataset(F.of(slides), "train")
    assert np.stack([images.load(i) for i in range(len(images))]).std() > 30
    run = tmp_path / "run"
    small = ["--preset", "quick", "--epochs", "1", "--batch-size", "4", "--set", "backbone.depth=1"]
    small += ["--set", "train.knn_every=none", "--dataset", f"folder:{slides}"]
    code, _, err = cli(capfd, "pretrain", *small, "--out", run)
    assert code == 0, err
    assert f"grey of 16 bits; {limits[0]:g} to {limits[1]:g} are shown as black to white" in err
    assert tomllib.loads((run / "settings.toml").read_text())["data"]["range"] == list(limits)
    code, said, err = cli(capfd, "probe", run, "--dry-run")
    assert code == 0, err
    assert f"{limits[0]:g} to {limits[1]:g} are shown" in said
    dark = F.write(tmp_path / "dark", {f"{n}.tif": tif(np.full((16, 16), 100 + n, np.uint16)) for n in range(4)})
    code, said, err = cli(capfd, "embed", run, "--dataset", dark, "--out", tmp_path / "dark.npz", "--pool", "mean")
    assert code == 0, err
    features = np.load(tmp_path / "dark.npz")["features"]
    assert np.abs(features - features[0]).max() < 0.2  # by their own range they would be black to white


@pytest.mark.parametrize(
    ("given", "range_"),
    [("12", (0, 4095)), ("100,1000", (100, 1000)), ([100, 1000], (100, 1000)), ("none", None), (16, (0, 65535))],
)
def test_what_data_range_takes(slides: Path, given: object, range_: object) -> None:
    settings = DataSettings.model_validate({"dataset": f"folder:{slides}", "range": given})
    assert settings.range == range_
    assert resolve_data(settings).range == range_


@pytest.mark.parametrize("given", ["1000,100", "0", "33", "5,5", "nan,3", "wide"])
def test_what_it_does_not_take(given: str, capfd: pytest.CaptureFixture[str]) -> None:
    code, _, err = cli(capfd, "pretrain", "--set", f"data.range={given}", "--dry-run")
    assert code == 2
    assert "data.range" in err
    assert len(err.splitlines()) == 1


def test_eight_bits_stay_as_they_are(tmp_path: Path) -> None:
    crops = F.crops(6, 8)
    root = F.write(tmp_path, {f"{n}.png": F.png(crop) for n, crop in enumerate(crops)})
    settings = F.of(root, range=(100, 200))
    assert folder.value_range(F.of(root)) is None
    assert resolve_data(F.of(root)).range is None
    images = open_dataset(settings, "train")
    loaded = {images.name(i): images.load(i) for i in range(len(images))}
    for name, image in loaded.items():
        np.testing.assert_array_equal(image, crops[int(Path(name).stem)])


def test_the_account_says_what_there_is(slides: Path, tmp_path: Path) -> None:
    for kind in ("a", "b"):
        F.write(tmp_path, {f"{kind}/{path.name}": path.read_bytes() for path in (slides / kind).iterdir()})
    F.write(tmp_path, {"a/x.jpg": F.jpeg(F.crops(1, 40)[0]), "b/broken.png": F.png(F.crops(1, 9)[0])[:60]})
    settings = F.of(tmp_path)
    splits = {"training": open_dataset(settings, "train"), "held-out": open_dataset(settings, "test")}
    data, images, readable = take_account(splits, (100, 1000), decoded=True).lines()
    assert data == "data      25 training and 1 held-out images in 2 classes: a, b"
    assert images == (
        "images    16 to 40 px wide and 16 to 40 px high, grey of 16 bits (24); RGB of 8 bits (1);"
        " 100 to 1000 are shown as black to white; grey is seen as RGB (data.channels)"
    )
    assert readable.startswith("readable  1 of all 26 cannot be read (")
    assert "broken.png: truncated file" in readable
    assert "; 0 to 65535 are shown as black to white" in take_account(splits, None).lines()[1]


def test_bands_of_a_command_line(capfd: pytest.CaptureFixture[str]) -> None:
    code, _, err = cli(capfd, "pretrain", "--set", "data.bands=[1,0]", "--dry-run")
    assert code == 2
    assert "data.bands" in err


@pytest.mark.parametrize("limits", [None, (0.0, 4095.0)])
def test_grey_whose_zero_is_white_is_no_negative(grey: np.ndarray, limits: tuple[float, float] | None) -> None:
    """Pillow turns such grey of 8 bits round, and hands out more bits as they are."""
    top = 65535 if limits is None else 4095
    values = np.rint(grey * top).astype(np.uint16)
    content = tif(top - values, photometric="miniswhite")
    for how in (Reading(limits), Reading(limits, channels=1)):
        shown = decode(content, "x", how)[..., 0]
        assert np.corrcoef(shown.ravel(), values.ravel())[0, 1] > 0.999
        assert abs(shown.astype(int).max() - round(255 * int(values.max()) / top)) <= 1
    nothing = decode(
        tif(values, photometric="miniswhite", extratags=[(42113, "s", 0, "7", True)]), "x", Reading(limits)
    )
    assert not nothing[values == 7].any()
    eight = np.rint(grey * 255).astype(np.uint8)
    stack = tif(np.stack([255 - eight] * 2), photometric="miniswhite", metadata=None)  # pages for bands: by tifffile
    np.testing.assert_array_equal(decode(stack, "x", Reading(channels=2)), np.stack([eight] * 2, axis=-1))


def test_signed_bytes_have_a_range_that_is_said(grey: np.ndarray, tmp_path: Path) -> None:
    root = F.write(tmp_path / "set", {f"{n}.tif": tif(np.rint(grey * 200 - 100).astype(np.int8)) for n in range(4)})
    data = resolve_data(F.of(root))
    account = take_account({"training": open_dataset(data, "train")}, data.range, decoded=True)
    assert "grey of 8 bits with a sign; -" in account.lines()[1]
    assert "are shown as black to white" in account.lines()[1]


def test_big_tiffs_of_either_byte_order(grey: np.ndarray) -> None:
    values = microscope(grey)
    for order in ("<", ">"):
        content = tif(values, bigtiff=True, byteorder=order)
        found = deep_values(content, order)
        assert found is not None
        np.testing.assert_array_equal(found.pixels[..., 0], values)
        assert str(image_form(content, order)) == "grey of 16 bits"


def test_grey_and_alpha_of_sixteen_bits_are_called_so(grey: np.ndarray) -> None:
    pixels = np.stack([microscope(grey), np.full(grey.shape, 65535)], axis=2).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", grey.shape[1], grey.shape[0], 16, 4, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    form = image_form(content, "x")
    assert (form.bands, str(form), form.is_grey) == (2, "grey with transparency of 16 bits", True)


def test_smaller_copies_are_no_stack_and_hidden_frames_are_one(grey: np.ndarray) -> None:
    """As maps are written for the cloud, with overviews; and as ImageJ writes more than 4 GB, with one page."""
    buffer, values = io.BytesIO(), microscope(grey)
    with tifffile.TiffWriter(buffer) as writer:
        writer.write(values, photometric="minisblack", tile=(16, 16))
        writer.write(values[::2, ::2], photometric="minisblack", subfiletype=1)
    assert image_form(buffer.getvalue(), "x").pages == 1
    between = io.BytesIO()
    with tifffile.TiffWriter(between) as writer:  # each page before its copy: the copies are no bands either
        for page in (values, values[::2, ::2], 2 * values, values[::2, ::2]):
            writer.write(page, photometric="minisblack", subfiletype=int(len(page) < len(values)), metadata=None)
    two = decode(between.getvalue(), "x", Reading((0.0, 2.0 * values.max()), channels=2))
    assert two.shape == (48, 48, 2)
    assert np.abs(two[..., 1].astype(int) - 2 * two[..., 0].astype(int)).max() <= 1
    assert image_form(tif(np.stack([values] * 3), photometric="minisblack", truncate=True), "x").pages == 3
    assert image_form(tif(np.stack([values] * 3), imagej=True), "x").pages == 3


@pytest.mark.parametrize("photometric", ["minisblack", "rgb"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("before", [(1,), (4, 1)])
def test_an_overview_or_a_mask_before_the_picture_is_not_taken_for_it(
    before: tuple[int, ...], dtype: type, photometric: str
) -> None:
    """Of every reader (Pillow, and tifffile for floating point): size, kind, pixels, and those that denoise takes."""
    shape = (48, 32, 3) if photometric == "rgb" else (48, 32)
    values: np.ndarray = np.random.default_rng(0).integers(0, 255, shape).astype(dtype)
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        for kind in before:
            if kind == 4:
                writer.write(np.zeros((48, 32), bool), photometric="mask", subfiletype=kind, metadata=None)
            else:
                writer.write(np.zeros_like(values[::2, ::2]), photometric=photometric, subfiletype=1, metadata=None)
        writer.write(values, photometric=photometric, metadata=None)
        writer.write(values[::4, ::4], photometric=photometric, subfiletype=1, metadata=None)
    content = buffer.getvalue()
    found = image_form(content, "x")
    assert (found.width, found.height, found.pages) == (32, 48, 1)
    shown = decode(content, "x", Reading((0.0, 255.0)))
    np.testing.assert_array_equal(shown, np.broadcast_to(values.reshape(48, 32, -1), (48, 32, 3)).astype(np.uint8))
    picture = read(content, "x")
    np.testing.assert_array_equal(picture.pixels, values.reshape(48, 32, -1))
    assert (picture.frames, picture.beside) == (1, len(before) + 1)
    alone = io.BytesIO()
    tifffile.imwrite(alone, values, photometric=photometric, subfiletype=1)  # nothing else is there: it is the picture
    assert decode(alone.getvalue(), "x", Reading((0.0, 255.0))).shape == (48, 32, 3)


@pytest.mark.parametrize("bits", [12, 16])
@pytest.mark.parametrize("kind", ["assocalpha", "unassalpha"])
def test_alpha_of_twelve_bits_in_sixteen(kind: str, bits: int, grey: np.ndarray) -> None:
    """Half of the picture is opaque, half of it half transparent, over white; premultiplied or not."""
    full = 2**bits - 1
    opaque = np.where(np.arange(48) < 24, 1.0, 0.5) * np.ones((48, 1))
    alpha = np.rint(full * opaque)
    colors = np.rint(grey * full * (alpha / full if kind == "assocalpha" else 1))
    content = tif(np.stack([colors] * 3 + [alpha], 2).astype(np.uint16), photometric="rgb", extrasamples=[kind])
    shown = decode(content, "x", Reading((0.0, float(full))))
    expected = np.rint(255 * (1 - opaque * (1 - grey)))
    assert np.abs(shown[..., 0].astype(int) - expected).max() <= 1


def test_colour_of_sixteen_bits_in_ppm_keeps_its_upper_bits(grey: np.ndarray) -> None:
    values = np.stack([np.rint(grey * 4095)] * 3, axis=2).astype(">u2")
    content = b"P6 48 48 4095\n" + values.tobytes()
    assert np.abs(decode(content, "x")[..., 0].astype(int) - 255 * grey).max() <= 1


@pytest.mark.parametrize("kind", [np.float64, np.uint32, np.int32])
def test_a_range_far_from_zero_keeps_its_greys(kind: type) -> None:
    """In floats of 32 bits 2,000,000,000 and 2,000,000,100 are one number: five greys were left."""
    values: np.ndarray = np.linspace(2e9, 2e9 + 1020, 256).astype(kind).reshape(16, 16, 1)
    shown = Values(values).shown(Reading((2e9, 2e9 + 1020)))
    np.testing.assert_array_equal(shown[..., 0], np.arange(256).reshape(16, 16))
