"""Images that cannot be read: skipped, named and counted, or the end of a run, as was asked for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import (
    assignments,
    cli,
    digit_folder,
    listing,
    one_line,
    train,
    words,
)
from small_runs import PLACES, stopped_after


@pytest.fixture
def broken(tmp_path: Path) -> Callable[[int], Path]:
    """A function that makes a folder of digits with so many of them damaged."""

    def make(count: int) -> Path:
        folder = digit_folder(tmp_path / "broken")
        for path in sorted(folder.glob("train/*/*.png"))[:count]:
            path.write_bytes(path.read_bytes()[:60])
        return folder

    return make


@pytest.mark.parametrize("place", PLACES)
def test_an_unreadable_image_is_skipped_named_and_counted(
    place: str, broken: Callable[[int], Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = broken(3)
    names = [str(path) for path in sorted(folder.glob("train/*/*.png"))[:3]]
    chosen = assignments(folder, *PLACES[place], "data.max_unreadable=0.1", "train.epochs=4")
    code, out, err = cli(capfd, "pretrain", *words(chosen), "--out", tmp_path / "run", "--json")
    assert code == 0, err
    assert json.loads(out)["unreadable_images"] == 3
    [line] = err.splitlines()
    assert line.startswith("dsdmae: warning: skipped 3 unreadable images: ")
    assert all(name in line for name in names)


@pytest.mark.parametrize("place", PLACES)
def test_unreadable_images_stop_a_strict_run_and_one_beyond_the_limit(
    place: str, broken: Callable[[int], Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    chosen = words(assignments(broken(2), *PLACES[place], "train.epochs=4"))
    code, _, err = cli(capfd, "pretrain", *chosen, "--strict-data", "--out", tmp_path / "strict")
    assert code == 2
    assert "unreadable image" in one_line(err)
    assert "--strict-data" in err
    code, _, err = cli(capfd, "pretrain", *chosen, "--out", tmp_path / "limit")
    assert code == 2
    assert "2 unreadable images so far, more than the limit of 1 of 42" in one_line(err)
    assert "--set data.max_unreadable=SHARE" in err


def test_a_run_that_failed_before_its_first_record_can_still_be_resumed(
    broken: Callable[[int], Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, run = broken(2), tmp_path / "run"
    whole = digit_folder(tmp_path / "whole")
    chosen = assignments(folder, *PLACES["streaming"], "train.epochs=4", "train.log_every=100")
    code, _, err = cli(capfd, "pretrain", *words(chosen), "--out", run)
    assert code == 2
    assert "more than the limit" in one_line(err)
    for bad in sorted(folder.glob("train/*/*.png"))[:2]:
        shutil.copyfile(whole / bad.relative_to(folder), bad)
    # What has trained, and left pictures or checkpoints, is a run; what has not may begin again.
    resume = ["--resume"] if listing(run) - {".lock"} else words(chosen)
    code, out, err = cli(capfd, "pretrain", *resume, "--out", run, "--json")
    assert code == 0, err
    assert json.loads(out)["steps"] == 20


def test_a_resumed_run_remembers_unreadable_images(broken: Callable[[int], Path], tmp_path: Path) -> None:
    folder, run = broken(4), tmp_path / "run"
    chosen = (*PLACES["streaming"], "data.max_unreadable=0.2", "train.epochs=1")
    expected = train(folder, tmp_path / "whole", *chosen)["unreadable_images"]
    assert expected >= 3
    with stopped_after(4):
        train(folder, run, *chosen)
    assert train(folder, run, resume=True)["unreadable_images"] == expected


def test_an_unreadable_held_out_image_is_named(
    broken: Callable[[int], Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = broken(0)
    bad = sorted(folder.glob("test/*/*.png"))[0]
    bad.write_bytes(b"")
    chosen = words(assignments(folder, "train.epochs=1", "train.knn_every=1"))
    code, out, err = cli(capfd, "pretrain", *chosen, "--out", tmp_path / "run", "--json")
    assert code == 0, err
    assert str(bad) in err
    assert json.loads(out)["unreadable_images"] == 0
