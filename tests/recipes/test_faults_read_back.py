"""What must not cost a result or a run (docs/design/faults.md): damage to what is read back."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import (
    cli,
    one_line,
    train,
    undigested,
)
from safetensors.torch import load_file, save_file

from dsdmae_cli import checkpoint, optim
from dsdmae_cli.artifacts.denoiser import load_denoiser
from dsdmae_cli.artifacts.packaged import ALL, Packaged
from dsdmae_cli.errors import CheckpointError
from dsdmae_cli.files import open_file
from dsdmae_cli.runs.observers.progress import Progress
from dsdmae_cli.runs.rundir import RunDir

pytestmark = pytest.mark.faults
PACKAGED = Path(__file__).parents[2] / "dsdmae_cli" / "weights" / "denoiser.safetensors"


def _smaller(tensors: dict[str, torch.Tensor], key: str) -> None:
    tensors[key] = torch.zeros(3)


def _none(tensors: dict[str, torch.Tensor], key: str) -> None:
    for name in [name for name in tensors if name.startswith("optimizer/")]:
        del tensors[name]


def _stranger(tensors: dict[str, torch.Tensor], key: str) -> None:
    tensors["optimizer/exp_avg/nobody"] = torch.zeros(3)


def _whole_numbers(tensors: dict[str, torch.Tensor], key: str) -> None:
    tensors[key] = tensors[key].long()


@pytest.mark.parametrize("damage", [_smaller, _none, _stranger, _whole_numbers])
def test_moments_of_another_shape_never_reach_the_optimiser(
    damage: Callable[[dict[str, torch.Tensor], str], None], encoder_run: Path
) -> None:
    """A fused kernel would read and write beyond the smaller one."""
    found, _ = checkpoint.load_newest(encoder_run / "checkpoints")
    assert found is not None
    model = torch.nn.Linear(4, 5)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    tensors = optim.optimizer_tensors(optimizer, names)
    optim.restore_optimizer(torch.optim.AdamW(model.parameters()), names, tensors)
    damage(tensors, "optimizer/exp_avg/weight")
    with pytest.raises(CheckpointError, match="the checkpoint's optimiser"):
        optim.restore_optimizer(torch.optim.AdamW(model.parameters()), names, tensors)


# -- what is read back


def resume(capfd: pytest.CaptureFixture[str], run: Path, *more: str) -> tuple[int, str]:
    code, _, err = cli(capfd, "pretrain", "--resume", "--out", run, *more)
    return code, err


@pytest.fixture
def stopped(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that ended after 7 of 10 steps, on images of its own; its checkpoints are of steps 5 and 7."""

    def fails(self: object, run: object, step: int) -> None:
        if step == 7:
            raise OSError("the plug was pulled")

    images = Path(shutil.copytree(digits, tmp_path / "images"))
    monkeypatch.setattr(Progress, "stepped", fails)
    with pytest.raises(OSError, match="plug"):
        train(images, tmp_path / "run", "train.checkpoint_every=1")
    monkeypatch.undo()
    return tmp_path / "run"


