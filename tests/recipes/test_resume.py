"""A run that was stopped, or fell, goes on with --resume as if nothing had been, or says why it cannot."""

from __future__ import annotations

import json
import shutil
import signal
from contextlib import nullcontext
from pathlib import Path

import pytest
from helpers import (
    cli,
    listing,
    one_line,
    train,
    untimed,
)
from safetensors.torch import load as load_tensors
from small_runs import FILES, MOMENTS, PLACES, RANDOM, STEPS, at_step

from dsdmae_cli import checkpoint
from dsdmae_cli.errors import CheckpointError, RunInterrupted, SettingsError
from dsdmae_cli.runs.observers.base import Observer
from dsdmae_cli.runs.observers.features import Features
from dsdmae_cli.runs.observers.page import PageWriter
from dsdmae_cli.runs.run import Run


class PowerCut(BaseException):
    """What no program can answer."""


@pytest.fixture
def copied(resident: Path, tmp_path: Path) -> Path:
    return shutil.copytree(resident, tmp_path / "run")


def assert_same_run(run: Path, expected: Path) -> None:
    """All that two runs of one command leave is equal to the last bit, the clock's readings apart."""
    assert untimed(run) == untimed(expected)
    equal = ["encoder.safetensors", *(f"figures/{name}" for name in MOMENTS)]
    equal += [f"checkpoints/step-{STEPS:08d}/{name}" for name in ("model.safetensors", "training.safetensors")]
    different = [name for name in equal if (run / name).read_bytes() != (expected / name).read_bytes()]
    assert different == []
    results = [json.loads((folder / "result.json").read_text()) for folder in (run, expected)]
    for key in ("run", "seconds", "encoder", "load_with", "pictures"):
        for result in results:
            del result[key]
    assert results[0] == results[1]


