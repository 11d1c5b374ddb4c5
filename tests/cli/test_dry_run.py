"""--dry-run, which writes nothing, and --json, which has stdout to itself."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock
from helpers import Run

from dsdmae_cli.config.compose import load
from dsdmae_cli.config.describe import tables, to_toml

PAPER = ["dsdmae,cifar10,vit-tiny", "dsdmae,cifar100,vit-small", "dsdmae,stl10,vit-base"]


@pytest.fixture
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every folder that a program may write to by itself, all in one empty place."""
    home = tmp_path / "home"
    home.mkdir()
    for variable in ("XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME", "HOME"):
        monkeypatch.setenv(variable, str(home))
    monkeypatch.chdir(home)
    return home


@pytest.mark.parametrize("preset", PAPER)
def test_a_dry_run_of_the_paper_needs_no_data_and_writes_nothing(preset: str, run: Run, empty_home: Path) -> None:
    # A micro-batch too large to be timed on a CPU: the estimate of time is not what is tested here.
    untimed = ("--device", "cpu", "--set", "train.micro_batch=256")
    done = run("pretrain", "--preset", preset, "--dry-run", "--json", "--out", empty_home / "out", *untimed)
    assert (done.code, done.err) == (0, "")
    plan = json.loads(done.out)
    settings = load(preset=preset, environ={}).settings
    images = 100_000 if "stl10" in preset else 50_000
    assert plan["dataset"] == settings.data.dataset
    assert plan["train_images"] == images
    assert plan["tokens"] == 256
    assert plan["effective_batch"] == settings.train.batch_size
    assert plan["steps"] == 500 * (images // settings.train.batch_size)
    assert plan["learning_rate"] == pytest.approx(1.5e-4 * settings.train.batch_size / 256)
    millions = {"tiny": 5.4, "small": 21.3, "base": 85.3}[preset.rpartition("-")[2]]
    assert plan["encoder_parameters"] == pytest.approx(millions * 1e6, rel=0.01)
    assert plan["gflop_per_image"] > 0
    assert plan["memory_gib"] > 0
    assert list(empty_home.iterdir()) == []


def test_a_dry_run_says_the_same_to_people(run: Run, empty_home: Path) -> None:
    done = run("pretrain", "--dry-run", "--out", empty_home / "out")
    assert (done.code, done.err) == (0, "")
    facts = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in done.out.splitlines() if "  " in line)
    assert facts["dataset"].startswith("digits: 1,400 images to train, 397 to evaluate")
    assert "16 tokens" in facts["image"]
    train = load(environ={}).settings.train
    per_epoch = 1400 // train.batch_size
    assert facts["steps"] == f"{train.epochs * per_epoch:,} ({train.epochs} epochs of {per_epoch})"
    assert {"parameters", "batch", "work", "memory", "device", "time"} <= set(facts)
    assert list(empty_home.iterdir()) == []


def test_numbers_may_be_written_as_people_write_them(run: Run) -> None:
    assert json.loads(run("pretrain", "--dry-run", "--json", "--epochs", "1e3").out)["epochs"] == 1000


def test_a_dry_run_of_a_resumption_is_of_that_run(run: Run, refused: Callable[..., str], tmp_path: Path) -> None:
    assert "nothing to resume" in refused("pretrain", "--dry-run", "--resume", "--out", tmp_path / "none")
    earlier = tmp_path / "earlier"
    earlier.mkdir()
    (earlier / "settings.toml").write_text(to_toml(tables(load(flags={"train.epochs": 3}, environ={}).settings)))
    plan = json.loads(run("pretrain", "--dry-run", "--json", "--resume", "--out", earlier).out)
    assert plan["epochs"] == 3
    # What the run itself will refuse; what may differ is planned.
    said = refused("pretrain", "--dry-run", "--resume", "--out", earlier, "--epochs", 5)
    assert "these differ: train.epochs: 3, now 5" in said
    assert run("pretrain", "--dry-run", "--resume", "--out", earlier, "--set", "data.workers=0").code == 0
    assert [path.name for path in earlier.iterdir()] == ["settings.toml"]


def test_a_dry_run_into_a_used_directory_is_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    assert "is not empty" in refused("pretrain", "--dry-run", "--out", tmp_path)
    assert r"r\udcff is no UTF-8" in refused("pretrain", "--dry-run", "--out", tmp_path / "r\udcff")


def test_json_alone_is_on_stdout(run: Run, tmp_path: Path) -> None:
    small = ("--epochs", 1, "--device", "cpu", "--set", "train.knn_every=none", "--set", "backbone.depth=1")
    done = run("pretrain", "--json", "--out", tmp_path / "out", *small)
    assert done.code == 0
    result = json.loads(done.out)
    assert result == json.loads((tmp_path / "out" / "result.json").read_text())
    assert done.err == ""


def test_plugins_as_json_are_one_object(run: Run) -> None:
    done = run("plugins", "--json")
    assert (done.code, done.err) == (0, "")
    assert set(json.loads(done.out)) == {"plugins", "broken"}


def _places(folder: Path) -> dict[str, Path]:
    """Directories that cannot be taken."""
    (folder / "file").write_text("mine")
    (folder / "full").mkdir()
    (folder / "full" / "mine.txt").write_text("mine")
    (folder / "dangling").symlink_to(folder / "nowhere" / "at all")
    (folder / "loop").symlink_to("loop")
    (folder / "closed").mkdir()
    return {
        "not empty|other things": folder / "full", "Not a directory": folder / "file", "Not a director": folder
        / "file" / "x", "leads nowhere": folder / "dangling", "levels of symbolic links": folder / "loop",
        "too long": folder / ("x" * 300), "Permission denied": folder / "closed" / "new",
    }  # fmt: skip


@pytest.mark.parametrize("command", ["pretrain", "probe scratch", "finetune scratch", "ablate --sweep epochs 1,2"])
def test_a_directory_that_cannot_be_taken_is_refused_in_the_words_of_the_call_itself(
    command: str, refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = command.split()
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: "closed" not in str(path) and access(path, mode))
    places = list(_places(tmp_path).items())
    for says, out in places if words[0] == "pretrain" else places[:3]:  # of all, a call begins a little
        line = refused(*words, "--out", out)
        assert re.search(says, line), (says, line)
        assert refused(*words, "--out", out, "--dry-run") == line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["closed", "dangling", "file", "full", "loop"]
    assert list((tmp_path / "closed").iterdir()) == []


@pytest.mark.parametrize(("resume", "begun"), [(True, True), (False, False), (False, True)])
def test_a_directory_in_which_another_process_works_is_refused_in_the_same_words(
    resume: bool, begun: bool, refused: Callable[..., str], tmp_path: Path
) -> None:
    words = ["pretrain", *(["--resume"] if resume else []), "--out", tmp_path]
    if begun:
        (tmp_path / "settings.toml").write_text(to_toml(tables(load(environ={}).settings)))
    with FileLock(tmp_path / ".lock"):
        line = refused(*words)
        assert line.startswith(f"another process is running in {tmp_path}")
        assert refused(*words, "--dry-run") == line
