"""`dsdmae denoise` on what instruments write: 12 bits in 16, floats, stacks of pages."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from helpers import cli, one_line
from PIL import Image
from sklearn.datasets import load_sample_image

from dsdmae_cli.pictures import picture as pictures
from dsdmae_cli.report.counted import Counted


@pytest.fixture(scope="module")
def slide() -> tuple[np.ndarray, np.ndarray]:
    """A grey photograph in 100..1000 of 16 bits, clean and with Gaussian noise of σ = 40."""
    clean = np.asarray(Image.fromarray(load_sample_image("china.jpg")[100:228, 200:360]).convert("L")) / 255
    values = 100 + 900 * clean
    noisy = np.random.default_rng(0).normal(values, 40).clip(0)
    return np.rint(values).astype(np.uint16), np.rint(noisy).astype(np.uint16)


def in_range(one: np.ndarray, other: np.ndarray, peak: float = 900) -> float:
    return float(10 * np.log10(peak**2 / np.square(one.astype(float) - other).mean()))


@pytest.mark.parametrize("kind", ["uint16", "float32", "float64", "int32"])
def test_twelve_bits_in_sixteen_lose_their_noise(
    kind: str, slide: tuple[np.ndarray, np.ndarray], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    clean, noisy = (x.astype(kind) for x in slide)
    scale = {"uint16": 1, "int32": 1000}.get(kind, 1e-3)
    tifffile.imwrite(tmp_path / "slide.tif", (noisy * scale).astype(kind))
    tifffile.imwrite(tmp_path / "clean.tif", (clean * scale).astype(kind))
    code, out, err = cli(capfd, "denoise", tmp_path / "slide.tif", "--reference", tmp_path / "clean.tif", "--json")
    assert code == 0, err
    [record] = json.loads(out)["pictures"]
    assert record["changed"]
    assert record["found"] in ("white noise", "strong noise")
    low, high = record["range"]
    assert low < 150 * scale
    assert 900 * scale < high < 1150 * scale
    assert record["output"].endswith(".tif")
    result = tifffile.imread(record["output"])
    assert result.dtype == kind
    assert in_range(result / scale, clean) > in_range(noisy, clean) + 2
    assert record["restored_psnr"] - record["noisy_psnr"] > 2


def test_a_tiff_stays_one_with_its_words_and_units(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """But 16-bit colour with tables of EXIF, which tifffile does not write, and PNG holds."""
    colour = load_sample_image("china.jpg")[100:164, 200:280]
    grey = colour[..., 0].astype(np.uint16) * 16
    tifffile.imwrite(tmp_path / "ij.tif", grey, imagej=True, resolution=(10, 10), metadata={"unit": "um"})
    inch = {"resolution": (300, 300), "resolutionunit": "INCH", "description": "scan", "photometric": "rgb"}
    tifffile.imwrite(tmp_path / "deep.tif", colour.astype(np.uint16) * 257, **inch)
    tifffile.imwrite(tmp_path / "plain.tif", colour, **inch)
    code, _, err = cli(capfd, "denoise", *tmp_path.glob("*.tif"), "--out", tmp_path / "out", "--strength", "1")
    assert code == 0, err
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"ij.tif", "deep.tif", "plain.tif", "report.html"}
    for name, words, unit in (("ij", "ImageJ=", 1), ("deep", "scan", 2), ("plain", "scan", 2)):
        with (
            tifffile.TiffFile(tmp_path / f"{name}.tif") as before,
            tifffile.TiffFile(tmp_path / "out" / f"{name}.tif") as after,
        ):
            was, is_now = before.pages[0], after.pages[0]
            assert is_now.description.startswith(words)
            assert (is_now.dtype, is_now.shape, is_now.tags[296].value) == (was.dtype, was.shape, unit)
            assert [is_now.tags[code].value for code in (282, 283)] == [was.tags[code].value for code in (282, 283)]
            assert after.is_imagej == before.is_imagej
    exif = Image.Exif()
    exif[0x8769] = {33434: 0.01}  # exposure
    deep = pictures.read(tmp_path / "deep.tif", "it")
    assert deep.suffix == ".tif"
    assert replace(deep, metadata=deep.metadata._replace(exif=exif.tobytes())).suffix == ".png"


def test_a_stack_is_denoised_page_by_page(
    slide: tuple[np.ndarray, np.ndarray], tmp_path: Path, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    clean, noisy = slide
    stack = np.stack([noisy, noisy[::-1], noisy[:, ::-1]])
    tifffile.imwrite(tmp_path / "stack.tif", stack, photometric="minisblack", metadata=None, description="z = 3")
    shares: list[float] = []
    advance = Counted.advance

    def noted(report: Counted, done: int, total: int) -> None:
        shares.append(done / total)
        advance(report, done, total)

    monkeypatch.setattr(Counted, "advance", noted)
    code, out, err = cli(capfd, "denoise", tmp_path / "stack.tif")
    assert code == 0, err
    assert shares == sorted(shares)  # of the stack, not of each page
    assert "3 pages" in out
    with tifffile.TiffFile(tmp_path / "stack.denoised.tif") as file:
        assert file.pages.first.description == "z = 3"
        result = file.asarray()
    assert result.shape == stack.shape
    for page, wanted, given in zip(result, (clean, clean[::-1], clean[:, ::-1]), stack, strict=True):
        assert in_range(page, wanted) > in_range(given, wanted) + 2
    code, _, err = cli(capfd, "denoise", tmp_path / "stack.tif", "--reference", tmp_path / "stack.tif", "--force")
    assert code == 2
    assert "a stack of 3 pages is compared with nothing" in one_line(err)


def test_one_range_for_a_batch_or_a_given_one(
    slide: tuple[np.ndarray, np.ndarray], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    _, noisy = slide
    for name, values in (("a", noisy[:64, :64]), ("b", (noisy[:64, :64] / 3).astype(np.uint16))):
        tifffile.imwrite(tmp_path / f"{name}.tif", values)
    ranges = {}
    for chosen in ("auto", "batch", "12", "50,1500", "none"):
        code, out, err = cli(capfd, "denoise", tmp_path, "--range", chosen, "--json", "--force")
        assert code == 0, err
        ranges[chosen] = [record["range"] for record in json.loads(out)["pictures"]]
    assert ranges["auto"][0] != ranges["auto"][1]
    assert ranges["batch"][0] == ranges["batch"][1]
    assert ranges["batch"][0][1] == pytest.approx(ranges["auto"][0][1], rel=0.1)
    assert ranges["12"] == [[0, 4095]] * 2
    assert ranges["50,1500"] == [[50, 1500]] * 2
    assert ranges["none"] == [None, None]
    for wrong in ("1500,50", "wide", "40", "nan,3"):
        code, _, err = cli(capfd, "denoise", tmp_path, "--range", wrong)
        assert code == 2
        assert f"--range {wrong} is not allowed" in one_line(err)


def test_what_has_no_range_is_refused_in_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tifffile.imwrite(tmp_path / "float.tif", np.full((32, 32), 0.5, np.float32))
    tifffile.imwrite(tmp_path / "nan.tif", np.full((32, 32), np.nan, np.float32))
    (tmp_path / "torn.tif").write_bytes(b"II*\0garbage")
    for name, how, reason in (
        ("float.tif", ["--range", "none"], "float32 values have no range of their own"),
        ("nan.tif", [], "float32 values have no range of their own"),
        ("torn.tif", [], "damaged file (a TIFF without a page)"),
    ):
        code, _, err = cli(capfd, "denoise", tmp_path / name, *how)
        assert code == 2
        assert reason in err
        assert len(err.splitlines()) == 1
    assert not list(tmp_path.glob("*.denoised.*"))


def test_bands_are_shown_on_a_sheet(
    slide: tuple[np.ndarray, np.ndarray], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bands = np.stack([slide[1]] * 4, axis=2)
    tifffile.imwrite(tmp_path / "nir.tif", bands, photometric="rgb", extrasamples=["unspecified"])
    code, out, err = cli(capfd, "denoise", tmp_path / "nir.tif", "--sheet", tmp_path / "sheet.png")
    assert code == 0, err
    assert "4 bands" in out
    assert tifffile.imread(tmp_path / "nir.denoised.tif").shape == bands.shape
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size[0] > 300


def test_grey_whose_zero_is_white_comes_back_as_it_was(
    slide: tuple[np.ndarray, np.ndarray], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A PNG has no way to say that, and would show the negative."""
    clean, noisy = slide
    tifffile.imwrite(tmp_path / "slide.tif", noisy, photometric="miniswhite")
    code, out, err = cli(capfd, "denoise", tmp_path / "slide.tif", "--json")
    assert code == 0, err
    [record] = json.loads(out)["pictures"]
    with tifffile.TiffFile(record["output"]) as file:
        assert file.pages.first.photometric == tifffile.PHOTOMETRIC.MINISWHITE
        assert in_range(file.asarray(), clean) > in_range(noisy, clean) + 2


