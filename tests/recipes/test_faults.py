"""What must not cost a result or a run: figures, class names, a log that nobody reads, signals, damaged checkpoints."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from helpers import (
    SLOW_DRIVER,
    assignments,
    cli,
    digit_folder,
    one_line,
    start,
    steps_done,
    train,
    undigested,
    wait_until,
    words,
)
from safetensors.torch import load_file, save_file

from dsdmae_cli import checkpoint, engine, files, optim, plugins
from dsdmae_cli.artifacts import packaged
from dsdmae_cli.artifacts.denoiser import load_denoiser
from dsdmae_cli.backbone import Backbone
from dsdmae_cli.errors import CheckpointError, PluginError, RunFailed
from dsdmae_cli.evaluation.reducing import tsne
from dsdmae_cli.figures import scores as figures
from dsdmae_cli.report import markdown, shown, without_password
from dsdmae_cli.runs import rundir
from dsdmae_cli.runs.observers.progress import Progress
from dsdmae_cli.runs.rundir import RunDir
from dsdmae_cli.runtime import Runtime
from dsdmae_cli.settings.models import DataSettings

pytestmark = pytest.mark.faults
PACKAGED = Path(__file__).parents[2] / "dsdmae_cli" / "weights" / "denoiser.safetensors"


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digit_folder(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def odd_names(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits in class folders that matplotlib would read as formulas, or has no letters for."""
    folder = digit_folder(tmp_path_factory.mktemp("odd") / "digits", train=40, test=24)
    for split in ("train", "test"):
        for number, name in enumerate(("$5_$10", "a$_{b$", "$\\frac{$", "\u732b")):
            (folder / split / str(number)).rename(folder / split / name)
    return folder


