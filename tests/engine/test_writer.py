"""Checkpoints that a thread writes: what is copied aside, what is waited for, and what becomes of a failure."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import digit_folder, train, untimed
from safetensors.torch import load_file

from dsdmae_cli import checkpoint
from dsdmae_cli.checkpoint import Checkpoint
from dsdmae_cli.errors import RunFailed
from dsdmae_cli.runs import writer
from dsdmae_cli.runs.writer import Writer

CPU = torch.device("cpu")


def of_step(step: int, weight: torch.Tensor, seen: dict[str, str]) -> Checkpoint:
    return Checkpoint(step, {"w": weight}, {"m": weight}, {"unreadable": seen}, {})


@pytest.fixture
def threaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "in_background", lambda device: True)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Writing waits until this is called."""
    gate, save = threading.Event(), checkpoint.save

    def waiting(folder: Path, saved: Checkpoint, keep: int) -> Path:
        assert gate.wait(60)
        return save(folder, saved, keep)

    monkeypatch.setattr(checkpoint, "save", waiting)
    return gate.set


@pytest.mark.usefixtures("threaded")
def test_training_goes_on_and_changes_nothing_of_what_is_written(held: Callable[[], None], tmp_path: Path) -> None:
    weight, seen, writing = torch.zeros(3), {"a": "b"}, Writer(CPU)
    writing.save(tmp_path, of_step(1, weight, seen), 2)
    writing.check()  # still under way, and nothing to say of it
    weight += 1
    seen["c"] = "d"
    assert not checkpoint.newest_first(tmp_path)
    held()
    writing.wait()
    found = checkpoint.load(tmp_path / "step-00000001")
    assert torch.equal(found.model["w"], torch.zeros(3))
    assert torch.equal(found.training["m"], torch.zeros(3))
    assert found.state == {"unreadable": {"a": "b"}}
    writing.close()


@pytest.mark.usefixtures("threaded")
def test_one_at_a_time_and_the_last_comes_to_its_end(held: Callable[[], None], tmp_path: Path) -> None:
    writing = Writer(CPU)
    writing.save(tmp_path, of_step(1, torch.zeros(1), {}), 5)
    threading.Timer(0.05, held).start()
    writing.save(tmp_path, of_step(2, torch.ones(1), {}), 5)
    assert (tmp_path / "step-00000001").is_dir()
    writing.close()
    assert (tmp_path / "step-00000002").is_dir()


@pytest.mark.usefixtures("threaded")
def test_a_checkpoint_that_cannot_be_written_is_told_at_the_next_step(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(folder: Path, saved: Checkpoint, keep: int) -> Path:
        raise RunFailed("no space left")

    monkeypatch.setattr(checkpoint, "save", full)
    writing = Writer(CPU)
    writing.save(tmp_path, of_step(1, torch.zeros(1), {}), 2)
    assert writing._thread is not None
    writing._thread.submit(lambda: None).result(60)  # stands in line behind it
    with pytest.raises(RunFailed, match="no space left"):
        writing.check()
    writing.save(tmp_path, of_step(2, torch.zeros(1), {}), 2)
    with pytest.raises(RunFailed, match="no space left"):
        writing.wait()
    writing.close()


def test_a_run_that_a_thread_saves_is_the_same_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    digits = digit_folder(tmp_path / "digits", train=16, test=4)
    train(digits, tmp_path / "plain", "train.checkpoint_every=1")
    threads: list[str] = []
    save = checkpoint.save

    def watched(folder: Path, saved: Checkpoint, keep: int) -> Path:
        threads.append(threading.current_thread().name)
        return save(folder, saved, keep)

    monkeypatch.setattr(writer, "in_background", lambda device: True)
    monkeypatch.setattr(checkpoint, "save", watched)
    train(digits, tmp_path / "beside", "train.checkpoint_every=1")
    assert len(threads) == 2
    assert all(name.startswith("checkpoint") for name in threads)
    assert untimed(tmp_path / "plain") == untimed(tmp_path / "beside")
    for file in ("model", "training"):
        mine, theirs = (
            load_file(checkpoint.newest_first(tmp_path / run / "checkpoints")[0] / f"{file}.safetensors")
            for run in ("plain", "beside")
        )
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())
