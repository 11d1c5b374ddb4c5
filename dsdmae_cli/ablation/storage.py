"""Where a study's books are kept: Optuna's journal in the study's directory, or a database.

Optuna's own journal waits for ever where its lock is a link to nowhere (a study that was copied), and cannot be read
again once something was appended to a line that a full disk had torn. Its tables in a database are made twice where two
processes begin at once.
"""

from __future__ import annotations

import errno
import json
import os
import random
import re
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import BaseJournalBackend, JournalFileBackend
from sqlalchemy import create_engine
from sqlalchemy.exc import ArgumentError

from dsdmae_cli.ablation.definition import Definition, check_same
from dsdmae_cli.errors import SAME, RunFailed, SettingsError
from dsdmae_cli.files import explained, read_within, require_file, require_folder
from dsdmae_cli.report import without_password
from dsdmae_cli.runs.workers import check_workers

T = TypeVar("T")
JOURNAL = "study.journal"
_MOST_JOURNAL = 2**30  # bytes
_PATIENCE = 60.0  # seconds; what is done under a lock takes a moment
# What databases say where two processes make the same tables: nothing is wrong a moment later. Of rows, those of the
# two tables that have one each, or of the system's own list of types.
_MADE_TWICE = re.compile(
    r"(table|relation|type|index|sequence)\b.*\balready exists|(UniqueViolation|Duplicate entry|UNIQUE constraint).*"
    r"(version_info|alembic_version|pg_type|pg_class)",
    re.DOTALL | re.IGNORECASE,
)
_WAITS = (0.2, 0.5, 1.0, 2.0, 4.0)  # seconds
_POSTGRESQL = ("postgresql", "postgres")
_ADVICE = SAME


def free_for(definition: Definition, out: Path | None, storage: str | None, workers: int | None) -> Path:
    """The directory that is free for a study, or holds it; arguments are those of recipes/ablate.py.

    Raises:
        SettingsError: it is not; or nothing could be kept in the storage, or so many workers are too many.
    """
    folder = study_folder(definition, out)
    if storage is not None:
        check_storage(storage)
    check_workers(workers, definition.common().train.device)
    return folder


def study_folder(definition: Definition, out: Path | None) -> Path:
    """Where a study is kept.

    Raises:
        SettingsError: the directory holds something else or another study, or cannot be read or written.
    """
    folder = (out or definition.default_path()).absolute()
    try:
        names = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
        require_folder(folder)
    except OSError as error:
        raise SettingsError(f"cannot use --out {folder}: {error.strerror or error}") from error
    if names and not {JOURNAL, "trials"} & set(names):
        raise SettingsError(f"--out {folder} holds no study but other things ({names[0]}); choose another one")
    if JOURNAL in names:
        _check_journal(definition, folder / JOURNAL)
    return folder


def cannot_open(storage: str | Path, error: Exception) -> SettingsError:
    """What is said of a storage, of whatever a database driver or a journal raises."""
    where, text = without_password(str(storage)), getattr(error, "strerror", None) or str(error)
    said = without_password(text.splitlines()[0]) if text else type(error).__name__
    # What is done is told by the trials' own files: without its journal a study finds them again.
    again = "" if isinstance(storage, str) else (
        "; where it is damaged, move it away: the same command takes the trials that are done from their files"
    )  # fmt: skip
    return SettingsError(f"cannot open the study in {where}: {said}{again}")


class _Read(BaseJournalBackend):
    """A journal that is only looked at: Optuna's own would make the file of a lock beside it.

    Raises:
        OSError, ValueError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        lines = read_within(path, _MOST_JOURNAL).split(b"\n")
        self._logs = [json.loads(line) for line in lines[:-1]]  # what has no end is cut off when it is opened

    def read_logs(self, log_number_from: int) -> list[dict[str, Any]]:
        return self._logs[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        raise AssertionError("it is only read")


def _check_journal(definition: Definition, path: Path) -> None:
    """See that a journal holds the study that is asked for, or none yet."""
    try:
        studies = JournalStorage(_Read(path)).get_all_studies()
        before = [study.user_attrs["definition"] for study in studies if "definition" in study.user_attrs]
    except Exception as error:  # whatever Optuna makes of lines that are no journal's
        raise cannot_open(path, error) from error
    for definition_before in before:
        check_same(definition_before, definition, str(path))


class Books:
    """A storage of Optuna's, and how its processes keep out of each other's way.

    Args:
        storage: a database URL, or the file of a journal.
    """

    def __init__(self, storage: str | Path) -> None:
        self.storage = storage
        self._file = _sqlite_file(storage) if isinstance(storage, str) else None
        self._lock = None if self._file is None else FileLock(_beside(self._file), timeout=_PATIENCE)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """One process of this machine at a time; SQLite's own transactions let two of them take one trial."""
        with nullcontext() if self._lock is None else _held(self._lock):
            yield

    def open(self, make: Callable[[Any], T]) -> T:
        """What `make` makes of the storage; again where another process was making its tables.

        Raises:
            RunFailed: no space.
            SettingsError: there is no driver for the database.
        """
        with self.alone():
            return make(self._with_tables())

    def _with_tables(self) -> Any:
        """The storage, whose tables are made where they are not there."""
        for wait in _WAITS:
            try:
                return self._opened()
            except Exception as error:  # whatever a database driver raises
                if not _MADE_TWICE.search(f"{error} {error.__cause__}"):
                    raise
                time.sleep(wait * (1 + random.random()))  # or all of them would meet again
        return self._opened()

    def _opened(self) -> Any:
        if isinstance(self.storage, str):
            check_storage(self.storage)
            return RDBStorage(_with_driver(self.storage))
        with explained(self.storage, _ADVICE):
            self.storage.parent.mkdir(parents=True, exist_ok=True)
            return JournalStorage(_Journal(self.storage))


