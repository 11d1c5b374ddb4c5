"""A run and its processes: signals, a second process, kill -9, Ctrl-C, and workers that are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from helpers import (
    SLOW_DRIVER,
    assignments,
    cli,
    one_line,
    records,
    start,
    steps_done,
    train,
    wait_until,
    words,
)
from small_runs import PLACES

from dsdmae_cli import checkpoint
from dsdmae_cli.errors import SettingsError
from dsdmae_cli.signals import listening


def test_the_first_signal_is_remembered_the_second_ends() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with listening() as requests:
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGTERM)
        assert (requests.save, requests.stop_signal) == (True, signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before
    script = (
        "import signal, sys\nfrom dsdmae_cli.signals import listening\nwith listening():\n"
        "    signal.raise_signal(signal.SIGINT)\n    print('on', flush=True)\n"
        "    signal.raise_signal(signal.SIGTERM)\n    print('still on')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "on\n")


@pytest.mark.slow
def test_usr1_kill_and_term(digits: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    total = 150
    chosen = assignments(digits, "train.epochs=30", "train.checkpoint_every=1000")
    first = start("-c", SLOW_DRIVER, "pretrain", *words(chosen), "--out", run)
    wait_until(lambda: steps_done(run) >= 2, first)

    # A second process, this one, finds the directory taken, whether it resumes or begins.
    for resume in (True, False):
        with pytest.raises(SettingsError, match="another process is running"):
            train(digits, run, resume=resume)

    # SIGUSR1 saves and goes on.
    first.send_signal(signal.SIGUSR1)
    wait_until(lambda: bool(checkpoint.newest_first(run / "checkpoints")), first)
    saved = int(checkpoint.newest_first(run / "checkpoints")[0].name.split("-")[1])
    assert 2 <= saved < total
    wait_until(lambda: steps_done(run) > saved + 2, first)

    # kill -9: nothing is said, the lock is gone with the process.
    first.kill()
    _, err = first.communicate()
    assert (first.returncode, "Traceback" in err) == (-signal.SIGKILL, False)
    reached = steps_done(run)
    second = start("-c", SLOW_DRIVER, "pretrain", "--resume", "--out", run)
    wait_until(lambda: steps_done(run) > reached + 2, second)
    second.send_signal(signal.SIGTERM)
    _, err = second.communicate(timeout=60)
    assert second.returncode == 143, err
    assert f"resumed at step {saved}" in err
    newest = int(checkpoint.newest_first(run / "checkpoints")[0].name.split("-")[1])
    assert f"stopped by signal 15 and saved at step {newest} of {total}" in err.splitlines()[-1]
    assert f"dsdmae pretrain --resume --out {run}" in err.splitlines()[-1]
    assert "Traceback" not in err

    code, out, _ = cli(capfd, "pretrain", "--resume", "--out", run, "--json")
    assert (code, json.loads(out)["steps"]) == (0, total)
    assert [r["step"] for r in records(run)] == list(range(1, total + 1))


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)  # of a terminal; of `timeout`, systemd, SLURM
def test_a_signal_that_reaches_the_workers_too_harms_nothing(
    number: signal.Signals, digits: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    chosen = assignments(digits, *PLACES["workers"], "train.epochs=10")
    process = start("-c", SLOW_DRIVER, "pretrain", *words(chosen), "--out", run)
    wait_until(lambda: steps_done(run) >= 2, process)
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err
    assert f"stopped by {'Ctrl-C' if number == signal.SIGINT else 'signal 15'}" in err.splitlines()[-1]
    assert "Traceback" not in err
    code, out, _ = cli(capfd, "pretrain", "--resume", "--out", run, "--json")
    assert (code, json.loads(out)["steps"]) == (0, 50)


# torch reports a lost worker from a signal handler, so wherever the process is; in one of its own it harms no test.
FATAL_DRIVER = """
import os, signal
from dsdmae_cli.data.files import FileImages
me, load = os.getpid(), FileImages.load
def fatal(self, index):
    if os.getpid() != me and index == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return load(self, index)
FileImages.load = fatal
"""


@pytest.mark.parametrize("when", ["while decoding", "while training"])
def test_a_killed_worker_ends_the_run(when: str, digits: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    chosen = words(assignments(digits, *PLACES["workers"], "train.epochs=40"))
    driver = SLOW_DRIVER if when == "while training" else FATAL_DRIVER + SLOW_DRIVER
    process = start("-c", driver, "pretrain", *chosen, "--out", run)
    if when == "while training":
        wait_until(lambda: steps_done(run) >= 2, process)
        for child in psutil.Process(process.pid).children():
            child.kill()
        killed = time.monotonic()
        _, err = process.communicate(timeout=60)
        assert time.monotonic() - killed < 20
    else:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1, err
    assert "decodes images died" in one_line(err)
    assert "--resume" in err
    assert len(err.splitlines()) < 15
