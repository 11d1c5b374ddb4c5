"""`dsdmae runs`, --name, and --resume that finds its run: on runs that really finished, were stopped and failed."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from helpers import assignments, cli, one_line, train, words
from small_runs import at_step

from dsdmae_cli.cli.runs import _between_cells
from dsdmae_cli.errors import RunInterrupted, SettingsError
from dsdmae_cli.runs import listing
from dsdmae_cli.runs.rundir import default_folder

SCORED = ("train.knn_every=1", "train.knn_images=10")


def fail() -> None:
    raise ValueError("the third step is unlucky")


@pytest.fixture(scope="module")
def made(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs: a finished one, a stopped one, a failed one, one that was killed."""
    folder = tmp_path_factory.mktemp("runs")
    train(digits, folder / "finished", *SCORED)
    with pytest.MonkeyPatch.context() as patched:
        at_step(patched, 3, lambda: signal.raise_signal(signal.SIGINT))
        with pytest.raises(RunInterrupted):
            train(digits, folder / "stopped", method="mae")
    with pytest.MonkeyPatch.context() as patched:
        at_step(patched, 3, fail)
        with pytest.raises(ValueError, match="unlucky"):
            train(digits, folder / "failed")
    shutil.copytree(folder / "stopped", folder / "killed")
    about = json.loads((folder / "killed" / "run.json").read_text())
    del about["ended"]
    (folder / "killed" / "run.json").write_text(json.dumps(about))
    for age, name in enumerate(("finished", "stopped", "failed", "killed")):
        for file in (folder / name).iterdir():
            at = 1_700_000_000 - 1000 * age
            os.utime(file, (at, at))
    return folder


@pytest.fixture
def runs(made: Path) -> Path:
    """The same where runs go by default, for a test to change."""
    shutil.copytree(made, default_folder())
    return default_folder()


Said = tuple[int, str, str]
Do = Callable[..., Said]


@pytest.fixture
def do(capfd: pytest.CaptureFixture[str]) -> Do:
    return lambda *given: cli(capfd, *given)


def test_the_list(made: Path, do: Do) -> None:
    (made / "notes").mkdir(exist_ok=True)  # no run
    code, out, err = do("runs", "--in", made)
    assert (code, err) == (0, "")
    head, *rows = out.splitlines()
    assert head.split() == ["name", "state", "age", "command", "data", "method", "score", "cost"]
    assert [row.split()[:2] for row in rows] == [
        ["finished", "finished"], ["stopped", "stopped"], ["failed", "failed"], ["killed", "failed"],
    ]  # fmt: skip
    result = json.loads((made / "finished" / "result.json").read_text())
    assert f"k-NN {result['knn_accuracy']:.1%}" in rows[0]
    assert "mae vit-tiny" in rows[1]
    assert rows[1].endswith("epoch 0.6 of 2")
    assert " d  pretrain  digits" in rows[0]


@pytest.mark.parametrize("columns", [80, 200])
def test_names_are_whole_in_any_terminal(columns: int, made: Path, tmp_path: Path) -> None:
    long = tmp_path / "2026-11-27-233755-dsdmae-vit-tiny-digits"
    shutil.copytree(made / "finished", long)
    inside, outside = pty.openpty()
    fcntl.ioctl(outside, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    command = [sys.executable, "-m", "dsdmae_cli", "runs", "--in", str(tmp_path)]
    environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "NO_COLOR")}
    subprocess.run(command, stdout=outside, check=True, timeout=60, env=environment)
    os.close(outside)
    said = re.sub(r"\x1b\[[0-9;]*m", "", os.read(inside, 65536).decode())
    os.close(inside)
    lines = said.replace("\r", "").splitlines()
    assert max(map(len, lines)) <= columns
    assert sum(long.name in line for line in lines) == 1
    assert any(re.search(r"finished +\d+ . +pretrain +digits", line) for line in lines)


def test_the_list_for_scripts(made: Path, do: Do) -> None:
    told = {run["name"]: run for run in json.loads(do("runs", "--in", made, "--json")[1])["runs"]}
    assert told["stopped"]["why"] == "stopped by Ctrl-C and saved at step 3 of 10"
    assert told["failed"]["why"] == "ValueError: the third step is unlucky"
    assert "without a word" in told["killed"]["why"]
    assert told["finished"]["why"] == ""
    assert told["finished"]["seconds"] > 0
    assert (told["stopped"]["epoch"], told["stopped"]["epochs"]) == (pytest.approx(0.6), 2)
    [only] = json.loads(do("runs", "--in", made, "--json", "--state", "stopped")[1])["runs"]
    assert only == told["stopped"]