def check_storage(url: str) -> None:
    """See that there may be a database at a URL, as far as that is known without connecting, which could make one.

    Raises:
        SettingsError: it is no URL of a database, there is no driver for it here, or its SQLite file cannot be one.
    """
    where = without_password(url)
    try:
        if (file := _sqlite_name(url)) is not None:
            if file.exists():
                _check_sqlite(file)
            elif not file.parent.is_dir():
                raise SettingsError(f"cannot open the study in {where}: there is no folder {file.parent}; make it")
            else:
                require_folder(file.parent)
        create_engine(_with_driver(url)).dispose()
    except ImportError as error:
        kind = url.partition(":")[0]
        how = "pip install 'dsdmae[postgresql]'" if kind in _POSTGRESQL else f"install one for {kind}"
        raise SettingsError(f"there is no driver for {where} here; {how}") from error
    except (OSError, sqlite3.Error) as error:
        raise cannot_open(url, error) from error
    except (ArgumentError, ValueError) as error:
        said = without_password(str(error).splitlines()[0])
        raise SettingsError(
            f"cannot open the study in {where}: {said}; give sqlite:///FILE or postgresql://USER@HOST/DATABASE"
        ) from error


def _check_sqlite(file: Path) -> None:
    """See that a file is SQLite's and can be written; it is only read.

    Raises:
        OSError, sqlite3.Error: it is not.
    """
    if stat.S_ISDIR(require_file(file).st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(file))
    if not os.access(file, os.R_OK | os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file))
    read_only = sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)
    with closing(read_only), suppress(sqlite3.OperationalError):  # another process writes there
        read_only.execute("PRAGMA schema_version")


def reach(url: str) -> None:
    """Connect to a server's database and leave it, before trials are worked out that it could not keep; a file is not
    opened, which would make it.

    Raises:
        SettingsError: it is not there, or lets nobody in.
    """
    if _sqlite_name(url) is not None:
        return
    try:
        engine = create_engine(_with_driver(url))
        engine.connect().close()
        engine.dispose()
    except Exception as error:  # whatever a database driver raises
        raise cannot_open(url, error) from error


class _Journal(JournalFileBackend):
    """Optuna's, under a lock of the operating system's, which ends with its process, and with whole lines alone."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._whole = _SystemLock(path)
        super().__init__(str(path), lock_obj=self._whole)  # type: ignore[arg-type]
        with explained(path, _ADVICE), _held(self._whole.lock):
            self._cut()

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        with explained(self._path, _ADVICE), _held(self._whole.lock):
            self._cut()
            try:
                super().append_logs(logs)  # the lock lets its holder in again
            except OSError:
                self._cut()
                raise

    def _cut(self) -> None:
        """Take away a last line that a full disk or a killed process left without an end."""
        with self._path.open("r+b") as file:
            end = file.seek(0, os.SEEK_END)
            size = end
            while size:
                start = max(0, size - 4096)
                file.seek(start)
                newline = file.read(size - start).rfind(b"\n")
                if newline >= 0:
                    size = start + newline + 1
                    break
                size = start
            if size < end:
                file.truncate(size)


class _SystemLock:
    """What Optuna asks of a lock."""

    def __init__(self, path: Path) -> None:
        self.lock = FileLock(_beside(path), timeout=_PATIENCE)

    def acquire(self) -> bool:
        self.lock.acquire()
        return True

    def release(self) -> None:
        self.lock.release()


@contextmanager
def _held(lock: FileLock) -> Iterator[None]:
    try:
        lock.acquire()
    except Timeout as error:
        raise RunFailed(
            f"{lock.lock_file} has been held for {_PATIENCE:.0f} s; a process that holds it hangs: end it, and give"
            " the same command again"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def _with_driver(url: str) -> str:
    """The URL with the driver that our extra brings, where PostgreSQL's names none."""
    kind, colon, rest = url.partition(":")
    return f"postgresql+psycopg{colon}{rest}" if kind in _POSTGRESQL else url


def _sqlite_file(url: str) -> Path | None:
    """The file of sqlite:///FILE; None for another database, one in memory, and where it has no folder."""
    path = _sqlite_name(url)
    return path if path is not None and path.parent.is_dir() else None


def _sqlite_name(url: str) -> Path | None:
    backend, _, rest = url.partition(":///")
    name = rest.partition("?")[0]
    if not backend.startswith("sqlite") or name in ("", ":memory:"):
        return None
    return Path(name)
