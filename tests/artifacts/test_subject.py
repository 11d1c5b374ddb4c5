"""SUBJECT: what a person may name, what is taken over from it, and that no torch is needed to know."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import settings, train
from safetensors.torch import load_file, save_file

from dsdmae_cli.artifacts.subject import allowed, completions, parse, taken_over
from dsdmae_cli.config.describe import tables
from dsdmae_cli.config.resolve import resolve
from dsdmae_cli.errors import CheckpointError, DsdmaeError, PluginError, SettingsError
from dsdmae_cli.runs.rundir import default_folder


def refusal(subject: object, kind: type[DsdmaeError] = CheckpointError) -> str:
    with pytest.raises(kind) as error:
        parse(str(subject))
    assert "\n" not in str(error.value)
    return str(error.value)


# -- what it may be


def test_a_run_and_its_weights(encoder_run: Path, tuned_run: Path, encoder_alone: Path) -> None:
    for run, weights in ((encoder_run, "encoder.safetensors"), (tuned_run, "classifier.safetensors")):
        found = parse(str(run))
        assert (found.kind, found.path, found.weights, found.name) == ("run", run, run / weights, "run")
        file = parse(str(run / weights))
        assert (file.kind, file.weights, file.name) == ("weights", run / weights, "run")
        assert file.settings() == found.settings()
    alone = parse(str(encoder_alone))
    assert (alone.kind, alone.weights, alone.name) == ("weights", encoder_alone / "encoder.safetensors", "alone")
    for name in ("classifier", "model"):
        (encoder_alone / "encoder.safetensors").rename(encoder_alone / f"{name}.safetensors")
        assert parse(str(encoder_alone)).weights == encoder_alone / f"{name}.safetensors"
        (encoder_alone / f"{name}.safetensors").rename(encoder_alone / "encoder.safetensors")


def test_a_run_that_has_not_ended(encoder_run: Path, tmp_path: Path) -> None:
    shutil.copy(encoder_run / "settings.toml", tmp_path)
    found = parse(str(tmp_path))
    assert (found.kind, found.weights) == ("run", None)
    assert found.settings() == parse(str(encoder_run)).settings()


@pytest.mark.parametrize("word", ["scratch", "pixels"])
def test_what_is_there_wins_over_a_word(word: str, encoder_alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(encoder_alone.parent)
    assert parse(word).kind == word
    encoder_alone.rename(encoder_alone.parent / word)
    assert (parse(word).kind, parse(word).name) == ("weights", word)


def test_published_weights() -> None:
    found = parse("timm:resnet18")
    assert (found.kind, found.name, found.path) == ("published", "timm:resnet18", None)
    assert found.settings() is None
    assert taken_over("timm:resnet18") == (
        {"backbone": {"name": "timm:resnet18", "pretrained": True}},
        "timm:resnet18",
    )


def test_what_is_none_of_these(encoder_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal("nowhere") == f"there is no nowhere; give {allowed()}"
    assert allowed() == (
        "a run's directory, a file of weights (.safetensors, .pth, .pt, .bin, .ckpt, .tar) or a folder with one,"
        " published weights (timm:NAME), hf:OWNER/NAME, packaged, packaged-white-noise, scratch or pixels"
    )
    assert allowed(trained=True).endswith("hf:OWNER/NAME, packaged or packaged-white-noise")
    assert "did you mean scratch?" in refusal("scrach")
    assert "did you mean pixels?" in refusal("PIXELS")
    assert "did you mean hf?" in refusal("HF:owner/name")
    assert "did you mean packaged-white-noise?" in refusal("packaged-white")
    assert "did you mean timm?" in refusal("tim:resnet18")
    assert f"did you mean {encoder_run}?" in refusal(f"{encoder_run}s")
    assert "needs an argument: timm:NAME" in refusal("timm", PluginError)
    assert "for random ones use scratch --backbone vit-tiny" in refusal("vit-tiny", SettingsError)
    holds_none = refusal(tmp_path)
    assert "holds no run and no weights: it has neither settings.toml nor encoder.safetensors" in holds_none
    (tmp_path / "notes.txt").touch()
    assert "notes.txt is no file of weights; give a run's" in refusal(tmp_path / "notes.txt")
    assert "File name too long" in refusal("x" * 300)


# -- what is taken over


def test_a_folder_with_an_encoder_alone_says_what_its_run_says(encoder_run: Path, encoder_alone: Path) -> None:
    values, origin = taken_over(str(encoder_alone))
    assert (values, origin) == (taken_over(str(encoder_run))[0], str(encoder_alone / "encoder.safetensors"))
    learned_from = tables(resolve(settings(encoder_run.parent / "digits").settings))
    assert values["backbone"] == learned_from["backbone"]
    assert {key: learned_from["data"][key] for key in values["data"]} == values["data"]
    assert values["data"].keys().isdisjoint({"flip", "crop_scale", "workers", "strict"})


@pytest.mark.parametrize("ended", [True, False])
def test_images_named_by_a_relative_path_are_found_from_anywhere(
    tmp_path: Path, encoder_run: Path, monkeypatch: pytest.MonkeyPatch, ended: bool
) -> None:
    data = shutil.copytree(encoder_run.parent / "digits", tmp_path / "there" / "digits")
    monkeypatch.chdir(data.parent)
    train(Path("digits"), tmp_path / "run", "train.epochs=1")
    if not ended:
        (tmp_path / "run" / "encoder.safetensors").unlink()

    def dataset() -> str:
        return str(taken_over(str(tmp_path / "run"))[0]["data"]["dataset"])

    assert dataset() == "folder:digits"
    monkeypatch.chdir(tmp_path)
    assert dataset() == f"folder:{data}"
    shutil.rmtree(data)
    assert dataset() == "folder:digits"
    (tmp_path / "run" / "run.json").write_text("[")
    assert dataset() == "folder:digits"


def test_an_encoder_does_not_ask_for_the_images_it_learned_from(tmp_path: Path, encoder_run: Path) -> None:
    data = shutil.copytree(encoder_run.parent / "digits", tmp_path / "digits")
    train(data, tmp_path / "run", "train.epochs=1", "data.image_size=auto")
    shutil.rmtree(data)
    assert taken_over(str(tmp_path / "run"))[0]["data"]["image_size"] == 16


def test_whose_data_scratch_gets(encoder_run: Path) -> None:
    assert taken_over("scratch", str(encoder_run)) == taken_over(str(encoder_run))
    values, origin = taken_over("pixels")
    assert (values["data"]["dataset"], origin) == ("digits", "preset quick")
    with pytest.raises(SettingsError, match="--like is for scratch and pixels"):
        taken_over(str(encoder_run), str(encoder_run))


def test_foreign_and_damaged_weights(encoder_run: Path, tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    save_file(load_file(encoder_run / "encoder.safetensors"), file)
    assert parse(str(file)).settings() is None
    values, origin = taken_over(str(file))  # read off the shapes
    assert values["data"] == {"image_size": 16, "channels": 3}
    assert (values["backbone"]["embed_dim"], origin) == (32, str(file))
    for text, says in (("{", "are damaged"), ("[]", "they are no tables")):
        save_file(load_file(encoder_run / "encoder.safetensors"), file, {"settings": text})
        with pytest.raises(CheckpointError, match=says):
            taken_over(str(file))
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="is no readable safetensors file"):
        taken_over(str(file))


def test_no_torch(encoder_run: Path, encoder_alone: Path) -> None:
    code = """
