"""`pretrain --from`: weights that a person has, as the beginning of a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from helpers import assignments, cli, digit_folder, one_line, records, undigested
from safetensors.torch import load_file, save_file

from dsdmae_cli import checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digit_folder(tmp_path_factory.mktemp("digits"))


def _options(folder: Path, *more: str, method: str = "dsdmae", network: bool = True) -> list[str]:
    given = assignments(folder, "train.epochs=1", "optim.warmup_epochs=0", *more, method=method)
    own = ("backbone.", "data.image_size")
    return [word for a in given if network or not a.startswith(own) for word in ("--set", a)]


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from dsdmae_cli.__main__ import _run

    out = tmp_path_factory.mktemp("runs") / "first"
    assert _run(["pretrain", *_options(folder, "optim.lr=1e-2", "train.knn_every=1"), "--out", str(out)]) == 0
    return out


def _begun(
    capfd: pytest.CaptureFixture[str], out: Path, start: Path | str, *options: str
) -> tuple[dict[str, Any], str]:
    """What a run that begins with `start` left, and what it said."""
    code, said, err = cli(capfd, "pretrain", "--from", start, *options, "--out", out)
    assert code == 0, err
    return json.loads((out / "result.json").read_text()), said + err


def _first_weights(run: Path) -> dict[str, torch.Tensor]:
    """Of the checkpoint after a run whose rate was zero."""
    found, _ = checkpoint.load_newest_weights(run / "checkpoints")
    assert found is not None
    return found.model


def test_a_run_goes_on_with_everything_it_had(
    run: Path, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The network comes from the run without being named; at a rate of next to nothing all weights stay."""
    still = ("optim.lr=1e-30", "optim.weight_decay=0", "method.ema_momentum=[1,1]", "train.knn_every=1")
    options = _options(folder, *still, network=False)
    result, err = _begun(capfd, tmp_path / "more", run, *options)
    before, after = _first_weights(run), _first_weights(tmp_path / "more")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert "the encoder and decoder, regressor, teacher begin with the weights of" in err
    assert result["start"] == str(run)
    assert result["knn_accuracy_untrained"] is None
    last = [r["knn"] for r in records(run) if "knn" in r][-1]
    assert result["knn_accuracy_start"] == pytest.approx(last)
    assert "the weights it began with" in result["closing"]