@pytest.mark.parametrize("place", PLACES)
def test_a_resumed_run_equals_an_uninterrupted_one(
    place: str, digits: Path, resident: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, chosen = tmp_path / "run", (*RANDOM, *PLACES[place])
    expected = resident
    if place != "resident":
        expected = tmp_path / "whole"
        train(digits, expected, *chosen)

    def crash() -> None:
        raise PowerCut

    # In the first micro-window, at the end of an epoch, right after it, in a window that has just begun.
    for index, step in enumerate((2, 10, 11, 13)):
        with monkeypatch.context() as patched:
            if step == 13:
                at_step(patched, step, crash)
                patched.setattr(Run, "_saving", lambda self: nullcontext())  # where the power fails nobody saves
                with pytest.raises(PowerCut):
                    train(digits, run, *chosen, resume=True)
                with (run / "metrics.jsonl").open("a") as file:
                    file.write('{"step": 13, "lo')
                break
            number = signal.SIGTERM if index % 2 else signal.SIGINT
            at_step(patched, step, lambda number=number: signal.raise_signal(number))
            with pytest.raises(RunInterrupted, match=f"saved at step {step} of {STEPS}") as stopped:
                train(digits, run, *chosen, resume=index > 0)
            assert stopped.value.exit_code == 128 + number
            assert checkpoint.newest_first(run / "checkpoints")[0].name == f"step-{step:08d}"
    train(digits, run, *chosen, resume=True)
    assert_same_run(run, expected)
    if place == "resident":
        # The checkpoints before the last are those at which it was stopped.
        kept = FILES - {name for name in FILES if "step-00000010" in name}
        assert {name for name in listing(run) if "step-00000011/" not in name} >= kept
    assert json.loads((run / "run.json").read_text())["resumed_at_step"] == 11


@pytest.mark.parametrize("observer", [Features, PageWriter])  # told first, and when all others know
def test_an_error_at_the_end_of_an_epoch_leaves_nothing_out(
    observer: type[Observer], copied: Path, resident: Path, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(copied / "checkpoints" / f"step-{STEPS:08d}")
    (copied / "result.json").unlink()

    def fall(self: Observer, run: Run, epoch: int, last: bool) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patched:
        patched.setattr(observer, "epoch_ended", fall)
        with pytest.raises(ZeroDivisionError):
            train(digits, copied, *RANDOM, *PLACES["resident"], resume=True)
        assert checkpoint.newest_first(copied / "checkpoints")[0].name == f"step-{STEPS:08d}"
    train(digits, copied, *RANDOM, *PLACES["resident"], resume=True)
    assert_same_run(copied, resident)


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file but the lock: when it was written, and what it holds."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


@pytest.mark.parametrize("without", ["", "checkpoints"])
def test_a_finished_run_is_left_as_it_is(without: str, copied: Path, capfd: pytest.CaptureFixture[str]) -> None:
    if without:  # to save room: it must not be trained from the beginning
        shutil.rmtree(copied / without)
    before = contents(copied)
    code, out, err = cli(capfd, "pretrain", "--resume", "--out", copied)
    assert code == 0, err
    assert f"finished already, in {copied}: nothing is trained, judged or written" in err
    assert "encoder " in out
    planned = cli(capfd, "pretrain", "--resume", "--out", copied, "--dry-run").out
    assert f"finished already, in {copied}" in planned
    assert contents(copied) == before


@pytest.mark.parametrize("lost", ["result.json", "encoder.safetensors", "run.json"])
def test_what_a_finished_run_has_lost_is_made_again(lost: str, copied: Path, resident: Path, digits: Path) -> None:
    (copied / lost).unlink()
    train(digits, copied, *RANDOM, *PLACES["resident"], resume=True)
    assert listing(copied) == FILES
    assert_same_run(copied, resident)


def test_a_damaged_newest_checkpoint_falls_back(
    copied: Path, resident: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    newest = copied / "checkpoints" / "step-00000015"
    damaged = bytearray((newest / "model.safetensors").read_bytes())
    damaged[-5] ^= 4
    (newest / "model.safetensors").write_bytes(damaged)
    (copied / "result.json").unlink()
    code, _, err = cli(capfd, "pretrain", "--resume", "--out", copied, "--json")
    assert code == 0
    assert len(err.splitlines()) == 1
    assert f"warning: checkpoint {newest} is damaged: model.safetensors does not match its checksum" in err
    assert_same_run(copied, resident)

    for path in [*copied.glob("checkpoints/*/manifest.json"), copied / "result.json"]:
        path.unlink()
    before = listing(copied)
    code, out, err = cli(capfd, "pretrain", "--resume", "--out", copied)
    assert (code, out) == (2, "")
    assert "no checkpoint" in one_line(err)
    assert listing(copied) == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("optim.lr=0.5", "optim.lr: 0.001, now 0.5"),
        ("train.epochs=4", "train.epochs: 3, now 4"),
        ("method.lambda=0.5", "method.lambda: 0.6, now 0.5"),
        ("train.micro_batch=4", "train.micro_batch: 3, now 4"),
        ("backbone.depth=1", "backbone.depth: 2, now 1"),
        ("data.shift=2", "data.shift: 1, now 2"),
        ("train.seed=1", "train.seed: 0, now 1"),
    ],
)
def test_changed_settings_are_refused_by_name(change: str, named: str, resident: Path, digits: Path) -> None:
    with pytest.raises(SettingsError) as refused:
        train(digits, resident, *RANDOM, *PLACES["resident"], change, resume=True, overridden=True)
    assert named in str(refused.value)
    assert str(refused.value).count(", now ") == 1
    assert listing(resident) == FILES


def test_settings_that_change_no_result_may_change(copied: Path, resident: Path, digits: Path, tmp_path: Path) -> None:
    free = ("train.keep_checkpoints=3", "data.workers=1", "data.download=false", f"data.data_dir={tmp_path}")
    shutil.rmtree(copied / "checkpoints" / "step-00000015")
    (copied / "result.json").unlink()
    train(digits, copied, *RANDOM, *PLACES["resident"], *free, resume=True, overridden=True)
    assert untimed(copied) == untimed(resident)
    weights = "checkpoints/step-00000015/model.safetensors"
    ours, theirs = (load_tensors((run / weights).read_bytes()) for run in (copied, resident))
    assert all(bool((ours[name] == theirs[name]).all()) for name in theirs)


def test_only_what_is_given_beside_resume_is_compared(copied: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The run's other settings stand: nobody repeats a whole command line to move a run to another device."""
    resume = ("pretrain", "--resume", "--out", copied, "--json")
    code, _, err = cli(capfd, *resume, "--device", "cpu", "--set", "train.keep_checkpoints=3")
    assert (code, err) == (0, "")
    code, _, err = cli(capfd, *resume, "--lr", "0.5")
    assert code == 2
    assert "optim.lr: 0.001, now 0.5" in one_line(err)
    assert err.count(", now ") == 1


def test_where_there_is_nothing_to_resume(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for out in (tmp_path, tmp_path / "missing"):
        code, _, err = cli(capfd, "pretrain", "--resume", "--out", out)
        assert code == 2
        assert f"nothing to resume in {out}" in one_line(err)
    assert listing(tmp_path) == set()
    code, _, err = cli(capfd, "pretrain", "--resume")
    assert code == 2
    assert "add --out DIR" in one_line(err)


def test_a_run_without_a_checkpoint_begins_anew(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash() -> None:
        raise PowerCut

    chosen = ("train.epochs=1", "train.knn_every=1")
    with monkeypatch.context() as patched:
        at_step(patched, 3, crash)
        patched.setattr(Run, "_saving", lambda self: nullcontext())
        with pytest.raises(PowerCut):
            train(digits, tmp_path / "run", *chosen)
        assert not checkpoint.newest_first(tmp_path / "run" / "checkpoints")
    train(digits, tmp_path / "run", *chosen, resume=True)
    train(digits, tmp_path / "whole", *chosen)
    assert untimed(tmp_path / "run") == untimed(tmp_path / "whole")


def test_checkpoints_of_another_shape_are_refused(copied: Path, digits: Path) -> None:
    text = (copied / "settings.toml").read_text()
    (copied / "settings.toml").write_text(text.replace("embed_dim = 32", "embed_dim = 16"))
    (copied / "result.json").unlink()
    with pytest.raises(CheckpointError, match=r"embed_dim: 32, now 16; put it back"):
        train(digits, copied, resume=True)
    with pytest.raises(CheckpointError, match=r"do not fit: .* is \(.*32.*\), not \(.*16.*\)"):
        train(digits, copied, resume=True, accept_changes=True)