def test_a_run_that_is_held_is_running(made: Path, do: Do) -> None:
    with FileLock(made / "stopped" / ".lock"):
        told = {run["name"]: run for run in json.loads(do("runs", "--in", made, "--json")[1])["runs"]}
        assert told["stopped"]["state"] == "running"
        code, _, err = do("runs", "rm", "stopped", "--yes", "--in", made)
        assert (code, "is running; stop it first" in one_line(err)) == (2, True)


def test_somebody_elses_runs_and_two_who_look_at_once(made: Path, do: Do, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = os.open

    def readable(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        if str(path).endswith(".lock") and flags & (os.O_WRONLY | os.O_RDWR):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", readable)
    with (made / "stopped" / ".lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        told = {run["name"]: run for run in json.loads(do("runs", "--in", made, "--json")[1])["runs"]}
    assert told["stopped"]["state"] == "stopped"


def test_nothing_there(tmp_path: Path, do: Do) -> None:
    code, out, err = do("runs")
    assert (code, out) == (0, "")
    assert "no run in" in err
    assert json.loads(do("runs", "--json")[1])["runs"] == []
    code, _, err = do("runs", "--in", tmp_path / "nowhere")
    assert (code, "there is no folder" in one_line(err)) == (2, True)
    (tmp_path / "file").write_text("")
    code, _, err = do("runs", "--in", tmp_path / "file")
    assert (code, "is no folder" in one_line(err)) == (2, True)


@pytest.mark.parametrize("name", ["result.json", "run.json", "metrics.jsonl"])
@pytest.mark.parametrize("content", ["", "[1, 2]", '{"ended": 3, "seconds": "long", "knn_accuracy": "x"}'])
def test_damaged_files_of_a_run_do_not_hide_the_others(runs: Path, do: Do, name: str, content: str) -> None:
    (runs / "finished" / name).write_text(content)
    (runs / "killed" / "settings.toml").write_text("[train")
    code, out, err = do("runs")
    assert code == 0
    assert len(out.splitlines()) == 4  # the head, and all but the damaged one
    assert err.startswith("dsdmae: warning: ")
    assert "killed" in err


@pytest.mark.parametrize("theirs", ["[tool]\nx = 1\n", "", "no toml at all"])
def test_a_folder_of_another_program_is_no_run(runs: Path, do: Do, theirs: str) -> None:
    """Many programs call a file settings.toml: what is theirs is not listed, not opened and above all not deleted."""
    other = runs / "website"
    (other / "src").mkdir(parents=True)
    (other / "settings.toml").write_text(theirs)
    assert "website" not in do("runs")[1]
    for command in (("show", "website"), ("open", str(other)), ("rm", str(other), "--yes"), ("rm", "website", "--yes")):
        code, out, err = do("runs", *command)
        assert (code, out) == (2, "")
        assert "is no run" in one_line(err)
    assert sorted(path.name for path in other.iterdir()) == ["settings.toml", "src"]


def test_figures_that_are_no_numbers_are_none(runs: Path, do: Do) -> None:
    """JSON has no NaN."""
    result = json.loads((runs / "finished" / "result.json").read_text())
    (runs / "finished" / "result.json").write_text(json.dumps({**result, "knn_accuracy": float("nan")}))
    with (runs / "killed" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "epoch": Infinity, "knn": NaN}\n')
    told = json.loads(do("runs", "--json")[1], parse_constant=lambda word: pytest.fail(word))["runs"]
    assert {run["name"]: run["score"] for run in told}["finished"] is None
    assert do("runs", "best")[0] == 2


def test_a_probe_that_was_killed_is_not_resumed(runs: Path, do: Do, digits: Path) -> None:
    probe = runs / "probe"
    assert do("probe", runs / "finished", "--kind", "knn", "--dataset", f"folder:{digits}", "--out", probe)[0] == 0
    (probe / "result.json").unlink()
    out = do("runs", "show", "probe")[1]
    assert "--resume" not in out
    assert "go on       the same command begins it anew" in out
    (probe / "run.json").unlink()
    assert do("runs", "open", "probe")[0] == 0
    page = (probe / "report.html").read_text()
    assert "The same command begins it anew." in page
    assert "--resume" not in page


def test_show(runs: Path, do: Do) -> None:
    code, out, _ = do("runs", "show", "stopped")
    assert code == 0
    assert f"go on       dsdmae pretrain --resume --out {runs / 'stopped'}" in out
    assert "stopped by Ctrl-C and saved at step 3 of 10" in out
    out = do("runs", "show", runs / "finished")[1]
    assert "next        dsdmae probe finished\n" in out
    closing = json.loads((runs / "finished" / "result.json").read_text())["closing"]
    assert closing.replace("RUN", "finished") in out  # to be copied and typed
    assert json.loads(do("runs", "show", "failed", "--json")[1])["bytes"] > 1000
    code, _, err = do("runs", "show", "stoped")
    assert (code, "(did you mean stopped?)" in one_line(err)) == (2, True)


@pytest.mark.parametrize("columns", [40, 60, 80])
def test_a_narrow_terminal_breaks_no_word(runs: Path, do: Do, monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))
    path, closing = runs / "finished" / "result.json", f"Worse than untrained by {'many ' * 30}points."
    path.write_text(json.dumps({**json.loads(path.read_text()), "closing": closing}))
    out = do("runs", "show", "finished")[1]
    told = out[out.index("Worse than") :].splitlines()
    assert all(len(line) <= columns for line in told)
    assert " ".join(told) == closing


@pytest.mark.parametrize("width", [20, 30, 60])
def test_a_line_of_the_table_is_broken_between_its_cells(width: int) -> None:
    cells = ["finished", "6 min", "probe", "digits", "dsdmae vit-tiny", "top-1 39.0%", "2 s"]
    lines = _between_cells("  ".join(cells), width).splitlines()
    assert all(line.startswith("  ") and len(line) <= width for line in lines)
    assert [cell for line in lines for cell in line.strip().split("  ")] == cells


def test_open_says_where_the_page_is(runs: Path, do: Do) -> None:
    (runs / "finished" / "report.html").unlink()
    code, _, err = do("runs", "open", "finished")
    assert (code, "has no page report.html; its pictures are in" in one_line(err)) == (2, True)
    (runs / "finished" / "report.html").write_text("<html>")
    assert do("runs", "open", "finished")[:2] == (0, f"{runs / 'finished' / 'report.html'}\n")


def test_open_of_a_killed_run_says_that_it_was_killed(runs: Path, do: Do) -> None:
    page = runs / "killed" / "report.html"
    page.unlink(missing_ok=True)
    code, out, err = do("runs", "open", "killed")
    assert (code, out.strip(), err) == (0, str(page), "")
    text = page.read_text(encoding="utf-8")
    assert "it ended without a word: killed, or the machine went down" in text
    assert "dsdmae pretrain --resume --out RUN" in text
    assert "data-patience" not in text.partition("<body")[2].partition(">")[0]  # it waits for nothing
    # Of a run that said how it ended the page is its own, and so is a finished one's.
    for name in ("stopped", "failed", "finished"):
        before = (runs / name / "report.html").read_bytes()
        assert do("runs", "open", name)[0] == 0
        assert (runs / name / "report.html").read_bytes() == before


def test_best(runs: Path, do: Do, digits: Path) -> None:
    better = runs / "better"
    shutil.copytree(runs / "finished", better)
    result = json.loads((better / "result.json").read_text())
    (better / "result.json").write_text(json.dumps({**result, "knn_accuracy": 0.99}))
    code, out, err = do("runs", "best")
    assert (code, out) == (0, f"{better}\n")
    assert "k-NN 99.0%" in err
    assert "the best of 2 on" in err
    shutil.copytree(better, runs / "other")
    (runs / "other" / "result.json").write_text(json.dumps({**result, "dataset": "digits", "knn_accuracy": 1.0}))
    code, _, err = do("runs", "best")
    assert (code, "scores of different datasets cannot be compared" in one_line(err)) == (2, True)
    for word in (digits, f"folder:{digits}"):
        assert do("runs", "best", "--dataset", word)[1] == f"{better}\n"
    code, _, err = do("runs", "best", "--for", "probe")
    assert (code, "no finished run of `dsdmae probe`" in one_line(err)) == (2, True)


def test_rm_asks(runs: Path, do: Do, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, err = do("runs", "rm", "failed")
    assert (code, "say --yes" in one_line(err)) == (2, True)
    code, _, err = do("runs", "rm", "failed", "faild", "--yes")
    assert (code, "(did you mean failed?)" in one_line(err)) == (2, True)
    assert (runs / "failed").is_dir()  # none is gone where one is wrong
    (runs / "link").symlink_to(runs / "killed")
    code, _, err = do("runs", "rm", "link", "--yes")
    assert (code, "is a link to" in one_line(err)) == (2, True)
    (tmp_path / "mine").mkdir()
    code, _, err = do("runs", "rm", tmp_path / "mine", "--yes")
    assert (code, "has no settings.toml" in one_line(err)) == (2, True)
    assert (tmp_path / "mine").is_dir()
    monkeypatch.chdir(runs / "killed")
    assert do("runs", "rm", "failed", ".", "--yes")[0] == 0
    assert {path.name for path in runs.iterdir()} - {"notes"} == {"finished", "stopped", "link"}


# --name and --resume


def test_a_run_has_the_name_that_it_is_given(digits: Path, do: Do) -> None:
    chosen = words(assignments(digits, "train.epochs=1", method="mae"))
    code, out, err = do("pretrain", *chosen, "--name", "first-try")
    assert code == 0, err
    assert str(default_folder() / "first-try" / "encoder.safetensors") in out
    # It is a subject by its name, anywhere.
    code, out, err = do("embed", "first-try", "--out", default_folder().parent / "f.npz")
    assert code == 0, err
    code, _, err = do("pretrain", *chosen, "--name", "first-try")
    assert (code, "holds a run already" in one_line(err)) == (2, True)


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "-x", "scratch", "pixels", "a b", "x" * 101])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(SettingsError, match="cannot be a run's name"):
        listing.named(name)


def test_a_name_and_a_place(do: Do, tmp_path: Path) -> None:
    code, _, err = do("pretrain", "--name", "a", "--out", tmp_path / "b")
    assert (code, "both say where the run goes" in one_line(err)) == (2, True)


def test_resume_finds_the_last_run_that_has_not_finished(runs: Path, do: Do) -> None:
    shutil.rmtree(runs / "failed")
    code, out, err = do("pretrain", "--resume")
    assert code == 0, err
    assert "going on with stopped, the last of 2 that have not finished: stopped " in err
    assert str(runs / "stopped" / "encoder.safetensors") in out
    assert listing.read(runs / "stopped").state == "finished"
    code, out, err = do("pretrain", "--resume", "--json")  # the killed one is left
    assert (code, err) == (0, "")
    assert json.loads(out)["run"] == str(runs / "killed")
    code, _, err = do("pretrain", "--resume")
    assert (code, "no unfinished run of `dsdmae pretrain`" in one_line(err)) == (2, True)


def test_what_is_refused_leaves_the_word_of_how_it_ended(runs: Path, do: Do) -> None:
    before = listing.read(runs / "stopped")
    code, _, err = do("pretrain", "--resume", "--out", runs / "stopped", "--batch-size", "4")
    assert (code, "these differ" in one_line(err)) == (2, True)
    assert listing.read(runs / "stopped").why == before.why


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "119 min"), (7200, "2 h"), (2e5, "2 d")]
)
def test_ages(seconds: float, words: str) -> None:
    assert listing.age(seconds) == words