def test_frames_without_a_page_are_not_dropped(
    slide: tuple[np.ndarray, np.ndarray], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tifffile.imwrite(tmp_path / "big.tif", np.stack(slide), photometric="minisblack", truncate=True)
    code, _, err = cli(capfd, "denoise", tmp_path / "big.tif")
    assert code == 2
    assert "a stack of 2 frames of which 1 has a page of their own" in one_line(err)


@pytest.mark.parametrize("kind", ["uint8", "uint16"])
def test_nodata_of_plain_integers_stays(
    kind: str, slide: tuple[np.ndarray, np.ndarray], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Where no range is asked for, or none is needed; a reference of the same kind is compared all the same."""
    scale = 0.25 if kind == "uint8" else 60
    clean, noisy = (np.rint(x.astype(float) * scale).clip(1, np.iinfo(kind).max - 1).astype(kind) for x in slide)
    noisy[40:70, 30:80] = 0
    tifffile.imwrite(tmp_path / "slide.tif", noisy, photometric="minisblack", extratags=[(42113, "s", 0, "0", True)])
    tifffile.imwrite(tmp_path / "clean.tif", clean, photometric="minisblack")
    more = ("--range", "none", "--strength", "1", "--reference", tmp_path / "clean.tif", "--json")
    code, out, err = cli(capfd, "denoise", tmp_path / "slide.tif", "--out", tmp_path / "out.tif", *more)
    assert code == 0, err
    [record] = json.loads(out)["pictures"]
    assert record["range"] is None
    assert record["left_out"] == [0]
    assert record["restored_psnr"] > 10
    result = tifffile.imread(tmp_path / "out.tif")
    assert result.dtype == kind
    assert (result[40:70, 30:80] == 0).all()
    assert (result != noisy).mean() > 0.5


@pytest.mark.parametrize("how", [["--out", "results"], ["--sheet", "sheet.png"], ["--corrupt", "0.5"]])
def test_white_zero_is_shown_too(
    how: list[str], slide: tuple[np.ndarray, np.ndarray], tmp_path: Path, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for name in ("a.tif", "b.tif"):
        tifffile.imwrite(name, slide[1] * 60, photometric="miniswhite")
    code, _, err = cli(capfd, "denoise", "a.tif", "b.tif", *how)
    assert code == 0, err
    assert "not shown" not in err
    if how[0] == "--sheet":  # as a viewer would show it
        tile = np.asarray(Image.open("sheet.png").convert("L"))[28 : 28 + 128, 8 : 8 + 160]
        assert np.corrcoef(tile.ravel(), slide[1].ravel())[0, 1] < -0.9


def test_no_limit_is_no_number_of_megapixels(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    code, _, err = cli(capfd, "denoise", tmp_path / "a.png", "--max-megapixels", "inf")
    assert code == 2
    assert "--max-megapixels inf is not allowed" in one_line(err)
