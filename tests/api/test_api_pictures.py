"""Pictures from Python: what the command line makes of the same files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from helpers import cli, digit_folder
from PIL import Image

import dsdmae_cli as dsdmae
from dsdmae_cli.pictures import engines

pytestmark = pytest.mark.filterwarnings("default:.*next to nothing is learned")
SMALL: dict[str, Any] = {
    "batch_size": 8, "lr": 1e-3, "device": "cpu", "precision": "fp32",
    "backbone": {"patch_size": 4, "embed_dim": 32, "depth": 1, "num_heads": 2},
}  # fmt: skip


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digit_folder(tmp_path_factory.mktemp("digits"), train=42, test=20)


@pytest.fixture(scope="module")
def run(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "run"
    dsdmae.pretrain(digits, out=out, train={"epochs": 1, "knn_every": None}, **SMALL)
    return out


@pytest.fixture(scope="module")
def tuned(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "tuned"
    dsdmae.finetune(run, out=out, epochs=2, batch_size=8, device="cpu", precision="fp32")
    return out


def test_restoring_is_that_of_the_command(
    run: Path, digits: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = next((digits / "test").rglob("*.png"))
    given = ["--mask-ratio", "0.5", "--seed", "3", "--device", "cpu", "--precision", "fp32"]
    code, out, err = cli(capfd, "restore", run, file, "--out", tmp_path, "--json", *given)
    assert code == 0, err
    [told] = json.loads(out)["pictures"]
    how: dict[str, Any] = {"mask_ratio": 0.5, "seed": 3, "device": "cpu", "precision": "fp32"}
    before = torch.get_rng_state()
    shown = dsdmae.restore(run, file, **how)
    assert torch.equal(torch.get_rng_state(), before)
    pixels = np.asarray(Image.open(file).convert("RGB"))
    arrays = dsdmae.restore(run, pixels, **how)
    for part in ("corrupted", "restored", "original"):
        written = np.asarray(Image.open(told["files"][part]))
        image = getattr(shown, part)
        assert isinstance(image, Image.Image)
        assert np.array_equal(np.asarray(image), written)
        assert np.array_equal(getattr(arrays, part), written)
    assert np.array_equal(np.asarray(dsdmae.restore(run, Image.open(file), **how).restored), arrays.restored)
    assert (round(shown.changed, 4), shown.before, shown.after) == (
        told["changed"], told["corrupted_changed_psnr"], told["restored_changed_psnr"],
    )  # fmt: skip
    assert not np.array_equal(dsdmae.restore(run, pixels, **{**how, "seed": 4}).corrupted, arrays.corrupted)


def test_16_bits_are_restored_in_their_own_range(run: Path) -> None:
    ramp = np.linspace(300, 900, 64 * 64).reshape(64, 64).astype(np.uint16)
    shown = dsdmae.restore(run, ramp, mask_ratio=0.5)
    assert shown.original.dtype == np.uint8
    assert shown.original.std() > 50


def test_classes_are_those_of_the_command(
    tuned: Path, digits: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, out, err = cli(
        capfd, "predict", tuned, digits / "test", "--top", "2", "--json", "--device", "cpu", "--precision", "fp32"
    )
    assert code == 0, err
    how: dict[str, Any] = {"top": 2, "device": "cpu", "precision": "fp32"}
    assert dsdmae.predict(tuned, digits / "test", **how) == json.loads(out)
    [first, *_] = json.loads(out)["pictures"]
    image = Image.open(first["picture"])
    (tmp_path / "broken.png").write_bytes(b"none")
    given = [image, np.asarray(image.convert("RGB")), first["picture"], tmp_path / "broken.png", tmp_path / "gone.png"]
    told = dsdmae.predict(tuned / "classifier.safetensors", given, **how)
    assert [one["picture"] for one in told["pictures"]] == ["picture 0", "picture 1", first["picture"]]
    for one in told["pictures"]:
        assert one["predictions"][0]["probability"] == pytest.approx(first["predictions"][0]["probability"], rel=1e-5)
    assert {Path(one["picture"]).name for one in told["unreadable"]} == {"broken.png", "gone.png"}


def test_what_is_wrong_is_one_sentence(run: Path, tuned: Path, tmp_path: Path) -> None:
    picture = np.zeros((8, 8), np.uint8)
    calls: list[tuple[Any, str]] = [
        (lambda: dsdmae.restore(run, "nowhere.png"), "nowhere.png"),
        (lambda: dsdmae.restore(tmp_path, picture), "is no run's directory"),
        (lambda: dsdmae.restore(tuned, picture), "is no pre-training run"),
        (lambda: dsdmae.restore(run, picture, mask_ratio=1.5), "method.mask_ratio = 1.5"),
        (lambda: dsdmae.restore(run, picture, mask=0.5), "restore has no argument 'mask'"),
        (lambda: dsdmae.restore(run, picture, optim={"lr": 1}), "takes settings of the method, not optim.lr"),
        (lambda: dsdmae.restore(run, np.zeros((8, 8, 7), np.uint8)), "is no picture"),
        (lambda: dsdmae.predict(run, picture), "knows no classes"),
        (lambda: dsdmae.predict(tuned, "nowhere.png"), "cannot read nowhere.png"),
        (lambda: dsdmae.predict(tuned, []), "none was given"),
        (lambda: dsdmae.predict(tuned, picture, top=0), "top = 0 is not allowed"),
        (lambda: dsdmae.predict(tuned, [picture, {}]), "picture 1: a dict is no picture"),
    ]
    for call, said in calls:
        with pytest.raises(dsdmae.DsdmaeError) as raised:
            call()
        assert said in str(raised.value)
        assert "\n" not in str(raised.value)


def test_what_is_known_of_a_picture_comes_along(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[305] = "a camera"
    image = Image.new("RGB", (24, 20), (90, 120, 30))
    image.save(tmp_path / "a.jpg", exif=exif, dpi=(300, 300), icc_profile=b"profile", xmp=b"<xmp/>")
    for given in (tmp_path / "a.jpg", Image.open(tmp_path / "a.jpg")):
        result = dsdmae.denoise(given)
        assert result.getexif()[305] == "a camera"
        assert (result.info["dpi"], result.info["icc_profile"], result.info["xmp"]) == (
            (300, 300),
            b"profile",
            b"<xmp/>",
        )


@pytest.mark.parametrize(
    ("shape", "says"), [((3, 20, 24), "a stack of 3 pages; `dsdmae denoise`"), ((20, 24, 3), "16-bit colour; give an")]
)
def test_what_no_image_holds_is_refused_before_the_work(
    shape: tuple[int, ...], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "open_restorer", lambda *_, **__: pytest.fail("opened"))
    how = "rgb" if shape[-1] == 3 else "minisblack"
    tifffile.imwrite(tmp_path / "a.tif", np.zeros(shape, np.uint16), photometric=how, metadata=None)
    with pytest.raises(dsdmae.DataError, match=says):
        dsdmae.denoise(tmp_path / "a.tif")