@pytest.mark.parametrize(
    ("count", "words"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (39e6, "39 MB"), (2e13, "20.0 TB")]
)
def test_sizes(count: float, words: str) -> None:
    assert listing.size(count) == words


def test_what_a_run_may_be_named_is_checked_before_anything_is_made(do: Do) -> None:
    code, _, err = do("pretrain", "--name", "../evil", "--epochs", "1")
    assert (code, "cannot be a run's name" in one_line(err)) == (2, True)
    assert not default_folder().exists()


@pytest.mark.parametrize("what", ["a pipe", "a folder", "too large"])
def test_figures_that_cannot_be_read_are_said_and_the_other_runs_listed(what: str, tmp_path: Path) -> None:
    for name in ("whole", "odd"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "settings.toml").write_text("[data]\ndataset = 'digits'\n[backbone]\nname = 'vit-tiny'\n")
    figures = tmp_path / "odd" / "metrics.jsonl"
    if what == "a pipe":
        os.mkfifo(figures)
    elif what == "a folder":
        figures.mkdir()
    else:
        with figures.open("wb") as file:
            file.truncate(10 * 2**30)  # which takes no place on a disk
    found, complaints = listing.find(tmp_path)
    assert [run.name for run in found] == ["whole"]
    [line] = complaints
    assert line.startswith(f"cannot read {figures}: ")
