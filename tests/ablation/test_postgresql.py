"""A study that two machines share through PostgreSQL: two processes that begin at once, each with its own runs."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dsdmae_cli.ablation import storage as module
from dsdmae_cli.ablation.storage import Books
from dsdmae_cli.errors import SettingsError

URL = "postgresql://ada:secret@127.0.0.1:1/sweeps"


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if one for every database were installed."""
    monkeypatch.setattr(module, "create_engine", lambda url: SimpleNamespace(dispose=lambda: None))


@pytest.mark.usefixtures("driver")
def test_tables_that_another_process_is_making_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    told = iter(
        [
            RuntimeError('(psycopg.errors.UniqueViolation) duplicate key "pg_type_typname_nsp_index"'),
            RuntimeError('(psycopg.errors.DuplicateTable) relation "studies" already exists'),
            RuntimeError("(MySQLdb.OperationalError) (1050, \"Table 'studies' already exists\")"),
            RuntimeError("(sqlite3.IntegrityError) UNIQUE constraint failed: version_info.version_info_id"),
        ]
    )

    def storage(url: str) -> Any:
        assert url == "postgresql+psycopg://ada:secret@127.0.0.1:1/sweeps"
        for error in told:
            raise error
        return "opened"

    monkeypatch.setattr(module, "RDBStorage", storage)
    monkeypatch.setattr("time.sleep", waited.append)
    assert Books(URL).open(lambda opened: opened) == "opened"
    assert len(waited) == 4
    assert sorted(waited) == waited


@pytest.mark.usefixtures("driver")
@pytest.mark.parametrize(
    "said",
    [
        "connection refused", 'database "sweeps" already exists', "a file of this name already exists",
        "(psycopg.errors.UniqueViolation) duplicate key violates studies_study_name_key",
    ],
)  # fmt: skip
def test_what_no_waiting_mends_is_said_at_once(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def storage(url: str) -> Any:
        raise RuntimeError(said)

    monkeypatch.setattr(module, "RDBStorage", storage)
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("waited"))
    with pytest.raises(RuntimeError, match=said[-9:]):
        Books(URL).open(lambda opened: opened)


@pytest.mark.usefixtures("driver")
def test_what_is_done_with_the_tables_is_done_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another study of the same name is a person's to mend, and no race."""
    calls: list[Any] = []

    def make(opened: Any) -> None:
        calls.append(opened)
        raise RuntimeError("Another study with this name already exists in the table")

    monkeypatch.setattr(module, "RDBStorage", lambda url: "opened")
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("waited"))
    with pytest.raises(RuntimeError, match="Another study"):
        Books(URL).open(make)
    assert calls == ["opened"]


@pytest.mark.parametrize(
    ("url", "todo"),
    [(URL, "pip install 'dsdmae\\[postgresql\\]'"), ("mysql://ada:secret@h/d", "install one for mysql")],
)
def test_a_driver_that_is_not_there_is_named(url: str, todo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def storage(url: str) -> Any:
        raise ImportError("Failed to import DB access module")

    monkeypatch.setattr(module, "RDBStorage", storage)
    with pytest.raises(SettingsError, match=todo) as caught:
        Books(url).open(lambda opened: opened)
    assert "secret" not in str(caught.value)


@pytest.fixture
def postgresql() -> Iterator[str]:
    """The URL of an empty database of a server of its own."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")) or [Path(shutil.which("initdb") or "/none")]
    if not found[-1].exists() or find_spec("psycopg") is None:
        pytest.skip("needs PostgreSQL (Debian's postgresql) and psycopg: pip install 'dsdmae[postgresql]'")
    # Not under tmp_path: that is this user's alone, and the server may be another's.
    programs, folder = found[-1].parent, Path(tempfile.mkdtemp(prefix="dsdmae-postgresql-"))
    user: list[str] = []
    if os.geteuid() == 0:  # it refuses to run as root
        if shutil.which("runuser") is None:
            pytest.skip("needs runuser, or another user than root")
        user = ["runuser", "-u", "postgres", "--"]
        shutil.chown(folder, "postgres")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])

    def call(name: str, *words: str) -> None:
        command = [*user, str(programs / name), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=folder, check=False)
        assert done.returncode == 0, done.stderr

    call("initdb", "-D", str(folder / "db"), "-A", "trust", "-U", "ada")
    call("pg_ctl", "-D", str(folder / "db"), "-o", f"-p {port} -k {folder}", "-l", str(folder / "log"), "-w", "start")
    try:
        call("createdb", "-h", "127.0.0.1", "-p", port, "-U", "ada", "sweeps")
        yield f"postgresql://ada:secret@127.0.0.1:{port}/sweeps"
    finally:
        call("pg_ctl", "-D", str(folder / "db"), "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_two_machines_share_a_study(postgresql: str, tmp_path: Path) -> None:
    words = ["ablate", "--sweep", "mask-ratio", "0.5,0.75,0.95", "--seeds", "2", "--epochs", "1", "--workers", "1"]
    command = [sys.executable, "-m", "dsdmae_cli", *words, "--storage", postgresql]
    homes = [tmp_path / name for name in ("one", "two")]
    machines = [
        subprocess.Popen(command, env={**os.environ, "XDG_DATA_HOME": str(home)}, stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE, text=True)
        for home in homes
    ]  # fmt: skip
    ends = [machine.communicate(timeout=800) for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], ends
    made = [{run.name for run in home.glob("dsdmae/ablations/*/trials/*")} for home in homes]
    assert all(made), "one of them did nothing"
    assert not made[0] & made[1], "made twice"
    assert len(made[0] | made[1]) == 6
    reports = [next(home.glob("dsdmae/ablations/*/report.md")).read_text() for home in homes]
    tables = [[line for line in report.splitlines() if line.startswith("|") and "/" not in line] for report in reports]
    assert tables[0] == tables[1]
    assert tables[0]
    kept = [path for home in homes for path in home.rglob("*") if path.is_file() and b"secret" in path.read_bytes()]
    assert not kept, "the password was written down"
