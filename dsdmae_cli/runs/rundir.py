"""The run directory: made, locked, resumed, and what is written there that is no tensor. No torch here."""

from __future__ import annotations

import json
import shlex
import shutil
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from filelock import FileLock, Timeout
from platformdirs import user_data_path
from pydantic import BaseModel

from dsdmae_cli.config.compose import written
from dsdmae_cli.config.describe import tables, to_toml
from dsdmae_cli.config.schema import PROBE, Loaded, Values, schema_of
from dsdmae_cli.config.sources import read_toml
from dsdmae_cli.errors import CheckpointError, RunFailed, SettingsError
from dsdmae_cli.files import (
    explained,
    is_file,
    is_partial,
    is_text,
    parsed_json,
    read_within,
    require_folder,
    sweep,
    typed,
    write_bytes,
)
from dsdmae_cli.page import PAGE as PAGE
from dsdmae_cli.plugins import argument_of
from dsdmae_cli.runs.held import LOCK as LOCK
from dsdmae_cli.runs.held import busy, held_by_another, refuse_busy
from dsdmae_cli.settings.models import MAY_CHANGE_ON_RESUME, DataSettings
from dsdmae_cli.tracking import KEPT

SETTINGS = "settings.toml"
METRICS = "metrics.jsonl"
RESULT = "result.json"
RUN = "run.json"
REQUIRED = "required.toml"  # settings of what a method needed trained beforehand; its weights are in the checkpoints
ENCODER = "encoder.safetensors"
CLASSIFIER = "classifier.safetensors"
_MOST_METRICS = 2**30  # bytes
_TRACKED = ("tensorboard", "wandb", "mlflow")  # what trackers keep in a run's directory


def refuse_run(dataset: str) -> None:
    """A run's directory holds pictures, its figures; nobody means to learn from those.

    Raises:
        SettingsError: the dataset of this name is a run's directory.
    """
    path = argument_of(dataset)
    if path and (Path(path).expanduser() / SETTINGS).is_file():
        raise SettingsError(
            f"{path} is the directory of a run, not of images; go on with it by --resume --out {typed(path)}, or"
            f" begin with its weights by --from {typed(path)} and a dataset"
        )


def default_folder() -> Path:
    """Where runs go that are given no --out."""
    return user_data_path("dsdmae") / "runs"


def called(run: Path) -> str:
    """What commands may call a run: its name where it lies in the folder of runs, elsewhere its path."""
    return shlex.quote(run.name if run.parent == default_folder() else str(run))


def default_path(now: datetime, what: str, backbone: str, data: DataSettings) -> Path:
    """A new directory under the user's data directory, made, since several runs may begin in one second: date, time,
    what is done, backbone, dataset.

    Raises:
        SettingsError: it cannot be made.
    """
    clean = "-".join([now.strftime("%Y-%m-%d-%H%M%S"), *map(file_name, (what, backbone, data.dataset))])
    folder = default_folder()
    path, number = folder / clean, 2
    while True:
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            path, number = folder / f"{clean}-{number}", number + 1
        except OSError as error:
            raise SettingsError(f"cannot make {path}: {error.strerror or error}; name a directory by --out") from error
        else:
            return path


def file_name(text: str) -> str:
    """A name for people and file systems alike: the last part of a path, with hyphens for what is awkward in one."""
    return "".join(c if c.isalnum() or c in "-._" else "-" for c in text.rstrip("/").rsplit("/", 1)[-1])


