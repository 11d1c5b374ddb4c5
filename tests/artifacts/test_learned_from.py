"""Who names no images means those that the subject learned from; where they are not to be had, it is said so."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers import cli, train
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from dsdmae_cli.artifacts.begun import begun_with

_COMMANDS = (
    ["probe", "{}", "--kind", "knn"],
    ["finetune", "{}"],
    ["finetune", "{}", "--dry-run"],
    ["embed", "{}", "--out", "x.npz"],
    ["worth", "{}"],
    ["probe", "scratch", "--like", "{}"],
)


@pytest.fixture
def about(encoder_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """An encoder that says that it learned from a dataset; from a folder where nothing lies."""
    monkeypatch.chdir(tmp_path)
    source = encoder_run / "encoder.safetensors"
    with safe_open(source, framework="numpy") as file:
        metadata = dict(file.metadata())

    def write(dataset: str) -> str:
        said = json.loads(metadata["settings"])
        common = {"holdout": 0.05, "image_size": 16, "channels": 3, "range": None}
        said["data"] = {**(common if dataset.partition(":")[0] != "folder" else said["data"]), "dataset": dataset}
        said["data"] = {key: value for key, value in said["data"].items() if value is not None}
        file = tmp_path / "some.safetensors"
        save_file(load_file(source), file, {**metadata, "settings": json.dumps(said)})
        return str(file)

    return write


@pytest.mark.parametrize(
    ("dataset", "why"),
    [
        ("folder:gone", "gone does not exist"),
        ("folder:gone/{0000..0003}.tar", "matches nothing"),
        ("parquet:gone", "gone does not exist"),
        ("idx:gone", "train-images-idx3-ubyte"),
        ("voc:gone", "gone"),
        ("alien:NAME", "dataset 'alien' is not installed"),
    ],
)
def test_images_that_are_not_here(
    about: Callable[[str], str], dataset: str, why: str, capfd: pytest.CaptureFixture[str]
) -> None:
    subject = about(dataset)
    for command in _COMMANDS:
        code, _, err = cli(capfd, *(word.format(subject) for word in command))
        [line] = err.splitlines()
        assert code == 2
        assert f"which images? {subject} learned from {dataset}, which cannot be had here (" in line
        assert why in line
        assert line.endswith("; name others by --dataset NAME")
    assert {path.name for path in Path().iterdir()} == {"some.safetensors"}


@pytest.mark.parametrize("packaged", ["packaged", "packaged-white-noise"])
def test_a_folder_of_the_same_name_is_not_what_the_packaged_learned_from(
    tmp_path: Path, encoder_run: Path, packaged: str, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    code, _, err = cli(capfd, "probe", packaged)
    assert code == 2
    learned_from = err.partition("learned from folder:")[2].partition(",")[0]
    assert "(a path where it was trained); name others by --dataset NAME" in err
    shutil.copytree(encoder_run.parent / "digits", tmp_path / learned_from)
    assert cli(capfd, "probe", packaged)[2] == err
    code, _, err = cli(capfd, "probe", packaged, "--dataset", learned_from, "--kind", "knn", "--dry-run")
    assert code == 0, err


def test_a_network_is_used_where_its_dataset_is_not_installed(
    about: Callable[[str], str], encoder_run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    subject, data = about("alien:NAME"), encoder_run.parent / "digits"
    features = []
    for word, out in ((subject, "theirs.npz"), (encoder_run, "ours.npz")):
        code, _, err = cli(capfd, "embed", word, "--dataset", data, "--split", "test", "--no-cache", "--out", out)
        assert code == 0, err
        features.append(np.load(out)["features"])
    assert np.array_equal(*features)
    for command in (
        ["probe", subject, "--dataset", data, "--dry-run"],
        ["export", subject, "--to", "timm", "--out", "exported"],
    ):
        code, _, err = cli(capfd, *command)
        assert code == 0, err
    begun = begun_with(subject, True)[0]
    assert begun["backbone"]["name"] == "vit-tiny"


def test_a_run_that_has_not_ended_says_why_it_needs_its_images(
    tmp_path: Path, encoder_run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = shutil.copytree(encoder_run.parent / "digits", tmp_path / "digits")
    run = tmp_path / "run"
    train(data, run, "train.epochs=1", "data.image_size=auto")
    (run / "encoder.safetensors").unlink()
    shutil.rmtree(data)
    code, _, err = cli(capfd, "probe", run, "--dataset", encoder_run.parent / "digits")
    assert code == 2
    assert f"{run} has not ended, and what it is depends on its images ({data} does not exist" in err
