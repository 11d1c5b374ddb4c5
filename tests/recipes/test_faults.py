"""What must not cost a result or a run (docs/design/faults.md): figures, a log nobody reads, errors, signals.

Damage to what is read back is in test_faults_read_back.py, hostile text in test_faults_hostile.py, what the system
runs out of in test_faults_exhausted.py.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import (
    SLOW_DRIVER,
    assignments,
    cli,
    digit_folder,
    start,
    steps_done,
    train,
    undigested,
    wait_until,
    words,
)
from safetensors.torch import load_file, save_file

from dsdmae_cli import checkpoint
from dsdmae_cli.evaluation.reducing import tsne
from dsdmae_cli.figures import scores as figures
from dsdmae_cli.runs.observers.progress import Progress
from dsdmae_cli.runs.rundir import RunDir

pytestmark = pytest.mark.faults


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


def test_a_step_without_finite_features_is_not_judged(
    digits: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    chosen = words(assignments(digits, "train.knn_every=1", "train.max_nonfinite=3", "optim.lr=1e20"))
    code, _, err = cli(capfd, "pretrain", *chosen, "--out", tmp_path / "run")
    assert code in (0, 1)
    assert "Traceback" not in err
    assert "features are not finite" in err or "non-finite loss" in err


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
