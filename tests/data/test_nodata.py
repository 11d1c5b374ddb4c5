"""Values that say that nothing was measured, and saturated ones: they decide no range, and stay what they are."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import image_files as F
import numpy as np
import pytest
import tifffile
from helpers import cli
from PIL import Image

from dsdmae_cli.__main__ import main
from dsdmae_cli.config.resolve import resolve_data
from dsdmae_cli.data.account import take_account
from dsdmae_cli.data.base import Subset
from dsdmae_cli.data.beyond import words_of_several
from dsdmae_cli.data.decode import decode, deep_values
from dsdmae_cli.data.nodata import TAG, apart, parsed, unmeasured
from dsdmae_cli.data.open import open_dataset
from dsdmae_cli.data.twins import Twins, find_twins
from dsdmae_cli.data.values import Reading, Values, range_for, sampled, sampled_range
from dsdmae_cli.pictures.depths import brought_back, left_out, limits_of, seen
from dsdmae_cli.pictures.picture import Picture, read, write

LEAST = -3.4028234663852886e38  # of float32


def tif(values: np.ndarray, tag: str | None = None, **how: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, extratags=[(TAG, "s", 0, tag, True)] if tag else [], **how)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def grey() -> np.ndarray:
    """A photograph in 0..1."""
    return F.crops(1, 64)[0].astype(np.float64).mean(axis=2) / 255


def temperatures(grey: np.ndarray, nodata: float, kind: str = "float32", rows: int = 8) -> np.ndarray:
    """270 to 320 with some rows of nothing."""
    values = (270 + 50 * grey).astype(kind)
    values[:rows] = nodata
    return values


CASES = [
    ("float32", -9999, "-9999"), ("float32", -9999, None), ("float32", LEAST, None),
    ("float32", LEAST, "-3.4028235e+38"),
    ("float64", -1.7976931348623157e308, None), ("float32", -LEAST, None), ("int16", -32768, None),
    ("int16", 32767, "32767"), ("uint16", 0, "0"), ("uint16", 65535, "65535"), ("float32", 9999, "9999"),
    ("float32", 300, "300"), ("float16", -9999, None), ("float32", np.nan, "nan"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "nodata", "tag"), CASES)
def test_nothing_is_no_end_of_the_range_and_black(grey: np.ndarray, kind: str, nodata: float, tag: str | None) -> None:
    content = tif(temperatures(grey, nodata, kind), tag)
    found = deep_values(content, "x")
    assert found is not None
    low, high = sampled_range([found]) or (0, 0)
    assert 265 < low < high < 325
    shown = decode(content, "x", Reading((low, high)))
    assert shown[:8].max() == 0
    assert 60 < shown[8:].mean() < 200
    assert shown[8:].std() > 30


@pytest.mark.parametrize(("kind", "nodata", "tag"), CASES)
def test_it_comes_back_and_its_neighbours_are_seen_beside_their_like(
    grey: np.ndarray, kind: str, nodata: float, tag: str | None
) -> None:
    values = temperatures(grey, nodata, kind)
    picture = read(tif(values, tag), "x")
    limits = limits_of([picture])
    assert limits is not None
    before = seen(picture, limits)
    known = picture.pixels[16:8:-1] != nodata  # of those that are mirrored at the edge
    np.testing.assert_array_equal(before.pixels[:8][known], before.pixels[16:8:-1][known])
    after = before.with_pixels(np.full_like(before.pixels, 30000))
    back = brought_back(picture, before, after, limits)
    np.testing.assert_array_equal(back.pixels[:8], picture.pixels[:8])
    low, high = limits
    wanted = low + 30000 / 65535 * (high - low)
    still = picture.pixels[8:] == nodata  # elsewhere too
    assert np.abs(back.pixels[8:].astype(np.float64) - wanted)[~still].max() < 1
    assert left_out(picture, limits) == (() if np.isnan(nodata) else (float(values[0, 0]),))
    buffer = io.BytesIO()
    write([back], buffer, ".tif")
    again = read(buffer.getvalue(), "x")
    np.testing.assert_array_equal(again.pixels, back.pixels)
    assert again.nodata == picture.nodata == (parsed(tag) if tag else None)


def test_what_is_saturated_decides_no_range(grey: np.ndarray) -> None:
    values = np.rint(100 + 900 * np.tile(grey, (2, 2))).astype(np.uint16)
    values.flat[::500] = 65535
    found = sampled([Values(values[..., None])])
    assert found is not None
    assert list(found.left_out) == [65535]
    assert 90 < found.range[0] < found.range[1] <= 1000
    assert decode(tif(values), "x", Reading(found.range)).reshape(-1, 3)[::500].min() == 255
    hot = values.copy()  # and a few hot pixels between
    hot.flat[7::9000] = 20000
    assert (sampled_range([Values(hot[..., None])]) or (0, 0))[1] < 1100


def test_what_is_meant_stays(grey: np.ndarray) -> None:
    full = np.rint(65535 * np.clip(grey * 1.4, 0, 1)).astype(np.uint16)  # clipped highlights
    assert (full == 65535).mean() > 0.01
    assert sampled([Values(full[..., None])]) == sampled([Values(np.rint(grey * 65535).astype(np.uint16)[..., None])])
    assert sampled_range([Values(full[..., None])]) == (0, 65535)
    hounsfield = (grey * 3000 - 1024).astype(np.int16)
    hounsfield[:20] = -1024  # air
    assert (sampled_range([Values(hounsfield[..., None])]) or (0, 0))[0] == -1024
    dark = np.rint(np.linspace(0, 1, 4096) ** 8 * 65535).astype(np.uint16)  # few values between, but some
    assert apart(np.append(dark, [65535] * 30).astype(np.float64), None) == ()
    mask = np.repeat(np.array([0, 1, 2, 65535], np.uint16), 99)
    assert apart(mask.astype(np.float64), None) == ()
    assert apart(np.empty(0), None) == apart(np.full(99, 7.0), None) == ()


def test_both_ends_and_each_band(grey: np.ndarray) -> None:
    both = temperatures(grey, -32768, "int16")
    both[-4:] = 32767
    found = sampled([Values(both[..., None])])
    assert found is not None
    assert list(found.left_out) == [-32768, 32767]
    bands = np.stack([temperatures(grey, -9999), 1000 + 10 * temperatures(grey, -9999)], axis=2)
    limits = range_for([Values(bands)], Reading(channels=2))
    assert limits is not None
    assert limits[0][0] > 265
    assert 3600 < limits[1][0] < limits[1][1] < 4300


@pytest.mark.parametrize(
    ("tag", "value"),
    [("-9999", -9999), ("-9999 \0", -9999), (b"0", 0), ("nan", None), ("", None), ("none", None), (7, None)],
)
def test_what_the_tag_says(tag: Any, value: float | None) -> None:
    assert parsed(tag) == value
    assert not unmeasured(np.array([1, 2], np.uint8), 300).any()
    assert unmeasured(np.array([1, 2], np.uint8), 2).tolist() == [False, True]
    assert not unmeasured(np.array([1, 2], np.int16), 1.5).any()


def test_a_picture_of_nothing_alone() -> None:
    picture = read(tif(np.full((9, 9), -9999, np.float32), "-9999"), "x")
    assert limits_of([picture]) is None
    assert decode(tif(np.full((9, 9), -9999, np.float32), "-9999"), "x", Reading((0, 1))).max() == 0
    assert seen(picture, (0, 1)).pixels.max() == 0
    nothing = Picture(np.full((9, 9, 1), np.nan, np.float32), "L")
    assert np.isnan(brought_back(nothing, seen(nothing, (0, 1)), seen(nothing, (0, 1)), (0, 1)).pixels).all()


# -- a folder of them, in each command


def slides(root: Path, crops: np.ndarray, make: Callable[[np.ndarray], bytes]) -> Path:
    """Two classes."""
    return F.write(root, {f"{'ab'[n % 2]}/{n:02}.tif": make(crop) for n, crop in enumerate(crops)})


def twelve_bits(crop: np.ndarray) -> bytes:
    return tif(np.rint(100 + 900 * crop).astype(np.uint16))


SMALL = ["--preset", "quick", "--epochs", "1", "--batch-size", "4", "--set", "backbone.depth=1"]
SMALL += ["--set", "train.knn_every=none"]


@pytest.fixture(scope="module")
def crops() -> np.ndarray:
    """[24, 16, 16] photographs in 0..1."""
    return F.crops(24, 16).mean(axis=3) / 255


@pytest.fixture(scope="module")
def run(crops: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on pictures of 12 bits."""
    root = tmp_path_factory.mktemp("run")
    out = root / "run"
    with pytest.raises(SystemExit, match="0"):
        main(["pretrain", str(slides(root / "twelve", crops, twelve_bits)), *SMALL, "--out", str(out)])
    return out