def test_settings_that_were_edited_are_refused_or_accepted(stopped: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = stopped / "settings.toml"
    path.write_text(path.read_text().replace("seed = 0", "seed = 7"))
    code, err = resume(capfd, stopped)
    assert code == 2
    assert "settings.toml is not what the run was trained by: train.seed: 0, now 7; put it back, or" in one_line(err)
    code, err = resume(capfd, stopped, "--accept-changes")
    assert code == 0, err
    assert "train.seed: 0, now 7; it goes on by the file" in err


def test_images_that_changed_are_refused_or_accepted(stopped: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = stopped.parent / "images" / "train" / "1"
    shutil.copy(next(folder.glob("*.png")), folder / "one-more.png")
    code, err = resume(capfd, stopped)
    assert code == 2
    line = one_line(err)
    assert "42 images" in line
    assert "43 images" in line
    assert "--accept-changes" in line
    code, err = resume(capfd, stopped, "--accept-changes")
    assert code == 0, err
    assert "order, epochs and schedule are others from here on" in err


def test_images_that_moved_are_the_same(stopped: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Copied files have other times, and are what the run learned from all the same."""
    images = stopped.parent / "images"
    for path in images.rglob("*.png"):
        os.utime(path, (1e9, 1e9))
    code, err = resume(capfd, stopped)
    assert code == 0, err


def test_what_is_accepted_belongs_to_a_run_that_goes_on(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, _, err = cli(capfd, "pretrain", "--accept-changes", "--out", tmp_path / "run")
    assert code == 2
    assert "give --resume --out DIR too" in one_line(err)


def rewritten(checkpointed: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """state.json of a checkpoint changed, and its checksum with it."""
    state = change(json.loads((checkpointed / "state.json").read_text()))
    content = json.dumps(state).encode()
    (checkpointed / "state.json").write_bytes(content)
    sums = json.loads((checkpointed / "manifest.json").read_text())
    sums["state.json"] = hashlib.sha256(content).hexdigest()
    (checkpointed / "manifest.json").write_text(json.dumps(sums))


@pytest.mark.parametrize(
    "change",
    [lambda s: [], lambda s: {**s, "step": "7"}, lambda s: {**s, "step": 10**9}, lambda s: {**s, "settings": None}],
)
def test_a_state_that_is_none_is_passed_over_and_kept(
    change: Callable[[dict[str, Any]], Any], stopped: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rewritten(checkpoint.newest_first(stopped / "checkpoints")[0], change)
    code, err = resume(capfd, stopped)
    assert code == 0, err
    assert "going back to the one before" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "change",
    [
        lambda s: {k: v for k, v in s.items() if k != "seconds"},
        lambda s: {**s, "unreadable": [1]},
        lambda s: {**s, "window_steps": -1},
        lambda s: {**s, "data": {"images": "many"}},
    ],
)
def test_a_runs_state_of_another_kind_is_one_line(
    change: Callable[[dict[str, Any]], Any], stopped: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rewritten(checkpoint.newest_first(stopped / "checkpoints")[0], change)
    code, err = resume(capfd, stopped)
    assert code == 2
    assert "is damaged:" in one_line(err)


def test_a_newer_programs_checkpoint_is_refused_and_never_replaced(
    stopped: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    newest = checkpoint.newest_first(stopped / "checkpoints")[0]
    rewritten(newest, lambda state: {**state, "format": checkpoint.FORMAT_VERSION + 1})
    held = {path: path.read_bytes() for path in newest.iterdir()}
    code, err = resume(capfd, stopped)
    assert code == 2
    assert "written by a newer program (format 2, this one knows 1); update dsdmae" in one_line(err)
    assert {path: path.read_bytes() for path in newest.iterdir()} == held


def test_a_checkpoint_that_cannot_be_read_now_is_not_passed_over(
    stopped: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    newest = checkpoint.newest_first(stopped / "checkpoints")[0]

    def fails(path: Path) -> Any:
        if path == newest / "model.safetensors":
            raise OSError(errno.EIO, "Input/output error", str(path))
        return open_file(path)

    with monkeypatch.context() as broken:
        broken.setattr("dsdmae_cli.checkpoint.open_file", fails)
        code, err = resume(capfd, stopped)
    assert code == 2
    assert "cannot be read now" in one_line(err)
    assert resume(capfd, stopped)[0] == 0


def test_damaged_metrics_stop_nothing_and_lose_nothing(encoder_run: Path, tmp_path: Path) -> None:
    shutil.copytree(encoder_run, tmp_path / "run")
    path, run = tmp_path / "run" / "metrics.jsonl", RunDir(tmp_path / "run")
    lines = path.read_bytes().splitlines()
    whole = run.metrics()
    strange = [b"\x01\xff not a record", b"null", b"[1, 2]"]
    path.write_bytes(b"\n".join([lines[0], *strange, *lines[1:], b'{"step": 9, "lo']))
    assert run.metrics() == whole
    run.forget_after(1000)
    assert run.metrics() == whole
    assert b"not a record" in (tmp_path / "run" / "metrics.jsonl.damaged").read_bytes()


def test_what_a_killed_process_was_writing_is_in_nobodys_way(digits: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".settings.toml.20349.partial").write_text("[data")
    assert train(digits, tmp_path / "run", "train.epochs=1")["steps"] == 5
    left = [tmp_path / "run" / ".report.html.20349.partial", tmp_path / "run" / "figures" / ".curves.png.2.partial"]
    for path in left:
        path.write_text("half")
    assert train(digits, tmp_path / "run", resume=True)["steps"] == 5
    assert not list((tmp_path / "run").rglob("*.partial"))


def test_weights_that_are_not_finite_make_no_export_and_no_picture(
    encoder_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for source, name in ((encoder_run / "encoder.safetensors", "encoder"), (PACKAGED, "denoiser")):
        metadata = undigested(source)
        tensors = load_file(source)
        tensors[min(tensors)].fill_(float("nan"))
        save_file(tensors, tmp_path / f"{name}.safetensors", metadata)
    shutil.copy(next(encoder_run.parent.glob("digits/test/*/*.png")), tmp_path / "a.png")
    for command in (
        ["export", tmp_path / "encoder.safetensors", "--to", "timm", "--out", tmp_path / "out"],
        ["denoise", tmp_path / "a.png", "--weights", tmp_path / "denoiser.safetensors", "--engine", "torch"],
    ):
        code, _, err = cli(capfd, *command)
        assert code == 2
        assert "not finite; its training had diverged" in one_line(err)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "a.denoised.png").exists()


@pytest.mark.parametrize("kind", ["encoder", "classifier", "denoiser"])
def test_a_flipped_bit_in_a_file_of_weights_is_noticed(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"{kind}.safetensors"
    run = request.getfixturevalue("tuned_run" if kind == "classifier" else "encoder_run")
    if kind == "denoiser":
        assert cli(capfd, "export", run, "--to", "denoiser", "--out", path)[0] == 0
        command = ["denoise", next(run.parent.glob("digits/test/*/*.png")), "--weights", path, "--engine", "torch"]
        command += ["--out", tmp_path / "clean.png"]
    else:
        shutil.copy(run / path.name, path)
        command = ["export", path, "--to", "timm", "--out", tmp_path / "out"]
    whole = path.read_bytes()
    path.write_bytes(whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:])
    code, _, err = cli(capfd, *command)
    assert code == 2
    assert "is damaged: its tensors do not match the digest in it" in one_line(err)
    assert not (tmp_path / "out").exists()
    # Files of before, and anybody's, say no digest and are taken as they are.
    path.write_bytes(whole)
    save_file(load_file(path), path, undigested(path))
    code, _, err = cli(capfd, *command)
    assert code == 0, err


@pytest.mark.parametrize("packaged", ALL, ids=lambda one: one.word)
def test_the_packaged_weights_are_those_that_were_packaged(packaged: Packaged) -> None:
    assert load_denoiser(packaged=packaged).sha256 == packaged.sha256
    with pytest.raises(CheckpointError, match="install dsdmae again"):
        load_denoiser(packaged=replace(packaged, sha256="0" * 64))
    with pytest.raises(CheckpointError, match="this installation has no packaged denoiser"):
        load_denoiser(packaged=replace(packaged, file="gone"))


@pytest.mark.parametrize(
    "change",
    [
        {"image_size": "abc"},
        {"image_size": "9" * 5000},
        {"images_seen": "x"},
        {"settings": "[" * 100_000},
        {"settings": "[]"},
    ],
)
def test_absurd_metadata_are_one_line(
    change: dict[str, str], encoder_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = encoder_run / "encoder.safetensors"
    save_file(load_file(source), tmp_path / "a.safetensors", undigested(source) | change)
    code, _, err = cli(capfd, "export", tmp_path / "a.safetensors", "--to", "timm", "--out", tmp_path / "out")
    assert code == 2
    assert len(one_line(err)) < 600


def test_absurd_settings_files_are_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "digits.toml").write_text(f"[train]\nepochs = 0x{'f' * 100_000}\n")
    code, _, err = cli(capfd, "config", "check", tmp_path / "digits.toml")
    assert code == 2
    assert "64 bits" in one_line(err)
    if Path("/dev/zero").exists():
        code, _, err = cli(capfd, "config", "check", "/dev/zero")
        assert code == 2
        assert "/dev/zero: it is a device, no file" in one_line(err)