class RunDir:
    """A run's directory, held by one process at a time.

    The lock is the operating system's and ends with the process that holds it, however it ends: a stale one cannot be.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.figures = path / "figures"
        self._lock = FileLock(path / LOCK, timeout=0)
        self._metrics: TextIO | None = None

    def check_free(self) -> None:
        """See that the directory is new or empty, and can be written; nothing is.

        Raises:
            SettingsError: it holds something, belongs to another run, or cannot be read or written.
        """
        if not is_text(self.path):
            raise SettingsError(f"--out {self.path} is no UTF-8, so that its weights could not be read; choose another")
        try:
            taken = (self.path / SETTINGS).exists()
            there = list(self.path.iterdir()) if self.path.exists() else []
            strangers = [path.name for path in there if path.name != LOCK and not is_partial(path)]
        except OSError as error:
            raise SettingsError(f"cannot use --out {self.path}: {error.strerror or error}") from error
        if taken:
            if not self.held:  # of two that begin at once the slower one hears of the other, not of its own past
                refuse_busy(self.path)
            what = "a run already; go on with it by --resume, or" if self.goes_on() else "a probe already;"
            raise SettingsError(f"--out {self.path} holds {what} choose another directory")
        if strangers:
            raise SettingsError(f"--out {self.path} is not empty (it holds {sorted(strangers)[0]}); choose another one")
        self._require_writable()

    def look(self, *, resume: bool, probe: bool) -> None:
        """Refuse the directory as the run itself would, and write nothing: for --dry-run.

        Args:
            resume: a run that is there is to be gone on with.
            probe: the run is a probe, which may have what a killed one has left.

        Raises:
            SettingsError, CheckpointError: as create, resume and clear_probe.
        """
        if resume:
            self.settings()
        elif not (probe and self._half_a_probe()):
            self.check_free()
        self._require_writable()
        refuse_busy(self.path)

    def _require_writable(self) -> None:
        try:
            require_folder(self.path)
        except OSError as error:
            raise SettingsError(f"cannot use --out {self.path}: {error.strerror or error}") from error

    def _half_a_probe(self) -> bool:
        """Whether a probe without a result is there, at work or killed."""
        return is_file(self.path / SETTINGS) and not self.goes_on() and not (self.path / RESULT).exists()

    def is_killed_probe(self) -> bool:
        """Whether a probe that was killed has left what is there, which the next one removes (clear_probe)."""
        return self._half_a_probe() and not busy(self.path)

    def goes_on(self) -> bool:
        """Whether what is there can be gone on with: a probe cannot."""
        with suppress(SettingsError):
            return schema_of(read_toml(self.path / SETTINGS)).command != PROBE.command
        return True

    def clear_probe(self) -> None:
        """Remove what a probe left that was killed: all of it where it had no result yet, since it is in the way of the
        same command; else what was half written.

        Raises:
            SettingsError: it is still at work.
        """
        if self._half_a_probe():
            self._acquire()
            self.abandon()
            self.release()
        elif is_file(self.path / SETTINGS) and not self.goes_on():
            for folder in (self.path, self.figures):
                sweep(folder)

    def create(self, settings: BaseModel) -> None:
        """Take a new or empty directory.

        Raises:
            SettingsError: it is not free (see check_free), or cannot be made.
        """
        self.check_free()  # before the lock is taken, so that a refusal leaves no lock file in somebody's folder
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SettingsError(f"cannot make --out {self.path}: {error.strerror or error}") from error
        self._acquire()
        self.check_free()  # another process may have been quicker
        self._sweep()
        self._write(SETTINGS, to_toml(tables(settings)))

    def settings(self) -> Loaded[Any]:
        """The settings of the run that the directory holds.

        Raises:
            CheckpointError: there is no run.
            SettingsError: its settings.toml is damaged.
        """
        if not (self.path / SETTINGS).is_file():
            from dsdmae_cli.runs.near import near

            meant = "" if self.path.exists() else near(str(self.path))
            raise CheckpointError(f"nothing to resume in {self.path}: it has no {SETTINGS}{meant}; check --out")
        values = read_toml(self.path / SETTINGS)
        return written(schema_of(values), values, str(self.path / SETTINGS))

    def resume(self) -> Loaded[Any]:
        """Take the directory of an earlier run; its settings.

        Raises:
            CheckpointError, SettingsError: see settings(); or another process is at it.
        """
        self.settings()  # before the lock, so that a wrong --out gets no lock file
        self._acquire()
        self._sweep()
        return self.settings()

    def _sweep(self) -> None:
        """Remove what killed processes left half written; nobody else writes here, the lock is ours."""
        for folder in filter(Path.is_dir, (self.path, self.figures)):
            for partial in filter(is_partial, list(folder.iterdir())):
                partial.unlink(missing_ok=True)

    def _acquire(self) -> None:
        self._require_writable()
        try:
            self._lock.acquire(timeout=0.2)  # who only asks whether it is held has it for a moment (runs/child.py)
        except Timeout as error:
            raise held_by_another(self.path) from error
        except OSError as error:
            raise SettingsError(f"cannot lock {self.path}: {error.strerror or error}") from error

    @property
    def held(self) -> bool:
        """Whether this process has the directory."""
        return bool(self._lock.is_locked)

    def release(self) -> None:
        """Let go of the directory."""
        self._close_metrics()
        if self._lock.is_locked:
            self._lock.release()

    def _close_metrics(self) -> None:
        if self._metrics is not None:
            with suppress(OSError):  # a disk that was full is still full; that has been said already
                self._metrics.close()
            self._metrics = None

    def take_back(self, *, made: bool) -> None:
        """What a run that could not begin leaves: nothing, whether it had taken the directory or not yet.

        Args:
            made: the directory was made for it alone.
        """
        if self.held:
            self.abandon()
        elif made:
            with suppress(OSError):
                self.path.rmdir()

    def abandon(self) -> None:
        """Take back all that a run left that could not begin; what is not a run's stays, and so does a whole result."""
        if self.checkpoints.exists() or (self.path / RESULT).exists():
            return
        self._close_metrics()
        with suppress(OSError):  # a directory that cannot be emptied is no reason to hide why the run failed
            for folder in (self.figures, *(self.path / name for name in _TRACKED)):
                shutil.rmtree(folder, ignore_errors=True)
            for name in (SETTINGS, RUN, REQUIRED, METRICS, PAGE, KEPT, LOCK):
                (self.path / name).unlink(missing_ok=True)
            self.path.rmdir()

    def _write(self, name: str, text: str) -> None:
        write_bytes(self.path / name, text.encode())

    def write_json(self, name: str, value: dict[str, Any]) -> None:
        """Write a JSON file, whole or not at all."""
        self._write(name, json.dumps(value, indent=2) + "\n")

    def ended(self, state: str, why: str) -> None:
        """Note in run.json how it ended, as far as it can be written: an error itself is what counts.

        Args:
            state: "finished", with all that a run leaves; "stopped", where it was asked to and saved; or "failed".
        """
        with suppress(OSError, ValueError, RunFailed):
            self.write_json(RUN, {**self.read_json(RUN), "ended": {"state": state, "why": why}})

    def finished(self) -> dict[str, Any] | None:
        """What result.json holds, of a run that has finished and has its weights; None where something is left to do:
        it may have been killed after its result, before its pictures."""
        with suppress(OSError, ValueError):
            ended = self.read_json(RUN).get("ended")
            if isinstance(ended, dict) and ended.get("state") == "finished":
                there = any((self.path / name).is_file() for name in (ENCODER, CLASSIFIER))
                found = self.read_json(RESULT)
                return found if there and isinstance(found.get("run"), str) else None
        return None

    def read_json(self, name: str) -> dict[str, Any]:
        """A JSON file that write_json left; empty where there is none, or it is damaged: no run depends on one."""
        path = self.path / name
        with suppress(OSError, ValueError):
            found = parsed_json(read_within(path)) if path.is_file() else {}
            return found if isinstance(found, dict) else {}
        return {}

    def log(self, record: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl.

        Raises:
            RunFailed: no space.
        """
        with explained(self.path / METRICS):
            if self._metrics is None:
                self._metrics = (self.path / METRICS).open("a", encoding="utf-8", buffering=1)
            self._metrics.write(json.dumps(record) + "\n")

    def forget_after(self, step: int, *, epoch_again: bool = False) -> None:
        """Drop the lines of metrics.jsonl that a resumed run will write again; a damaged file is kept beside it.

        Args:
            epoch_again: the step ends an epoch, and what observers say of its end will be written again too.
        """
        records, damaged = self._records()
        if damaged:
            (self.path / METRICS).replace(self.path / f"{METRICS}.damaged")
        last = step if epoch_again else step + 1
        kept = [r for r in records if r["step"] < last or (r["step"] == step and "lr" in r)]
        self._write(METRICS, "".join(json.dumps(record) + "\n" for record in kept))

    def metrics(self) -> list[dict[str, Any]]:
        """The records of metrics.jsonl; what is no record, such as a last line torn by a crash, is left out.

        Raises:
            CheckpointError: it is there, and cannot be read.
        """
        return self._records()[0]

    def _records(self) -> tuple[list[dict[str, Any]], bool]:
        """Whole lines, and whether there are others than a torn last one."""
        path, records, damaged = self.path / METRICS, [], False
        try:
            lines = read_within(path, _MOST_METRICS).decode("utf-8", "replace").split("\n")
        except FileNotFoundError:
            return [], False
        except OSError as error:
            raise CheckpointError(
                f"cannot read {path}: {error.strerror or error}; move it away to go on without what was measured"
            ) from error
        for number, line in enumerate(lines):
            if (record := record_of(line)) is not None:
                records.append(record)
            elif line and number < len(lines) - 1:
                damaged = True
        return records, damaged


def record_of(line: str | bytes) -> dict[str, Any] | None:
    """The record in a line of metrics.jsonl; None where it is none."""
    try:
        record = parsed_json(line) if line else None
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step"), int) else None


def changed_settings(before: BaseModel, after: BaseModel) -> list[str]:
    """The settings that differ and may not: "train.epochs: 5, now 10"."""
    old, new = tables(before), tables(after)
    for section in {**old, **new}:
        old.setdefault(section, {})
        new.setdefault(section, {})
    keys = [(s, k) for s in old for k in {**old[s], **new[s]} if f"{s}.{k}" not in MAY_CHANGE_ON_RESUME]
    return [f"{s}.{k}: {old[s].get(k)!r}, now {new[s].get(k)!r}" for s, k in keys if old[s].get(k) != new[s].get(k)]


def where_they_lie(values: Values, run: Path) -> Values:
    """A run's settings with the whole path of images that were named by one from where the run began, and are not
    found by it from here."""
    plugin, _, path = values["data"]["dataset"].partition(":")
    began = RunDir(run).read_json(RUN).get("cwd")
    if not path or Path(path).exists() or not isinstance(began, str) or not (whole := Path(began, path)).exists():
        return values
    return {**values, "data": {**values["data"], "dataset": f"{plugin}:{whole}"}}
