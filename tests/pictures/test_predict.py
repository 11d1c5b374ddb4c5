"""`dsdmae predict`: the answers are those that the run's accuracy was counted by, whatever way pictures are named."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from helpers import cli, one_line
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.usefixtures("undrawn")
Do = Callable[..., tuple[int, str, str]]


@pytest.fixture
def do(capfd: pytest.CaptureFixture[str]) -> Do:
    return lambda *given: cli(capfd, "predict", *given)


@pytest.fixture
def images(tuned_run: Path) -> Path:
    """The test images that the run was judged on, in a folder for each class."""
    dataset = json.loads((tuned_run / "result.json").read_text())["dataset"]
    return Path(dataset.removeprefix("folder:")) / "test"


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_the_answers_are_those_of_the_runs_accuracy(tuned_run: Path, images: Path, do: Do) -> None:
    code, out, _ = do(tuned_run, images, "--precision", "fp32")
    assert code == 0
    found = rows(out)
    right = [row["class"] == Path(row["picture"]).parent.name for row in found]
    result = json.loads((tuned_run / "result.json").read_text())
    assert len(found) == len(list(images.rglob("*.png")))
    assert sum(right) / len(right) == pytest.approx(result["top1"])
    assert found[0].keys() == {"picture", "class", "probability"}
    assert [row["picture"] for row in found] == sorted(row["picture"] for row in found)


def test_all_classes_as_json(tuned_run: Path, images: Path, do: Do) -> None:
    code, out, err = do(tuned_run / "classifier.safetensors", images, "--json", "--top", "100")
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert told["unreadable"] == []
    assert told["weights_sha256"] == json.loads((tuned_run / "result.json").read_text())["classifier_sha256"]
    for picture in told["pictures"]:
        shares = [one["probability"] for one in picture["predictions"]]
        assert {one["class"] for one in picture["predictions"]} == set(told["classes"])
        assert sum(shares) == pytest.approx(1)
        assert shares == sorted(shares, reverse=True)


def test_three_of_each_to_a_file(tuned_run: Path, images: Path, do: Do, tmp_path: Path) -> None:
    target = tmp_path / "classes.csv"
    code, out, err = do(tuned_run, images, "--top", "3", "--out", target)
    assert (code, out) == (0, "")
    assert f"written to {target}" in err
    [first, *_] = rows(target.read_text())
    assert list(first) == [
        "picture", "class", "probability", "class_2", "probability_2", "class_3", "probability_3",
    ]  # fmt: skip
    code, _, err = do(tuned_run, images, "--out", target)
    assert (code, "--force replaces it" in one_line(err)) == (2, True)
    assert do(tuned_run, images, "--out", target, "--force")[0] == 0
    assert list(rows(target.read_text())[0]) == ["picture", "class", "probability"]
    assert do(tuned_run, images, "--out", tmp_path / "classes.json")[0] == 0
    assert len(json.loads((tmp_path / "classes.json").read_text())["pictures"]) == len(rows(target.read_text()))


def test_a_name_that_is_no_utf8_goes_out_by_its_bytes(tuned_run: Path, images: Path, do: Do, tmp_path: Path) -> None:
    name, target = tmp_path / os.fsdecode(b"caf\xe9.png"), tmp_path / "classes.csv"
    shutil.copy(next(images.rglob("*.png")), name)
    code, _, err = do(tuned_run, name, "--out", target)
    assert code == 0, err
    assert b"caf\xe9.png" in target.read_bytes()


def test_pictures_that_cannot_be_read_are_named(tuned_run: Path, images: Path, do: Do, tmp_path: Path) -> None:
    good = tmp_path / "good.denoised.png"  # by a name that denoise gives: a picture like any other here
    shutil.copy(next(images.rglob("*.png")), good)
    (tmp_path / "torn.png").write_bytes(good.read_bytes()[:60])
    code, out, err = do(tuned_run, tmp_path, tmp_path / "gone.png", str(tmp_path / "*.jpg"))
    assert code == 1
    assert [row["picture"] for row in rows(out)] == [str(good)]
    [warned] = [line for line in err.splitlines() if line.startswith("dsdmae: warning: cannot read ")]
    assert "cannot read 3 pictures: " in warned
    assert "gone.png (no such file or folder" in warned
    assert "torn.png (" in warned
    told = json.loads(do(tuned_run, tmp_path, "--json")[1])
    assert [one["picture"] for one in told["unreadable"]] == [str(tmp_path / "torn.png")]
    code, out, _ = do(tuned_run, tmp_path / "torn.png")
    assert (code, rows(out)) == (2, [])


def test_a_picture_of_other_bands_gets_no_advice_about_settings(tuned_run: Path, do: Do, tmp_path: Path) -> None:
    """They are those of the fine-tuning, and `predict` has no --set."""
    tifffile.imwrite(
        tmp_path / "five.tif", np.zeros((8, 8, 5), np.uint8), photometric="minisblack", planarconfig="contig"
    )
    code, _, err = do(tuned_run, tmp_path / "five.tif")
    assert code == 2
    assert "5 bands, neither grey nor RGB; this network reads pictures as it learned to, of 3 channels and with" in err
    assert "--set" not in err


def test_a_palette_is_its_colours(tuned_run: Path, images: Path, do: Do, tmp_path: Path) -> None:
    """With transparency too, which is laid over white as in a dataset."""
    reduced = Image.open(next(images.rglob("*.png"))).convert("RGB").quantize(8)
    reduced.save(tmp_path / "a.png")
    reduced.convert("RGB").save(tmp_path / "b.png")
    reduced.save(tmp_path / "c.png", transparency=0)
    clear = np.asarray(reduced) == 0
    Image.fromarray(np.where(clear[..., None], np.uint8(255), np.asarray(reduced.convert("RGB")))).save(
        tmp_path / "d.png"
    )
    code, out, err = do(tuned_run, *(tmp_path / f"{name}.png" for name in "abcd"), "--precision", "fp32")
    assert code == 0, err
    a, b, c, d = ((row["class"], row["probability"]) for row in rows(out))
    assert a == b
    assert c == d != a


def test_standard_input(tuned_run: Path, images: Path, do: Do) -> None:
    picture = next(images.rglob("*.png"))
    expected = rows(do(tuned_run, picture, "--device", "cpu")[1])[0]
    done = subprocess.run(
        [sys.executable, "-m", "dsdmae_cli", "predict", str(tuned_run), "-", "--device", "cpu"],
        input=picture.read_bytes(), capture_output=True, check=True,
    )  # fmt: skip
    [row] = rows(done.stdout.decode())
    assert row["picture"] == "standard input"
    assert row["class"] == expected["class"]


def test_the_range_that_the_file_keeps(tuned_run: Path, images: Path, do: Do, tmp_path: Path) -> None:
    """A network of an instrument's 12 bits sees them as it did in training, whatever 16 bits would be elsewhere."""
    path = tuned_run / "classifier.safetensors"
    with safe_open(path, "np") as file:
        metadata = file.metadata()
    settings = json.loads(metadata["settings"])
    assert settings["data"]["range"] == "none"
    settings["data"]["range"] = [0, 4080]
    deep = tmp_path / "deep.safetensors"
    save_file(load_file(path), deep, {**metadata, "settings": json.dumps(settings)})
    source = next(images.rglob("*.png"))
    grey = np.asarray(Image.open(source).convert("L"))
    Image.fromarray(grey).save(tmp_path / "eight.png")
    Image.fromarray(grey.astype(np.uint16) * 16).save(tmp_path / "sixteen.png")

    def shares(network: Path, name: str) -> Any:
        return json.loads(do(network, tmp_path / name, "--json", "--top", "10", "--precision", "fp32")[1])["pictures"][
            0
        ]

    assert shares(deep, "sixteen.png")["predictions"] == shares(path, "eight.png")["predictions"]
    assert shares(path, "sixteen.png")["predictions"] != shares(path, "eight.png")["predictions"]


