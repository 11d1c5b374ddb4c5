"""`dsdmae worth`: how its tasks are run, within a time, and what becomes of those that fail."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from filelock import FileLock
from worth_questions import RUN, SCRATCH, leave, question

from dsdmae_cli.errors import RunFailed, RunInterrupted, SettingsError
from dsdmae_cli.report import Report
from dsdmae_cli.runs.child import Slot
from dsdmae_cli.worth import running
from dsdmae_cli.worth.record import plan_text
from dsdmae_cli.worth.running import Runner, check_same
from dsdmae_cli.worth.tasks import Task


class FakeChild:
    """A command that takes a moment and leaves a result, or fails, or waits to be stopped."""

    fails: str | None = None
    waits: str | None = None
    started: ClassVar[list[list[str]]] = []
    epoch_seconds = 30.0

    def __init__(self, words: list[str], log: Path, slot: Slot) -> None:
        self.words, self.log, self.reason, self.stopped = words, log, "", False
        self.folder = Path(words[-1])
        FakeChild.started.append(words)

    def poll(self) -> str:
        name = self.folder.name
        if FakeChild.waits is not None and FakeChild.waits in name:
            return "stopped" if self.stopped else "running"
        if FakeChild.fails is not None and FakeChild.fails in name:
            self.reason = "out of memory"
            return "failed"
        if not self.folder.exists():
            key, way, *_ = [*name.split("-"), "finetune"]
            known: Any = way if way in ("linear", "ep") else "finetune"
            task = Task(RUN if key == "run" else SCRATCH, known, 0)
            leave(self.folder.parent / "made" / name, task, 0.5, 0.5)
            (self.folder.parent / "made" / name / task.name).rename(self.folder)
            result = json.loads((self.folder / "result.json").read_text())
            result["train_seconds"] = FakeChild.epoch_seconds
            (self.folder / "result.json").write_text(json.dumps(result))
        return "done"

    def stop(self) -> None:
        self.stopped = True

    def kill(self) -> None:
        self.stopped = True


@pytest.fixture
def faked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "Child", FakeChild)
    monkeypatch.setattr(running, "_POLL_SECONDS", 0.001)
    for name, value in (("fails", None), ("waits", None), ("started", []), ("epoch_seconds", 30.0)):
        monkeypatch.setattr(FakeChild, name, value)


SLOTS = [Slot("worker 1", {}), Slot("worker 2", {})]


def done(folder: Path) -> set[str]:
    return {path.parent.name for path in (folder / "judged").glob("*/result.json")}


def test_a_dry_run_refuses_the_directory_that_the_question_itself_would(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    asked = question()
    assert plan_text(asked, [], tmp_path / "new")[0]["folder"] == str(tmp_path / "new")
    for out, said in ((tmp_path, "other things"), (tmp_path / "file" / "x", "Not a directory")):
        with pytest.raises(SettingsError, match=said):
            plan_text(asked, [], out)
    (tmp_path / "held").mkdir()
    with FileLock(tmp_path / "held" / ".lock"), pytest.raises(SettingsError, match="another process is running in"):
        plan_text(asked, [], tmp_path / "held")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "held"]


def test_the_budget_decides_the_epochs(faked: None, tmp_path: Path) -> None:
    runner = Runner(question(minutes=30), tmp_path, SLOTS, Report())
    runner.run()
    # 0.95 * 1800 s in two places, for six rounds of an epoch of 30 s and, with a tenth of the labels, of 0.316 of it.
    assert runner.epochs == int(0.95 * 1800 * 2 / (6 * 30 * (1 + 0.32)))
    assert len(done(tmp_path)) == 1 + 6 + 6 + 12
    tuned = [words for words in FakeChild.started if words[0] == "finetune" and "pace" not in words[-1]]
    assert {words[words.index("--epochs") + 1] for words in tuned} == {"14", "44"}
    assert json.loads((tmp_path / "worth.json").read_text())["epochs"] == 14


def test_a_budget_that_is_too_short_is_said(faked: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    runner = Runner(question(minutes=0.5), tmp_path, SLOTS, Report())
    runner.run()
    assert runner.epochs == 1
    assert "too short for fine-tuning" in capfd.readouterr().err
    assert "too short" in runner.notes[0]


def test_a_task_that_fails_stops_no_other_and_is_tried_again(faked: None, tmp_path: Path) -> None:
    asked = question(minutes=30)
    FakeChild.fails = "run-finetune-100%-1"
    first = Runner(asked, tmp_path, SLOTS, Report())
    first.run()
    assert first.failed == {"run-finetune-100%-1": "out of memory"}
    assert len(done(tmp_path)) == 24
    FakeChild.fails, FakeChild.epoch_seconds = None, 3000.0
    FakeChild.started.clear()
    again = Runner(asked, tmp_path, SLOTS, Report())
    again.run()
    assert (again.epochs, again.failed) == (14, {})
    assert [Path(words[-1]).name for words in FakeChild.started] == ["run-finetune-100%-1"]
    assert again.seconds > first.seconds - 1  # the earlier sitting counts


def test_where_all_fails_it_is_said(faked: None, tmp_path: Path) -> None:
    FakeChild.fails = "run-"
    with pytest.raises(RunFailed, match=r"run-linear-0 failed: out of memory; what the tasks said is in .*logs"):
        Runner(question(), tmp_path, SLOTS, Report()).run()


def test_weights_that_change_while_they_are_judged_are_refused(faked: None, tmp_path: Path) -> None:
    asked = question(contenders=(SCRATCH, replace(RUN, weights="other")))
    with pytest.raises(RunFailed, match="changed while they were judged"):
        Runner(asked, tmp_path, SLOTS, Report()).run()


def test_ctrl_c_stops_the_children_and_says_how_to_go_on(faked: None, tmp_path: Path) -> None:
    FakeChild.waits = "ep"
    runner = Runner(question(), tmp_path, SLOTS, Report())
    pid = os.getpid()

    def interrupt(task: Task, slot: Slot, epochs: int) -> Any:
        child = Runner._start(runner, task, slot, epochs)
        if task.way == "ep":
            os.kill(pid, signal.SIGINT)
        return child

    runner._start = interrupt  # type: ignore[method-assign]
    began = time.monotonic()
    with pytest.raises(RunInterrupted) as stopped:
        runner.run()
    assert stopped.value.exit_code == 130
    assert time.monotonic() - began < 20
    assert done(tmp_path) == {f"{key}-linear-{seed}" for key in ("scratch", "run") for seed in range(3)}


def test_a_directory_of_something_else_is_left_alone(tmp_path: Path) -> None:
    asked = question()
    check_same(asked, tmp_path / "new")
    (tmp_path / ".lock").touch()  # left by a command that was stopped early
    check_same(asked, tmp_path)
    (tmp_path / "photo.jpg").write_bytes(b"")
    with pytest.raises(SettingsError, match=r"holds no `dsdmae worth` but other things \(photo.jpg\)"):
        check_same(asked, tmp_path)
    (tmp_path / "worth.json").write_text(json.dumps(asked.json() | {"epochs": 3}))
    check_same(asked, tmp_path)
    with pytest.raises(SettingsError, match=r"another question \(seeds differ\)"):
        check_same(replace(asked, seeds=5), tmp_path)