@pytest.mark.parametrize("kind", ["knn", "linear"])
def test_constant_features_are_judged_and_only_their_map_is_missing(
    kind: str, encoder_run: Path, odd_names: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = encoder_run / "encoder.safetensors"
    metadata = undigested(source)
    save_file({k: torch.zeros_like(v) for k, v in load_file(source).items()}, tmp_path / "zeros.safetensors", metadata)
    code, _, err = cli(
        capfd, "probe", tmp_path / "zeros.safetensors", "--kind", kind, "--dataset", odd_names, "--epochs", 1,
        "--device", "cpu", "--out", tmp_path / "probed",
    )  # fmt: skip
    assert code == 0, err
    assert "the map of the features could not be made (ValueError: features do not differ from image to image)" in err
    assert "Glyph" not in err
    assert (tmp_path / "probed" / "result.json").exists()
    assert (tmp_path / "probed" / "figures" / "confusion.png").exists()


@pytest.mark.parametrize("fill", [1.0, float("nan"), float("inf")])
def test_no_layout_of_points_that_do_not_differ(fill: float) -> None:
    with pytest.raises(ValueError, match="features"):
        tsne(torch.full((64, 48), fill))
    rounded = torch.randn(64, 48, generator=torch.Generator().manual_seed(0)).round().clamp(-1, 1)
    assert tsne(rounded).isfinite().all()


def test_a_figure_that_fails_costs_no_result(
    encoder_run: Path,
    odd_names: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(figures, "confusion", fails)
    small = ["--epochs", 1, "--batch-size", 8, "--device", "cpu"]
    code, _, err = cli(capfd, "finetune", encoder_run, "--dataset", odd_names, *small, "--out", tmp_path / "tuned")
    assert code == 0, err
    assert "the picture of the confusion matrix could not be made (OSError" in err
    assert (tmp_path / "tuned" / "result.json").exists()
    assert (tmp_path / "tuned" / "figures" / "classes.png").exists()


def test_a_log_that_nobody_reads_ends_no_run(digits: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "dsdmae_cli", "pretrain", *words(assignments(digits)), "--out", str(run)],
        stdout=subprocess.DEVNULL,
        stderr=writer,
    )
    os.close(writer)
    os.read(reader, 1)
    os.close(reader)
    assert process.wait(timeout=120) == 0
    assert (run / "result.json").exists()


def test_an_error_between_two_steps_saves_first(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: object, run: object, step: int) -> None:
        if step == 7:
            raise OSError("the disk of the log is full")

    monkeypatch.setattr(Progress, "stepped", fails)
    with pytest.raises(OSError, match="full"):
        train(digits, tmp_path / "run", "train.checkpoint_every=100")
    assert checkpoint.newest_first(tmp_path / "run" / "checkpoints")[0].name == "step-00000007"
    monkeypatch.undo()
    assert train(digits, tmp_path / "run", "train.checkpoint_every=100", resume=True)["steps"] == 10
    assert [record["step"] for record in RunDir(tmp_path / "run").metrics()] == list(range(1, 11))


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no such signal here")
def test_a_lost_line_saves_and_an_early_usr1_harms_nothing(
    digits: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    chosen = assignments(digits, "train.epochs=30", "train.checkpoint_every=1000")
    heard = "import signal\nsignal.signal(signal.SIGHUP, signal.SIG_DFL)\n"  # under nohup it is ignored, and stays so
    process = start("-c", heard + SLOW_DRIVER, "pretrain", *words(chosen), "--out", run)
    wait_until(lambda: (run / "settings.toml").exists(), process)
    process.send_signal(signal.SIGUSR1)
    wait_until(lambda: steps_done(run) >= 2, process)
    process.send_signal(signal.SIGHUP)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 129, err
    assert "saved at step" in err
    assert checkpoint.newest_first(run / "checkpoints")


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


def test_pipes_and_links_to_themselves_are_passed_over(
    encoder_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(next(encoder_run.parent.glob("digits/test/*/*.png")), tmp_path / "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    code, out, err = cli(capfd, "denoise", tmp_path)
    assert code == 1
    assert "a.denoised.png" in out
    assert "loop.png" in one_line(err)
    assert "pipe.png" not in err


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
    newest, read = checkpoint.newest_first(stopped / "checkpoints")[0], Path.read_bytes

    def fails(path: Path) -> bytes:
        if path == newest / "model.safetensors":
            raise OSError(errno.EIO, "Input/output error", str(path))
        return read(path)

    with monkeypatch.context() as broken:
        broken.setattr(Path, "read_bytes", fails)
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


def test_the_packaged_weights_are_those_that_were_packaged(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_denoiser().sha256 == packaged.SHA256
    monkeypatch.setattr(packaged, "SHA256", "0" * 64)
    with pytest.raises(CheckpointError, match="install dsdmae again"):
        load_denoiser()


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("postgresql://ann:s3cret@host:5432/db", "postgresql://ann:***@host:5432/db"),
        ("sqlite:///:SECRET@s.db", "sqlite:///:***@s.db"),
        ("--storage=mysql://a:b:c@h/d", "--storage=mysql://a:***@h/d"),
        ("data.crop_scale=[0.4,1.0]", "data.crop_scale=[0.4,1.0]"),
    ],
)
def test_passwords_are_recorded_nowhere(given: str, kept: str) -> None:
    assert without_password(given) == kept


# -- text from outside is shown, never obeyed

HOSTILE = "<img src=x onerror=alert(1)>|`[click](javascript:alert(1))\x1b[31mRED\x07\u202e\n---"


def test_a_terminal_obeys_no_name() -> None:
    assert shown("a\x1b[31mb\x07\u202ec\r\x9bd\te\nf é 猫 σ") == (
        "a\\x1b[31mb\\x07\\u202ec\\r\\x9bd\te\nf é 猫 σ"
    )  # fmt: skip
    assert shown("a\nb", one_line=True) == "a\\nb"


def test_markdown_says_names_as_they_are() -> None:
    text = markdown(HOSTILE)
    assert text == (
        "&lt;img src=x onerror=alert(1)&gt;\\|\\`[click]\\(javascript:alert(1))\\\\x1b[31mRED\\\\x07\\\\u202e\\\\n---"
    )
    assert markdown("mask_ratio = 0.9, [0.4, 1.0] ± 3%") == "mask_ratio = 0.9, [0.4, 1.0] ± 3%"


def test_names_of_files_and_runs_write_no_escape_to_the_terminal(
    digits: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(digits, tmp_path / "images"))
    (folder / "train" / "0" / "esc\x1b[31mRED\x07.png").write_bytes(b"no picture")
    chosen = words(assignments(folder, "train.epochs=1"))
    code, out, err = cli(capfd, "pretrain", *chosen, "--out", tmp_path / "r\x1b[2Jun")
    assert code == 0, err
    assert "\x1b" not in out + err
    assert "\x07" not in out + err
    assert "skipped an unreadable image" in err
    assert "esc\\x1b[31mRED\\x07.png" in err
    code, _, err = cli(capfd, "denoise", tmp_path / "no\x1b[31m\u202esuch.png")
    assert code == 2
    assert "no\\x1b[31m\\u202esuch.png" in one_line(err)


def test_a_card_holds_no_markup_from_outside(
    tuned_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source, path = tuned_run / "classifier.safetensors", tmp_path / "classifier.safetensors"
    metadata = undigested(source)
    metadata["classes"] = json.dumps([HOSTILE, *json.loads(metadata["classes"])[1:]])
    save_file(load_file(source), path, metadata)
    code, _, err = cli(capfd, "export", path, "--to", "hf", "--out", tmp_path / "out")
    assert code == 0, err
    card = (tmp_path / "out" / "README.md").read_text()
    assert markdown(HOSTILE) in card
    for live in ("<img", "](javascript", "\x1b", "\u202e"):
        assert live not in card


def test_a_report_holds_no_markup_from_outside(tmp_path: Path) -> None:
    from jinja2 import Environment, PackageLoader

    for package in ("ablation", "worth"):
        template = PackageLoader(f"dsdmae_cli.{package}").get_source(Environment(), "report.md")[0]
        # Numbers and what the program says itself need none of it; everything that a person or a file named does.
        raw = set(re.findall(r"\{\{ ([a-z_.]+) \}\}", template))
        assert raw <= {
            "about_best",
            "base",
            "done",
            "image",
            "trials",
            "wall",
            "work",
            "metric",
            "paper.dataset",
            "paper.source",
            "value",
            "share",
        }


# -- what runs out, and who is left behind


def test_a_link_planted_at_a_partial_file_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    victim, target = tmp_path / "victim", tmp_path / "o.png"
    victim.write_text("mine")
    (tmp_path / f".o.png.{os.getpid()}.partial").symlink_to(victim)
    files.write_bytes(target, b"picture")
    monkeypatch.setattr(secrets, "token_hex", lambda _: "foreseen")
    (tmp_path / ".p.png.foreseen.partial").symlink_to(victim)
    with pytest.raises(RunFailed, match="File exists"):
        files.write_bytes(tmp_path / "p.png", b"picture")
    assert victim.read_text() == "mine"
    assert target.read_bytes() == b"picture"
    assert not target.is_symlink()
    umask = os.umask(0)
    os.umask(umask)
    assert target.stat().st_mode & 0o777 == 0o666 & ~umask


def test_runs_that_begin_in_one_second_have_a_directory_each(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(rundir, "default_folder", lambda: tmp_path)
    now, data = datetime(2026, 1, 1), DataSettings(dataset="digits")
    paths = [rundir.default_path(now, "mae", "vit", data) for _ in range(4)]
    assert len(set(paths)) == 4
    assert all(path.is_dir() for path in paths)


def test_a_refused_start_leaves_no_directory_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rundir, "default_folder", lambda: tmp_path / "runs")
    code, _, _ = cli(capfd, "pretrain", *words(assignments(tmp_path / "nothing")))
    assert code == 2
    assert not list((tmp_path / "runs").glob("*"))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "memory ran out"),
        (OSError(errno.EMFILE, "Too many open files", "/data/a.png"), "too many open files at /data/a.png; raise"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "cannot allocate memory"),
    ],
)
def test_what_the_system_runs_out_of_is_one_line(
    error: BaseException, said: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("dsdmae_cli.recipes.pretrain.pretrain", fails)
    code, _, err = cli(capfd, "pretrain")
    assert code == 1
    assert said in one_line(err)


def test_memory_that_ends_amid_a_step_says_what_to_lower() -> None:
    settings = Runtime(torch.device("cpu"), "fp32", False, 8)
    for error in (
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
    ):
        known = engine._explained(error, settings)
        assert known is not None
        assert "lower --set train.micro_batch" in str(known)
    assert engine._explained(RuntimeError("a bug"), settings) is None


def test_a_step_without_finite_features_is_not_judged(
    digits: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    chosen = words(assignments(digits, "train.knn_every=1", "train.max_nonfinite=3", "optim.lr=1e20"))
    code, _, err = cli(capfd, "pretrain", *chosen, "--out", tmp_path / "run")
    assert code in (0, 1)
    assert "Traceback" not in err
    assert "features are not finite" in err or "non-finite loss" in err


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_worker_ends_with_its_parent_however_that_ends(tmp_path: Path) -> None:
    program = (
        "import os, sys, time\nfrom dsdmae_cli.signals import end_with\nparent = os.getpid()\n"
        "child = os.fork()\n"
        "if not child:\n    end_with(parent)\n    print(os.getpid(), flush=True)\n    time.sleep(600)\n"
        "time.sleep(600)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    process.kill()
    process.wait()
    process.stdout.close()
    end = time.monotonic() + 20
    while psutil.pid_exists(worker) and psutil.Process(worker).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end
        time.sleep(0.05)


def test_what_cannot_be_resumed_is_not_advised_to_be() -> None:
    with pytest.raises(RunFailed) as failed, files.not_resumable():
        raise RunFailed(f"cannot write x: No space left on device; {files.RESUME}")
    assert "--resume" not in str(failed.value)
    assert "start again" in str(failed.value)


class _Odd(BaseException):
    pass


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (replace(plugins.find("dataset", "digits").spec, summary=None), "has summary None, not a text"),
        (replace(plugins.find("dataset", "digits").spec, settings=int), "has settings <class 'int'>, not a pydantic"),
        (_Odd("no"), "_Odd: no"),
    ],
)
def test_an_odd_plugin_is_named_and_harms_nobody(
    spec: Any, said: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    class Point:
        name, value, dist = "odd", "odd.module:ODD", None

        def load(self) -> Any:
            print("printed while it is imported")
            if isinstance(spec, BaseException):
                raise spec
            return spec

    known = plugins._entries

    def entries(kind: Any) -> Any:
        odd = plugins._Entry(Point(), "odd", "1")  # type: ignore[arg-type]
        return (*known(kind), *([odd] if kind == "dataset" else []))

    monkeypatch.setattr(plugins, "_entries", entries)
    code, out, _ = cli(capfd, "plugins", "--json")
    assert code == 0
    listed = json.loads(out)
    assert said in json.dumps(listed)
    with pytest.raises(PluginError, match="odd"):
        plugins.find("dataset", "odd")
    assert plugins.find("dataset", "digits").name == "digits"


def test_a_build_that_makes_the_wrong_thing_is_named() -> None:
    with pytest.raises(PluginError, match="'builtins:dict' made a dict, not a Backbone"):
        plugins.made_by("builtins:dict", Backbone)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_before_the_first_step_leaves_nothing(
    number: signal.Signals, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def slow(*_: object) -> None:
        assert (tmp_path / "run" / "settings.toml").exists()
        signal.raise_signal(number)

    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        monkeypatch.setattr("dsdmae_cli.recipes.pretrain.open_all", slow)
        code, _, err = cli(capfd, "pretrain", *words(assignments(digits)), "--out", tmp_path / "run")
    finally:
        signal.signal(signal.SIGHUP, before)
    assert code == 128 + number
    assert err.splitlines()[-1] == f"dsdmae: stopped by signal {int(number)}"
    assert not (tmp_path / "run").exists()


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
        assert "is no settings file" in one_line(err)
