"""What the system limits: open files and inodes that run out, by real limits, end a run in one line of their own."""

from __future__ import annotations

import errno
import multiprocessing.process
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import assignments, cli, digit_folder, one_line, words

from dsdmae_cli.errors import RESUME, RunFailed, RunInterrupted
from dsdmae_cli.report import Report

pytestmark = [pytest.mark.faults, pytest.mark.skipif(sys.platform != "linux", reason="limits as Linux has them")]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of torch's half made loader
@pytest.mark.parametrize("extra", [2])
def test_files_that_cannot_be_opened_are_one_line(
    extra: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import resource

    digits = digit_folder(tmp_path / "digits")
    chosen = words(assignments(digits, "train.epochs=1", "data.placement=streaming", "data.workers=1"))
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open("/dev/null", os.O_RDONLY)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + extra, before[1]))
    try:
        code, _, err = cli(capfd, "pretrain", *chosen, "--out", tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert code in (1, 2)
    assert "too many open files" in one_line(err).lower()
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of torch's half made loader
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_of_decoders_that_cannot_all_be_started_none_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """They do not hear SIGTERM, by which Python ends those of a program that ends."""
    digits, started = digit_folder(tmp_path / "digits"), multiprocessing.process.BaseProcess.start
    chosen = words(assignments(digits, "train.epochs=1", "data.placement=streaming", "data.workers=3"))
    made: list[multiprocessing.process.BaseProcess] = []

    def unless_third(self: multiprocessing.process.BaseProcess) -> None:
        if len(made) == 2:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        started(self)
        made.append(self)

    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", unless_third)
    code, _, err = cli(capfd, "pretrain", *chosen, "--out", tmp_path / "run")
    assert code == 1
    assert "3 processes that decode images cannot be started (Too many open files)" in one_line(err)
    for process in made:
        process.join(10)
        assert process.exitcode is not None
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("inodes", [4, 6, 12])
def test_inodes_that_run_out_are_one_line_and_the_run_goes_on_with_more(
    inodes: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    digits, disk = digit_folder(tmp_path / "digits"), tmp_path / "disk"
    disk.mkdir()
    small = ["mount", "-t", "tmpfs", "-o", f"nr_inodes={inodes},size=16m", "tmpfs", str(disk)]
    try:
        mounted = subprocess.run(small, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"no disk of few inodes can be mounted here: {error}")
    if mounted.returncode:
        pytest.skip(f"no disk of few inodes can be mounted here: {mounted.stderr.strip()}")
    run = disk / "run"
    chosen = words(assignments(digits, "train.epochs=1"))
    try:
        code, _, err = cli(capfd, "pretrain", *chosen, "--out", run)
        assert code == 1
        assert "No space left on device" in one_line(err)
        assert not list(disk.rglob("*.partial"))
        begun = (run / "settings.toml").exists()
        assert ("go on with --resume" in one_line(err)) == begun
        subprocess.run(["mount", "-o", "remount,nr_inodes=500", str(disk)], check=True)
        code, _, err = cli(capfd, "pretrain", *(["--resume"] if begun else chosen), "--out", run)
        assert code == 0, err
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_picture_that_cannot_be_written_advises_nothing() -> None:
    """--resume does not draw it anew, and a probe has none."""
    report = Report()

    def written() -> None:
        raise RunFailed(f"cannot write a.png: No space left on device; {RESUME}")

    with report.spared("the picture of the mistakes"):
        written()
    [said] = report.warnings
    assert said.endswith("(RunFailed: cannot write a.png: No space left on device)")


@pytest.mark.parametrize(("rank", "said"), [("0", 1), ("1", 0)])
def test_of_a_group_that_is_stopped_the_first_process_speaks(
    rank: str, said: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_: object, **__: object) -> None:
        interrupted = RunInterrupted("stopped by signal 15 and saved", 15)
        interrupted.said_elsewhere = rank != "0"
        raise interrupted

    def early(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setenv("RANK", rank)
    for ends, words_of_it, expected in ((stopped, "stopped by signal 15", 143), (early, "interrupted", 130)):
        monkeypatch.setattr("dsdmae_cli.recipes.pretrain.pretrain", ends)
        code, _, err = cli(capfd, "pretrain")
        assert code == expected
        assert err.count(words_of_it) == said