@pytest.fixture(scope="module")
def below(crops: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of -30 to 20."""
    return slides(tmp_path_factory.mktemp("below"), crops, lambda crop: tif((crop * 50 - 30).astype(np.float32)))


def rows_of(path: Path, **more: Any) -> list[str]:
    settings = F.of(path, **more)
    splits = {"training": open_dataset(settings, "train"), "held-out": open_dataset(settings, "test")}
    return take_account(splits, resolve_data(settings).range).lines()


def test_the_account_names_nothing_and_too_much(crops: np.ndarray, tmp_path: Path) -> None:
    with_tag = slides(tmp_path / "tag", crops, lambda crop: tif(temperatures(crop, -9999, rows=2), "-9999"))
    assert "are shown as black to white; nodata -9999; grey" in rows_of(with_tag)[1]
    without = slides(tmp_path / "none", crops, lambda crop: tif(temperatures(crop, -9999, rows=2)))
    assert "; nodata -9999; grey" in rows_of(without)[1]
    images = open_dataset(F.of(without), "train")
    shown = np.stack([images.load(i) for i in range(len(images))])
    assert shown[:, :2].max() == 0
    assert shown[:, 2:].std() > 30

    def saturated(crop: np.ndarray) -> bytes:
        values = np.rint(100 + 900 * crop).astype(np.uint16)
        values[3, 5:7] = 65535
        return tif(values)

    too_much = slides(tmp_path / "much", crops, saturated)
    assert "; saturated or nodata 65535; grey" in rows_of(too_much)[1]
    assert "101 to 966 are shown" in rows_of(too_much)[1]
    words = rows_of(too_much, range=(0, 65535))[1]
    assert "98% of the values lie in 1" in words
    assert "(--set data.range=1" in words


def test_stacks_are_named(crops: np.ndarray, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = slides(tmp_path / "some", crops, twelve_bits)
    pages = np.stack([np.rint(100 + 900 * crop).astype(np.uint16) for crop in crops[:3]])
    F.write(root, {"a/00.tif": tif(pages, photometric="minisblack"), "b/01.tif": tif(pages, photometric="minisblack")})
    assert "; 2 of 24 are stacks: the first page of each is taken; grey" in rows_of(root)[1]
    assert "stacks" not in rows_of(root, channels=3, bands=(1, 1, 1))[1].replace("2 of 24 are stacks", "")
    code, said, _ = cli(capfd, "pretrain", root, *SMALL, "--dry-run")
    assert code == 0
    assert "2 of 24 are stacks" in said


def test_restore_says_the_page_and_refuses_what_would_be_black(
    run: Path, crops: np.ndarray, below: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pages = np.stack([np.rint(100 + 900 * crop).astype(np.uint16) for crop in crops[:3]])
    stack = F.write(tmp_path, {"stack.tif": tif(pages, photometric="minisblack")}) / "stack.tif"
    code, said, err = cli(capfd, "restore", run, stack, "--sheet", tmp_path / "sheet.png")
    assert code == 0, err
    assert "the first of 3 pages" in said + err
    code, _, err = cli(capfd, "restore", run, below / "a" / "00.tif", "--sheet", tmp_path / "other.png")
    assert code == 2
    assert "are beyond the range of" in err
    assert "--range LOW,HIGH" in err
    assert not (tmp_path / "other.png").exists()


@pytest.mark.parametrize("command", ["embed", "probe", "pretrain", "finetune"])
def test_a_range_that_makes_all_black_is_refused(
    command: str, run: Path, below: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.npz"
    words: list[Any] = ["--from", run] if command == "pretrain" else [run]
    words += [*SMALL] if command == "pretrain" else []
    words = [command, *words, "--dataset", below, "--out", out]
    code, _, err = cli(capfd, *words)
    assert code == 2, err
    last = err.splitlines()[-1]
    assert "nearly all values of the pictures, -" in last
    assert "--set data.range=auto" in last
    assert not out.exists()
    if command == "embed":
        code, _, err = cli(capfd, *words, "--set", "data.range=auto")
        assert code == 0, err
        assert "are seen as black to white" in err
        features = np.load(out)["features"]
        assert features.std(axis=0).mean() > 0.01


def test_predict_says_its_range_and_refuses_what_would_be_black(
    run: Path, below: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tuned = tmp_path / "tuned"
    code, _, err = cli(capfd, "finetune", run, "--epochs", "1", "--set", "train.batch_size=4", "--out", tuned)
    assert code == 0, err
    code, said, err = cli(capfd, "predict", tuned, run.parent / "twelve" / "a" / "00.tif")
    assert code == 0, err
    assert "are seen as black to white" in err
    assert len(said.splitlines()) == 2
    code, said, err = cli(capfd, "predict", tuned, below)
    assert code == 2
    assert "the network learned from other pictures" in err
    assert not said


def test_pictures_that_are_black_alike_are_no_twins(below: Path) -> None:
    images = open_dataset(F.of(below, range=(500, 900)), "train")
    halves = Subset(images, np.arange(0, 10)), Subset(images, np.arange(10, 20))
    assert max(int(images.load(i).max()) for i in range(len(images))) == 0
    assert find_twins(*halves) == Twins(0, 10, ())
    same = find_twins(Subset(images, np.arange(3)), Subset(images, np.arange(2, 4)))
    assert same is not None
    assert same.count == 1


def test_bands_of_other_scale_have_a_range_each(grey: np.ndarray) -> None:
    bands = np.stack([100 + 900 * grey, 10 + 20 * grey[::-1]], axis=2).astype(np.uint16)
    picture = read(tif(bands, photometric="minisblack", planarconfig="contig"), "x")
    limits = limits_of([picture])
    assert limits is not None
    shown = seen(picture, limits).pixels
    assert shown[..., 1].std() > 8000
    assert abs(float(shown[..., 0].std()) / float(shown[..., 1].std()) - 1) < 0.2
    after = seen(picture, limits).with_pixels(np.full_like(shown, 30000))
    back = brought_back(picture, seen(picture, limits), after, limits).pixels.reshape(-1, 2)
    wanted = [low + 30000 / 65535 * (high - low) for low, high in limits]  # type: ignore[misc,has-type]
    assert np.abs(back - np.array(wanted)).max() <= 1


def test_denoise_takes_a_range_for_each_band(
    grey: np.ndarray, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bands = np.stack([100 + 900 * grey, 10 + 20 * grey], axis=2).astype(np.uint16)
    two = F.write(tmp_path, {"two.tif": tif(bands, photometric="minisblack", planarconfig="contig")}) / "two.tif"
    code, said, err = cli(capfd, "denoise", two, "--range", "[[0,1000],[0,40]]", "--json")
    assert code == 0, err
    assert json.loads(said)["pictures"][0]["range"] == [[0, 1000], [0, 40]]
    code, _, err = cli(capfd, "denoise", two, "--range", "[[0,1],[0,2],[0,3]]", "--force")
    assert code == 2
    assert "--range says 3 pairs and the picture has 2 bands" in err
    for wrong in ("[[0,1000],[2000]]", "[[0,1],[5,2]]", "[[0,x],[1,2]]"):
        code, _, err = cli(capfd, "denoise", two, "--range", wrong)
        assert code == 2
        assert len(err.splitlines()) == 1


def test_denoise_leaves_nothing_alone_and_says_so(
    grey: np.ndarray, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    noisy = grey + np.random.default_rng(0).normal(0, 0.1, grey.shape)
    holes = temperatures(noisy, -9999)
    files = {"holes.tif": tif(holes, "-9999"), "whole.tif": tif(temperatures(noisy, -9999, rows=0))}
    F.write(tmp_path, files)
    results = {}
    for name in ("holes", "whole"):
        args = [
            tmp_path / f"{name}.tif",
            "--range",
            "260,330",
            "--strength",
            "1",
            "--out",
            tmp_path / f"{name}.out.tif",
        ]
        code, said, err = cli(capfd, "denoise", *args)
        assert code == 0, err
        assert ("260 to 330 but -9999" in said + err) == (name == "holes")
        results[name] = tifffile.imread(tmp_path / f"{name}.out.tif")
    np.testing.assert_array_equal(results["holes"][:8], -9999)
    moved = np.abs(results["holes"][8:] - results["whole"][8:])
    assert moved.max() < 10  # of 70; as black they had moved by more than half of the range
    assert moved[16:].max() < 3
    assert results["holes"][8:].std() < holes[8:].std()


def test_animations_are_named(tmp_path: Path) -> None:
    crops = F.crops(6, 16)
    root = F.write(tmp_path / "set", {f"{n}.png": F.png(crop) for n, crop in enumerate(crops)})
    for kind in ("gif", "webp", "png", "avif"):
        first, *others = (Image.fromarray(crop) for crop in crops[:3])
        first.save(root / f"moving.{kind}", save_all=True, append_images=others)
    assert "4 of 10 are animations: the first frame of each is taken" in rows_of(root)[1]
    assert words_of_several(1, 1, 3) == [
        "1 of 3 is a stack: its first page is taken",
        "1 of 3 is an animation: its first frame is taken",
    ]
    assert words_of_several(0, 1, 1) == ["it is an animation: its first frame is taken"]
