"""The books of a study after a full disk, a copy, and several processes that begin at once."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_ablate_study import definition, work_off

from dsdmae_cli.ablation.study import Study
from dsdmae_cli.errors import RunFailed, SettingsError

pytestmark = pytest.mark.faults


@pytest.mark.parametrize("torn", [b'{"op_code": 4, "worker', b"\x00" * 5000, b"{"])
def test_a_torn_last_line_is_cut_off_and_the_study_goes_on(torn: bytes, tmp_path: Path) -> None:
    journal = tmp_path / "study.journal"
    work_off(Study(definition(), journal))
    with journal.open("ab") as file:
        file.write(torn)
    again = Study(definition(seeds=2), journal)
    assert [row.seed for row in work_off(again)] == [1, 1]
    rows = Study(definition(seeds=2), journal).rows()
    assert [row.state for row in rows] == ["done"] * 4
    assert rows[0].value == 0.75
    assert journal.read_bytes().endswith(b"\n")


def test_a_line_that_a_full_disk_cut_short_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same process may go on when there is room again."""
    journal = tmp_path / "study.journal"
    study = Study(definition(), journal)
    study.top_up()
    row = study.claim()
    assert row is not None

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(os, "fsync", full)
        with pytest.raises(RunFailed, match=r"study.journal: No space left on device; .*give the same command again"):
            study.report(row, 0.5, 1.0)
    study.finish(row, 1.0, {})
    work_off(study)
    assert [row.state for row in Study(definition(), journal).rows()] == ["done", "done"]


def test_damage_amid_a_journal_is_one_line(tmp_path: Path) -> None:
    journal = tmp_path / "study.journal"
    work_off(Study(definition(), journal))
    lines = journal.read_bytes().split(b"\n")
    journal.write_bytes(b"\n".join([*lines[:2], b"{torn", *lines[2:]]))
    with pytest.raises(SettingsError, match=r"cannot open the study in .*study.journal"):
        Study(definition(), journal)


def test_a_lock_that_leads_nowhere_holds_nobody(tmp_path: Path) -> None:
    (tmp_path / "study.journal.lock").symlink_to(tmp_path / "where the study was")
    (tmp_path / ".study.journal.lock").write_text("")
    assert len(work_off(Study(definition(), tmp_path / "study.journal"))) == 2


def test_what_a_database_says_shows_no_password(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_text("no database")
    with pytest.raises(SettingsError) as refused:
        Study(definition(), f"sqlite:///{tmp_path}/x.db?u=postgresql://me:SECRET@host")
    assert "SECRET" not in str(refused.value)


def test_a_trial_that_somebody_ended_keeps_what_they_said(tmp_path: Path) -> None:
    for end in ("finish", "prune", "fail", "stop"):
        url = f"sqlite:///{tmp_path / end}.db"
        study = Study(definition(), url)
        study.top_up()
        row = study.claim()
        assert row is not None
        quicker = Study(definition(), url)
        quicker._end(study._mine[row.number], "lost")
        arguments: dict[str, tuple[Any, ...]] = {
            "finish": (1.0, {}), "prune": ({}, "worse"), "fail": ("no",), "stop": ("no",),
        }  # fmt: skip
        getattr(study, end)(row, *arguments[end])
        assert len(work_off(study)) == 2


WORKER = """
import sys
from pathlib import Path
from test_ablate_study import definition
from dsdmae_cli.ablation.study import Study
folder, number = Path(sys.argv[1]), sys.argv[2]
study = Study(definition(("mask-ratio", "0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8")), f"sqlite:///{folder}/study.db")
study.top_up()
while (row := study.claim()) is not None:
    with (folder / f"begun-{row.point['mask-ratio']}").open("a") as file:
        file.write(number)
    study.finish(row, 1.0, {})
"""


@pytest.mark.slow
def test_processes_that_begin_one_new_sqlite_file_share_its_trials(tmp_path: Path) -> None:
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent), os.environ.get("PYTHONPATH", "")])
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(tmp_path), str(number)],
            env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.PIPE, text=True,
        )
        for number in range(4)
    ]  # fmt: skip
    for worker in workers:
        _, err = worker.communicate(timeout=200)
        assert worker.returncode == 0, err
    begun = {path.name: path.read_text() for path in tmp_path.glob("begun-*")}
    assert len(begun) == 8
    assert [len(numbers) for numbers in begun.values()] == [1] * 8
    with sqlite3.connect(tmp_path / "study.db") as found:
        assert found.execute("select count(*) from trials where state = 'COMPLETE'").fetchone() == (8,)
