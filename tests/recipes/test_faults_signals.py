"""What must not cost a result or a run (docs/design/faults.md): signals, in any command and at any time."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers import assignments, cli, digit_folder, one_line, records, start, steps_done, train, wait_until, words
from small_runs import at_step

from dsdmae_cli.runs.held import busy
from dsdmae_cli.runs.observers.progress import Progress
from dsdmae_cli.runs.run import Run
from dsdmae_cli.signals import handled, listening, once, stopping

pytestmark = [pytest.mark.faults, pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no such signals here")]
STOPS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(autouse=True)
def _heard() -> Any:
    """Tests that run under nohup, or in a shell's background, hear of SIGHUP and SIGINT all the same."""
    usual = {signal.SIGHUP: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def said(number: int) -> str:
    return "dsdmae: interrupted" if number == signal.SIGINT else f"dsdmae: stopped by signal {int(number)}"


# -- every command


@pytest.mark.parametrize("number", STOPS)
@pytest.mark.parametrize(
    "command",
    ["probe", "finetune", "embed", "export", "compare", "denoise", "restore", "predict", "worth", "ablate", "data"],
)
def test_a_signal_ends_any_command_in_a_line_and_leaves_nothing(
    command: str, number: signal.Signals, encoder_run: Path, tuned_run: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    digits, out = encoder_run.parent / "digits", tmp_path / "out"
    lines = {
        "probe": (["probe", encoder_run, "--dataset", f"folder:{digits}"], "recipes.probe.judge"),
        "finetune": (["finetune", encoder_run, "--dataset", f"folder:{digits}"], "recipes.finetune.open_encoder"),
        "embed": (["embed", encoder_run, "--dataset", f"folder:{digits}"], "recipes.embed.open_encoder"),
        "export": (["export", encoder_run, "--to", "timm"], "recipes.export.open_encoder"),
        "compare": (["compare", encoder_run], "recipes.compare.read_result"),
        "denoise": (["denoise", next(digits.rglob("*.png"))], "recipes.denoise.open_restorer"),
        "restore": (["restore", encoder_run, next(digits.rglob("*.png"))], "recipes.restore.open_method"),
        "predict": (["predict", tuned_run, next(digits.rglob("*.png"))], "pictures.predict.open_encoder"),
        "worth": (["worth", encoder_run, "--dataset", f"folder:{digits}"], "recipes.worth.ask"),
        "ablate": (["ablate", "--sweep", "mask-ratio", "0.5", "--dataset", "digits"], "recipes.ablate.ablate"),
        "data": (["data", "pack", f"folder:{digits}"], "data.pack_dataset.pack"),
    }
    line, place = lines[command]

    def stopped(*_: object, **__: object) -> None:
        signal.raise_signal(signal.SIGUSR1)  # ends nothing
        signal.raise_signal(number)
        signal.raise_signal(number)  # its echo
        raise AssertionError("it went on")

    monkeypatch.setattr(f"dsdmae_cli.{place}", stopped)
    targets = {"embed": out.with_suffix(".npz"), "denoise": out.with_suffix(".png"), "restore": out.with_suffix(".png")}
    targets |= {"predict": out.with_suffix(".csv")}
    target = targets.get(command, out)
    code, text, err = cli(capfd, *line, *(() if command == "compare" else ("--out", target)))
    assert (code, text) == (128 + number, "")
    last = err.splitlines()[-1]
    assert last == said(number) or last.startswith(
        f"dsdmae: stopped by {'Ctrl-C' if number == 2 else f'signal {number}'}: "
    )
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", STOPS)
def test_a_signal_while_the_result_is_written_says_how_to_go_on(
    number: signal.Signals, digits: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"

    def stopped(*_: object) -> None:
        signal.raise_signal(signal.SIGUSR1)  # of a run that has made its last step there is nothing left to save
        signal.raise_signal(number)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Run, "_left", stopped)
        code, _, err = cli(capfd, "pretrain", *words(assignments(digits, "train.epochs=1")), "--out", run)
    assert code == 128 + number
    by = "Ctrl-C" if number == signal.SIGINT else f"signal {int(number)}"
    assert err.splitlines()[-1] == (
        f"dsdmae: stopped by {by} and saved at step 5 of 5; go on with: dsdmae pretrain --resume --out {run}"
    )
    assert not (run / "result.json").exists()
    assert json.loads((run / "run.json").read_text())["ended"]["state"] == "stopped"
    code, out, _ = cli(capfd, "pretrain", "--resume", "--out", run, "--json")
    assert (code, json.loads(out)["steps"]) == (0, 5)


@pytest.mark.parametrize("number", STOPS)
def test_a_signal_in_the_last_step_is_heard(
    number: signal.Signals, digits: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """What comes after it, figures and judging, may take longer than who sent it waits."""
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patched:
        at_step(patched, 5, lambda: signal.raise_signal(number))
        code, _, err = cli(capfd, "pretrain", *words(assignments(digits, "train.epochs=1")), "--out", run)
    assert code == 128 + number
    assert "and saved at step 5 of 5; go on with: dsdmae pretrain --resume" in err.splitlines()[-1]
    assert not (run / "result.json").exists()
    assert cli(capfd, "pretrain", "--resume", "--out", run)[0] == 0
    assert (run / "result.json").exists()


@pytest.mark.parametrize("number", STOPS)
def test_a_probe_that_is_stopped_while_it_draws_says_that_its_result_is_there(
    number: signal.Signals, encoder_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    run = tmp_path / "probe"
    monkeypatch.setattr("dsdmae_cli.recipes.probe.draw", lambda *_: signal.raise_signal(number))
    line = ["probe", encoder_run, "--dataset", f"folder:{encoder_run.parent / 'digits'}", "--out", run]
    code, _, err = cli(capfd, *line)
    assert code == 128 + number
    by = "Ctrl-C" if number == signal.SIGINT else f"signal {int(number)}"
    said = f"dsdmae: stopped by {by} when its result was written, in {run}; figures and the page may be missing"
    assert err.splitlines()[-1] == said
    assert json.loads((run / "result.json").read_text())["kind"] == "probe"


# -- one signal that comes twice


def test_an_echo_is_no_second_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("dsdmae_cli.signals.time.monotonic", lambda: now[0])
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    heard: list[int] = []
    with handled({signal.SIGTERM: once(lambda number, frame: heard.append(number))}):
        signal.raise_signal(signal.SIGTERM)
        now[0] += 0.5
        signal.raise_signal(signal.SIGTERM)
        assert len(heard) == 1
        now[0] += 1
        signal.raise_signal(signal.SIGTERM)
        assert len(heard) == 2
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")  # torchrun passes it on when it comes to it
        now[0] += 20
        signal.raise_signal(signal.SIGTERM)
        assert len(heard) == 2


def test_an_echo_that_comes_after_the_training_disturbs_no_clearing_up() -> None:
    cleared = []
    with stopping():
        with listening() as requests:
            signal.raise_signal(signal.SIGTERM)
            assert requests.stop_signal == signal.SIGTERM
        signal.raise_signal(signal.SIGTERM)
        cleared.append("all")
    assert cleared == ["all"]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("timeout") is None, reason="no coreutils")
def test_timeout_which_signals_twice_saves(digits: Path, tmp_path: Path) -> None:
    """It sends SIGTERM to the process, and then to the group that the process is in."""
    run = tmp_path / "run"
    chosen = words(assignments(digits, "train.epochs=4000", "train.checkpoint_every=1000"))
    for _ in range(3):
        again = ["--resume"] if run.exists() else chosen
        done = subprocess.run(
            ["timeout", "20", sys.executable, "-m", "dsdmae_cli", "pretrain", *again, "--out", str(run)],
            capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 124, done.stderr
        assert "stopped by signal 15 and saved at step" in done.stderr.splitlines()[-1]


# -- who else is there


def test_a_run_whose_directory_goes_away_ends_in_one_line(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    stepped = Progress.stepped

    def removes(self: Progress, run: Run, step: int) -> None:
        stepped(self, run, step)
        if step == 3:
            shutil.rmtree(run.directory.path)

    monkeypatch.setattr(Progress, "stepped", removes)
    chosen = words(assignments(digits, "train.checkpoint_every=1"))
    code, _, err = cli(capfd, "pretrain", *chosen, "--out", tmp_path / "run")
    assert code in (0, 1), err
    assert "Traceback" not in err
    if code:
        one_line(err)


def test_a_copy_of_a_live_run_is_a_run_of_its_own(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a lock file that no process holds holds nobody."""
    copied = tmp_path / "copy"
    stepped = Progress.stepped

    def copies(self: Progress, run: Run, step: int) -> None:
        stepped(self, run, step)
        if step == 7:
            shutil.copytree(run.directory.path, copied)

    monkeypatch.setattr(Progress, "stepped", copies)
    train(digits, tmp_path / "run", "train.checkpoint_every=1")
    monkeypatch.undo()
    assert (copied / ".lock").exists()
    assert train(digits, copied, resume=True)["steps"] == 10
    assert (copied / "encoder.safetensors").read_bytes() == (tmp_path / "run" / "encoder.safetensors").read_bytes()


@pytest.mark.slow
def test_of_several_starts_in_one_directory_one_wins(digits: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    whole = words(assignments(digits, "train.epochs=2"))
    starts = [start("-m", "dsdmae_cli", "pretrain", *whole, "--out", run) for _ in range(3)]
    ends = [process.communicate(timeout=240)[1] for process in starts]
    codes = [process.returncode for process in starts]
    assert sorted(codes) == [0, 2, 2], ends
    assert all("Traceback" not in err for err in ends)
    assert json.loads((run / "result.json").read_text())["steps"] == 10


@pytest.mark.slow
def test_a_reader_of_the_result_that_leaves_costs_no_result(digits: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start("-m", "dsdmae_cli", "pretrain", *words(assignments(digits, "train.epochs=1")), "--out", run)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    with process.stderr as said_on:
        err = said_on.read()
    assert process.wait(timeout=120) == 141, err
    assert "Traceback" not in err
    assert json.loads((run / "run.json").read_text())["ended"]["state"] == "finished"


def study_of_one(tmp_path: Path, epochs: int) -> tuple[list[str], Path]:
    """The command of a study with one trial, which saves where it is stopped alone, and the trial's directory."""
    chosen = words(
        assignments(digit_folder(tmp_path / "digits"), f"train.epochs={epochs}", "train.checkpoint_every=1000")
    )
    line = ["ablate", "--sweep", "mask-ratio", "0.5", *chosen, "--metric", "loss", "--workers", "1",
            "--out", str(tmp_path / "study")]  # fmt: skip
    return line, tmp_path / "study" / "trials" / "mask-ratio-0.5-seed-0"


@pytest.mark.slow
@pytest.mark.parametrize("number", STOPS)
def test_a_signal_to_a_study_saves_its_trials(number: signal.Signals, tmp_path: Path) -> None:
    line, trial = study_of_one(tmp_path, epochs=2000)
    hears = "import signal, sys\nsignal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
    process = start("-c", f"{hears}from dsdmae_cli.__main__ import main\nmain(sys.argv[1:])", *line)
    wait_until(lambda: steps_done(trial) >= 2, process, 240)
    os.killpg(process.pid, number)  # the trial is in a group of its own
    _, err = process.communicate(timeout=120)
    by = "Ctrl-C" if number == signal.SIGINT else f"signal {int(number)}"
    assert process.returncode == 128 + number, err
    assert err.splitlines()[-1].startswith(f"dsdmae: stopped by {by} with 0 of 1 trial done; the runs were saved")
    assert list((trial / "checkpoints").glob("step-*"))


@pytest.mark.slow
def test_a_study_that_is_killed_takes_its_trial_with_it_and_goes_on(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nobody could stop a trial whose study is gone: it saves and ends, and the same command takes it up."""
    line, trial = study_of_one(tmp_path, epochs=200)
    process = start("-m", "dsdmae_cli", *line)
    wait_until(lambda: steps_done(trial) >= 2, process, 240)
    [child] = psutil.Process(process.pid).children()
    process.kill()
    process.communicate(timeout=60)
    child.wait(60)  # which returns at once where it has ended
    reached = steps_done(trial)
    assert 2 <= reached < 1000
    assert not busy(trial)
    assert json.loads((trial / "run.json").read_text())["ended"]["state"] == "stopped"
    assert [path.name for path in (trial / "checkpoints").iterdir()] == [f"step-{reached:08d}"]
    code, _, err = cli(capfd, *line)
    assert code == 0, err
    assert [r["step"] for r in records(trial)] == list(range(1, 1001))
