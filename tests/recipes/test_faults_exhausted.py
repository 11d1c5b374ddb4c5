"""What must not cost a result or a run (docs/design/faults.md): what the system runs out of, and who is left behind."""

from __future__ import annotations

import errno
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import psutil
import pytest
import torch
from helpers import (
    assignments,
    cli,
    one_line,
    words,
)

from dsdmae_cli import engine, files
from dsdmae_cli.data import decode
from dsdmae_cli.errors import RunFailed
from dsdmae_cli.runs import rundir
from dsdmae_cli.runtime import Runtime
from dsdmae_cli.settings.models import DataSettings

pytestmark = pytest.mark.faults


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


def test_what_cannot_be_resumed_is_not_advised_to_be(
    encoder_run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whichever command it is: those that train have a --resume, and no other."""
    from dsdmae_cli.__main__ import _TRAINS
    from dsdmae_cli.cli import COMMANDS, load

    def has_resume(command: object) -> bool:
        inner = getattr(command, "commands", {}).values()
        return any("--resume" in p.opts for p in getattr(command, "params", ())) or any(map(has_resume, inner))

    assert {entry.name for entry in COMMANDS if has_resume(load(entry.name))} == set(_TRAINS)

    def full(*_: object, **__: object) -> None:
        raise RunFailed(f"cannot write x: No space left on device; {files.RESUME}")

    monkeypatch.setattr("dsdmae_cli.recipes.compare.compare", full)
    code, _, err = cli(capfd, "compare", encoder_run)
    assert code == 1
    assert one_line(err).endswith("No space left on device; nothing was left behind. Make room, then start again")
    with pytest.raises(RunFailed, match="give the same command again"), files.not_resumable(files.SAME):
        full()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("can't start new thread"), "the system refuses: can't start new thread; raise the limit of proc"),
        (ImportError("libx.so: failed to map segment from shared object"), "memory ran out"),
        (RuntimeError("unable to open shared memory object </torch_1>: Too many open files (24)"), "ulimit -n"),
        (RuntimeError("std::bad_alloc"), "memory ran out"),
        (RuntimeError("could not create a primitive"), "memory ran out"),  # oneDNN
    ],
)
def test_a_shortage_is_found_behind_what_a_library_makes_of_it(
    error: Exception, said: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object, **__: object) -> None:
        try:
            raise error
        finally:
            raise AttributeError("half made")

    monkeypatch.setattr("dsdmae_cli.recipes.pretrain.pretrain", fails)
    code, _, err = cli(capfd, "pretrain")
    assert code == 1
    assert said in one_line(err)


@pytest.mark.parametrize("placement", ["resident", "streaming"])
def test_images_that_cannot_be_opened_for_the_moment_are_not_passed_over(
    placement: str, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """They are as good as they were: a run without them would learn from others than were asked for."""
    real = decode._stream

    def fails(source: object) -> object:
        if isinstance(source, Path):
            raise OSError(errno.EMFILE, "Too many open files", str(source))
        return real(source)

    chosen = words(assignments(digits, f"data.placement={placement}", "data.workers=0"))
    monkeypatch.setattr("dsdmae_cli.data.files.Directory.content", lambda *_: None)
    monkeypatch.setattr(decode, "_stream", fails)
    code, _, err = cli(capfd, "pretrain", *chosen, "--out", tmp_path / "run")
    assert code == 1
    assert "cannot be read now: too many open files; raise the limit of open files (ulimit -n)" in one_line(err)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits as Linux has them")
@pytest.mark.parametrize("megabytes", [400, 900])
def test_any_command_that_gets_too_little_memory_says_so(megabytes: int, digits: Path, tmp_path: Path) -> None:
    """By a real limit of addresses; torch cannot even be loaded into these."""
    import resource

    chosen = words(assignments(digits, "train.epochs=1"))
    done = subprocess.run(
        [sys.executable, "-m", "dsdmae_cli", "pretrain", *chosen, "--out", str(tmp_path / "run")],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20)),
        capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip
    assert done.returncode == 1
    assert "memory ran out" in one_line(done.stderr)
    assert not (tmp_path / "run").exists()