def test_another_method_takes_the_encoder_alone(
    run: Path, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    still = ("optim.lr=1e-30", "optim.weight_decay=0")
    _, err = _begun(capfd, tmp_path / "sdae", run, *_options(folder, *still, method="sdae", network=False))
    encoder = load_file(run / "encoder.safetensors")
    assert all(torch.equal(encoder[k], v) for k, v in load_file(tmp_path / "sdae" / "encoder.safetensors").items())
    assert "everything else is new" in err


def test_an_encoder_file_and_images_of_another_size(
    run: Path, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(run / "encoder.safetensors", tmp_path / "mine.safetensors")
    options = _options(folder, network=False)
    result, _ = _begun(
        capfd, tmp_path / "larger", tmp_path / "mine.safetensors", *options, "--set", "data.image_size=24"
    )
    assert result["knn_accuracy_start"] is None or result["start"].endswith("mine.safetensors")
    # Weights travel; the place they came from does not.
    assert cli(capfd, "export", tmp_path / "larger", "--to", "timm", "--out", tmp_path / "card")[0] == 0
    assert not any(str(tmp_path) in file.read_text(errors="replace") for file in (tmp_path / "card").iterdir())


def test_a_part_that_fits_in_part_is_not_called_both_old_and_new(
    run: Path, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    _, err = _begun(capfd, tmp_path / "deeper", run, *_options(folder, "method.decoder_depth=2", network=False))
    [line] = [line for line in err.splitlines() if "with the weights of" in line]
    assert f"the encoder and regressor, teacher begin with the weights of {run}, and of decoder what fits" in line
    assert "new:" not in line


def test_a_denoiser_brings_its_decoder(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    unet = [
        "backbone.name=unet", "backbone.patch_size=2", "backbone.widths=[8, 12]", "backbone.depths=[1, 1]",
        "method.heads=conv", "method.residual=true", "data.image_size=16", "method.decoder_depth=1",
        "method.regressor_depth=1", f"data.dataset=folder:{folder}", "train.epochs=1", "train.batch_size=8",
        "optim.warmup_epochs=0", "optim.lr=1e-2", "train.knn_every=none", "method.noise=photograph",
    ]  # fmt: skip
    sets = [word for a in unet for word in ("--set", a)]
    code, _, err = cli(capfd, "pretrain", *sets, "--out", tmp_path / "a")
    assert code == 0, err
    assert cli(capfd, "export", tmp_path / "a", "--to", "denoiser", "--out", tmp_path / "d.safetensors")[0] == 0
    still = ["--set", "optim.lr=1e-30", "--set", "optim.weight_decay=0"]
    _, err = _begun(capfd, tmp_path / "b", tmp_path / "d.safetensors", *sets, *still)
    assert "the encoder and decoder begin with the weights of" in err
    assert "new: regressor" in err
    stored, now = load_file(tmp_path / "d.safetensors"), _first_weights(tmp_path / "b")
    assert all(torch.equal(tensor.float(), now[name]) for name, tensor in stored.items())
    student = {k.removeprefix("student."): v for k, v in now.items() if k.startswith("student.")}
    teacher = {k.removeprefix("teacher.module."): v for k, v in now.items() if k.startswith("teacher.module.")}
    assert student.keys() == teacher.keys()
    assert all(torch.equal(student[k], teacher[k]) for k in student)


def test_resuming_needs_the_weights_no_more(
    run: Path, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run, tmp_path / "start")
    options = _options(folder, "train.epochs=2", "train.checkpoint_every=1", network=False)
    _begun(capfd, tmp_path / "whole", tmp_path / "start", *options)
    shutil.rmtree(tmp_path / "start")
    newest = max((tmp_path / "whole" / "checkpoints").iterdir())
    shutil.rmtree(newest)
    (tmp_path / "whole" / "result.json").unlink()
    before = load_file(tmp_path / "whole" / "encoder.safetensors")
    assert cli(capfd, "pretrain", "--resume", "--out", tmp_path / "whole")[0] == 0
    after = load_file(tmp_path / "whole" / "encoder.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_more_epochs_of_a_finished_run_are_asked_for_with_its_weights(
    run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, _, err = cli(capfd, "pretrain", "--resume", "--out", run, "--epochs", "7")
    assert code == 2
    assert f"for more epochs one that begins with its weights (--from {run})" in one_line(err)
    code, _, err = cli(capfd, "pretrain", "--resume", "--out", run, "--lr", "7")
    assert code == 2
    assert "--from" not in one_line(err)


@pytest.mark.parametrize(
    ("start", "words"),
    [
        ("scratch", "scratch has learned nothing; give a run's directory, a file of weights"),
        ("nowhere", "there is no nowhere"),
        ("other.safetensors", "do not fit"),
    ],
)
def test_what_is_no_beginning(
    start: str, words: str, run: Path, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    if start.endswith(".safetensors"):
        shutil.copy(run / "encoder.safetensors", start)
    options = _options(folder, "backbone.embed_dim=64")
    code, _, err = cli(capfd, "pretrain", "--from", start, *options, "--out", tmp_path / "out")
    assert code == 2
    assert words in one_line(err)
    assert not (tmp_path / "out" / "checkpoints").exists()


def test_damaged_weights(run: Path, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    state = load_file(run / "encoder.safetensors")
    metadata = undigested(run / "encoder.safetensors")
    state.pop(next(iter(state)))
    save_file(state, tmp_path / "torn.safetensors", metadata)
    code, _, err = cli(
        capfd,
        "pretrain",
        "--from",
        tmp_path / "torn.safetensors",
        *_options(folder, network=False),
        "--out",
        tmp_path / "o",
    )
    assert code == 2
    assert "missing" in one_line(err)


def test_weights_from_elsewhere(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A checkpoint as others write it: network and image size come along, and MAE can go on with it."""
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 64, "depth": 1, "num_heads": 1, "num_classes": 3}
    model = timm.create_model("vit_tiny_patch16_224", **sizes)
    saved = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"state_dict": saved, "epoch": 3}, tmp_path / "theirs.pth.tar")
    method = ["--method", "mae", "--set", "method.decoder_depth=1", "--set", "method.decoder_dim=32"]
    options = [*method, "--dataset", f"folder:{folder}", "--epochs", "1", "--set", "train.batch_size=32"]
    options += ["--set", "train.knn_every=none", "--set", "optim.weight_decay=0", "--lr", "1e-30"]
    result, err = _begun(capfd, tmp_path / "out", tmp_path / "theirs.pth.tar", *options)
    assert "1 block of width 64, 1 head (" in err
    assert "left out, as no part of the backbone: head (2)" in err
    encoder = load_file(result["encoder"])
    assert all(torch.equal(encoder[name], t) for name, t in model.state_dict().items() if not name.startswith("head"))


@pytest.mark.parametrize("said", ["--from", "train.start", "DSDMAE_TRAIN_START", "file"])
def test_without_images_it_learns_from_its_own(
    said: str, run: Path, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """It learned the packaged digits, by a rate meant for them; and the network came with --from alone."""
    (tmp_path / "own.toml").write_text(f'train.start = "{run}"\n')
    words = {
        "--from": ["--from", run], "train.start": ["--set", f"train.start={run}"], "file": ["--config", "own.toml"],
    }.get(said, [])  # fmt: skip
    monkeypatch.chdir(tmp_path)
    if not words:
        monkeypatch.setenv(said, str(run))
    code, out, err = cli(capfd, "pretrain", *words, "--dry-run", "--json")
    assert code == 0, err
    planned = json.loads(out)
    assert planned["dataset"].endswith(str(folder))
    code, out, err = cli(capfd, "config", "show", *words, "--json")
    assert code == 0, err
    shown = json.loads(out)["settings"]
    assert (shown["data"]["dataset"], shown["backbone"]["embed_dim"]) == (f"folder:{folder}", 32)


def test_weights_that_say_no_images(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, _, err = cli(capfd, "pretrain", "--from", "timm:test_vit", "--out", tmp_path / "o")
    assert code == 2
    assert one_line(err).endswith(
        "which images? timm:test_vit does not say what it learned from; name them: dsdmae pretrain PATH --from"
        " timm:test_vit"
    )
    assert not (tmp_path / "o").exists()


def test_images_that_went(run: Path, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    there = folder.rename(folder.with_name("elsewhere"))
    try:
        code, _, err = cli(capfd, "pretrain", "--from", run, "--out", tmp_path / "o")
    finally:
        there.rename(folder)
    assert code == 2
    assert f"which images? {run} learned from folder:{folder}, which cannot be had here (" in one_line(err)


@pytest.mark.slow
def test_a_trained_network_learns_more_slowly(
    run: Path, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    given = ["--dataset", f"folder:{folder}", "--epochs", "10", "--set", "train.batch_size=32", "--dry-run"]
    plans, words = [], []
    for more in ([], ["--from", run], ["--from", run, "--lr", "0.003"]):
        code, out, err = cli(capfd, "pretrain", *given, *more, "--json")
        assert code == 0, err
        plans.append(json.loads(out)["learning_rate"])
        code, _, err = cli(capfd, "pretrain", *given, *more)
        words.append(err)
    assert plans == pytest.approx([plans[0], plans[0] / 10, 0.003])
    assert "after 1 epoch of warm-up: a tenth of what a new run has (--lr changes it)" in words[1]
    assert "learning rate 0.003 at its peak after 1 epoch of warm-up (--lr changes it)" in words[2]


@pytest.mark.parametrize("start", ["gone.pth", "torn.pth", "other.safetensors"])
def test_a_dry_run_refuses_what_the_run_refuses(
    start: str, run: Path, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("torn.pth").write_bytes(b"torn")
    shutil.copy(run / "encoder.safetensors", "other.safetensors")
    command = ["pretrain", "--from", start, *_options(folder, "backbone.embed_dim=64")]
    said = [cli(capfd, *command, *more)[::2] for more in (["--dry-run"], ["--out", "out"])]
    assert said[0] == said[1]
    code, err = said[0]
    assert code == 2
    assert "scratch" not in one_line(err)