import sys
from dsdmae_cli.artifacts.subject import completions, taken_over
for subject in sys.argv[1:]:
    taken_over(subject)
completions("")
sys.exit(str({"torch", "timm", "torchvision", "sklearn", "matplotlib"} & set(sys.modules) or ""))
"""
    subjects = (encoder_run, encoder_alone, "scratch", "timm:resnet18")
    done = subprocess.run([sys.executable, "-c", code, *subjects], capture_output=True, text=True)
    assert done.stderr.strip() == ""


# -- completion


def test_completions() -> None:
    assert completions("") == ["scratch", "pixels", "timm:", "hf:", "packaged", "packaged-white-noise"]
    assert completions("s") == ["scratch"]
    assert completions("runs/") == []  # the shell knows paths better


def test_a_run_may_be_called_as_the_folder_that_it_learned_from(
    encoder_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`dsdmae pretrain pets --name pets`, and then `dsdmae probe pets` beside the folder pets."""
    from dsdmae_cli.artifacts.trained_method import open_method

    monkeypatch.chdir(tmp_path)
    (tmp_path / "pets").mkdir()
    (tmp_path / "pets" / "1.jpg").touch()
    assert "pets holds no run and no weights" in refusal("pets")
    run = default_folder() / "pets"
    shutil.copytree(encoder_run, run)
    assert parse("pets").path == run
    assert open_method(Path("pets")).step > 0
    shutil.copytree(encoder_run, tmp_path / "pets", dirs_exist_ok=True)
    assert parse("pets").path == Path("pets"), "what lies here comes first"