@pytest.mark.parametrize(
    ("words", "says"),
    [(("scratch", "a.png"), "has learned nothing"), (("nowhere", "a.png"), "there is no nowhere"),
     (("RUN", "a.png", "--out", "x.txt"), "must end in .csv or .json"),
     (("RUN", "a.png", "--out", "x.csv", "--json"), "contradict"),
     (("RUN", "a.png", "--out", "no/x.csv"), "there is no folder no"), (("RUN", "a.png", "--top", "0"), "--top"),
     (("RUN", "-", "a.png"), "stands alone"), (("RUN",), "PICTURE"), (("ENCODER", "a.png"), "knows no classes"),
     (("RUN", "a.png"), "cannot read a.png (no such file or folder); there is no other picture"),
     (("RUN", "PICTURE", "--device", "abacus"), "abacus")],
)  # fmt: skip
def test_what_is_refused(
    words: tuple[str, ...], says: str, tuned_run: Path, encoder_run: Path, images: Path, do: Do
) -> None:
    here = {"RUN": tuned_run, "ENCODER": encoder_run, "PICTURE": next(images.rglob("*.png"))}
    given = [str(here.get(word, word)) for word in words]
    code, out, err = do(*given)
    assert (code, out) == (2, "")
    assert says in one_line(err)
