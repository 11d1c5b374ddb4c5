"""`dsdmae restore`: what a run's method hides or makes noisy, and gives back."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import cli, listing, one_line, train
from PIL import Image

from dsdmae_cli.artifacts.trained_method import open_method
from dsdmae_cli.data.source import derive_seed, seeded
from dsdmae_cli.pictures.outcome import Changed


@pytest.fixture(scope="module")
def mae(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "mae"
    train(digits, run, method="mae")
    return run


@pytest.fixture(scope="module")
def dsdmae(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "dsdmae"
    train(digits, run)
    return run


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((48, 32), Image.Resampling.BICUBIC).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def array(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(np.float64)


def test_files_hold_what_the_method_restores(
    mae: Path, photo: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """By the definition: the method called by hand; hidden patches are grey, the others as they were."""
    words = ("restore", mae, photo, "--mask-ratio", "0.5", "--seed", "3", "--device", "cpu", "--precision", "fp32")
    code, out, _ = cli(capfd, *words, "--out", tmp_path / "out", "--json")
    assert code == 0
    assert listing(tmp_path / "out") == {"a.corrupted.png", "a.restored.png", "a.original.png"}
    assert not Path("restored.png").exists()
    result = json.loads(out)
    [record] = result["pictures"]
    assert (result["method"], result["given"], result["seed"]) == ("mae", {"mask_ratio": "0.5"}, 3)
    assert (record["width"], record["height"], record["side"], record["changed"]) == (48, 32, 16, 0.5)

    original, corrupted, restored = (array(Path(record["files"][k])) for k in ("original", "corrupted", "restored"))
    image = Image.open(photo).resize((16, 16), Image.Resampling.BICUBIC, box=(8, 0, 40, 32))
    np.testing.assert_array_equal(original, np.asarray(image))
    trained = open_method(mae, {"method.mask_ratio": "0.5"})
    images = torch.from_numpy(original).permute(2, 0, 1)[None].float() / 127.5 - 1
    corruption = trained.method.corrupt(images, seeded(torch.device("cpu"), derive_seed(3, "corrupt")))
    with torch.no_grad():
        wanted = trained.method.restore(images, corruption)
    assert wanted is not None
    for found, tensor in ((corrupted, wanted.corrupted), (restored, wanted.restored)):
        pixels = ((tensor[0].clamp(-1, 1) + 1) * 127.5).permute(1, 2, 0).double().numpy()
        np.testing.assert_allclose(found, pixels, atol=0.51)
    hidden = (corrupted != original).any(axis=2)
    assert (corrupted[hidden] == 128).all()
    np.testing.assert_array_equal(restored[~hidden], original[~hidden])
    mse = np.square(restored - original)[hidden].mean()
    assert record["restored_changed_psnr"] == pytest.approx(10 * math.log10(255**2 / mse))


def test_a_sheet_has_a_row_a_picture(
    dsdmae: Path, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(photo, tmp_path / "b.png")
    code, out, err = cli(capfd, "restore", dsdmae, "*.png", "--noise-std", "0.4", "--device", "cpu")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "restored.png"
    assert "a.png  16x16 of 48x32, " in out
    assert " on the 75% of pixels that were changed" in out
    page = np.asarray(Image.open("restored.png"))
    # Four tiles of 192 pixels in a row; what was named twice over looks twice the same, for all get the same noise.
    assert page.shape == (2 * (192 + 20 + 8) + 8, 4 * (192 + 8) + 8, 3)
    np.testing.assert_array_equal(page[28:228], page[248:448])
    assert (page[8:28, 8:200] != page[228:248, 8:200]).any()  # each row's first title is its picture's name
    assert (page[28:220, 408:600] != page[28:220, 208:400]).any()  # the restored is not the corrupted one
    before = (tmp_path / "restored.png").read_bytes()
    code, _, err = cli(capfd, "restore", dsdmae, "a.png")
    assert (code, (tmp_path / "restored.png").read_bytes()) == (2, before)
    assert "restored.png exists; --force replaces it" in one_line(err)


def test_without_a_word_it_is_as_in_training(mae: Path, photo: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = cli(capfd, "restore", mae, photo, "--sheet", photo.parent / "s.png", "--json", "--device", "cpu")
    assert code == 0
    assert json.loads(out)["pictures"][0]["changed"] == 0.75


def test_what_cannot_be_read_leaves_the_others_done(
    mae: Path, photo: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.png").write_bytes(b"no picture")
    code, out, err = cli(capfd, "restore", mae, photo, tmp_path / "bad.png", "none.png", "--sheet", tmp_path / "s.png")
    assert code == 1
    assert str(photo) in out
    assert "2 of 3 failed" in one_line(err)
    assert (tmp_path / "s.png").exists()
    code, _, err = cli(capfd, "restore", mae, tmp_path / "bad.png", "--sheet", tmp_path / "t.png")
    assert code == 2
    assert "nothing was restored" in one_line(err)
    assert not (tmp_path / "t.png").exists()


def test_sixteen_bits_are_shown_by_the_pictures_range(
    mae: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ramp = np.linspace(100, 1000, 256).reshape(16, 16).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    assert cli(capfd, "restore", mae, tmp_path / "deep.png", "--out", tmp_path / "out")[0] == 0
    original = array(tmp_path / "out" / "deep.original.png")
    assert original.min() < 20
    assert original.max() > 235
    words = ("restore", mae, tmp_path / "deep.png", "--out", tmp_path / "out", "--force", "--range", "none")
    assert cli(capfd, *words)[0] == 0
    assert array(tmp_path / "out" / "deep.original.png").max() < 5


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--noise-std", "1"), "--noise-std: method 'mae' of {run} has no noise_std; it has --mask-ratio"),
        (("--mask-ratio", "1.5"), "method.mask_ratio = 1.5 (from --mask-ratio) is not allowed"),
        (("--seed", "x"), "--seed x is not allowed"),
        (("--range", "batch"), "--range batch is of `dsdmae denoise`"),
        (("--sheet", "a.gif"), "--sheet a.gif must end in one of"),
        (("--out", "{run}/settings.toml"), "is a file; name a folder"),
        (("--device", "tpu"), "tpu"),
    ],
)
def test_bad_flags(
    words: tuple[str, ...], said: str, mae: Path, photo: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(photo.parent)
    code, _, err = cli(capfd, "restore", mae, photo, *(word.format(run=mae) for word in words))
    assert code == 2
    assert said.format(run=mae) in one_line(err)
    assert listing(photo.parent) == {"a.png"}


def test_a_method_that_restores_nothing_says_why(
    digits: Path, dsdmae: Path, photo: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train(digits, tmp_path / "moco", "data.crop_scale=none", method="mocov3")
    train(digits, tmp_path / "zero", "method.lambda=0")
    for run, why in (
        ("moco", "method 'mocov3' cannot restore pictures: it does not learn to predict pixels"),
        ("zero", "with method.lambda = 0 it learns from features alone and has no decoder of pixels"),
        ("nothing", "is no run's directory: it holds no settings.toml"),
    ):
        code, _, err = cli(capfd, "restore", tmp_path / run, photo, "--sheet", tmp_path / "s.png")
        assert code == 2
        assert why in one_line(err)
        assert not (tmp_path / "s.png").exists()


def test_denoise_says_why_a_method_cannot(
    mae: Path, digits: Path, photo: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train(digits, tmp_path / "normed", "method.norm_pix_loss=true")
    for run, why in (
        (mae, "it has learned to fill in patches that are hidden, and nothing of noise in those that it sees"),
        (mae, f"; `dsdmae restore {mae} PICTURE` shows what it restores"),
        (tmp_path / "normed", "with method.norm_pix_loss = true it predicts pixels but for each patch's mean"),
    ):  # fmt: skip
        code, _, err = cli(capfd, "denoise", photo, "--run", run)
        assert code == 2
        assert why in one_line(err)


def test_nothing_changed_is_compared_whole() -> None:
    same = np.zeros((4, 4, 3), np.uint8)
    other = same + np.uint8(1)
    found = Changed.of(same, other, same)
    assert (found.share, found.before) == (0, math.inf)
    assert found.after == pytest.approx(10 * math.log10(255**2))
    assert found.record("corrupted")["corrupted_changed_psnr"] is None
