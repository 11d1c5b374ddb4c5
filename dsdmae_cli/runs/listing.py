"""The runs of a folder: state, age, data, method, score and cost, read off the files that they left. No torch here."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from dsdmae_cli.config.schema import PROBE, Values, schema_of
from dsdmae_cli.config.sources import read_toml
from dsdmae_cli.errors import DsdmaeError, SettingsError
from dsdmae_cli.files import parsed_json, read_within
from dsdmae_cli.runs.held import busy
from dsdmae_cli.runs.near import near
from dsdmae_cli.runs.rundir import METRICS, RESULT, RUN, SETTINGS, RunDir, default_folder

State = Literal["running", "finished", "stopped", "failed"]
STATES: tuple[State, ...] = ("running", "finished", "stopped", "failed")
# What a score is, by the command that left it: what it is called and where result.json has it.
_SCORES = {"pretrain": ("k-NN", "knn_accuracy"), "probe": ("top-1", "top1"), "finetune": ("top-1", "top1")}
_DENSE_SCORE = ("mIoU", "mean_iou")  # of the last two, where pixels are labelled
# Sections that every run's settings have.
_OURS = ("data", "backbone")
# Words that SUBJECT gives a meaning of its own; a run of such a name could not be named.
_TAKEN = frozenset({"scratch", "pixels"})
_LONGEST_NAME = 100


@dataclass(frozen=True)
class Found:
    """A run as its directory tells it.

    Attributes:
        command: that began it: pretrain, probe or finetune.
        state: running: a process holds it; finished: it has a result; stopped: by a signal, and saved; failed: an error
            or the machine ended it.
        why: what it said at its end, of one that has not finished.
        changed: when it last wrote something, in seconds since 1970.
        score: share of images, from 0 to 1, by `score_kind`.
        epoch, epochs: how far it came, and of how many.
        seconds: that it took, where it has finished.
        start: what it began with or judged.
        closing: the last words of its result.
    """

    path: Path
    command: str
    state: State
    why: str
    changed: float
    dataset: str
    method: str
    backbone: str
    score: float | None
    score_kind: str
    epoch: float | None
    epochs: int | None
    seconds: float | None
    start: str | None
    closing: str

    @property
    def name(self) -> str:
        """Of its directory."""
        return self.path.name

    @property
    def unfinished(self) -> bool:
        """Whether --resume would go on with it; a probe begins anew."""
        return self.state in ("stopped", "failed") and self.command != PROBE.command

    def json(self) -> dict[str, Any]:
        """All of it, fit for JSON."""
        return {"name": self.name, **asdict(self), "path": str(self.path)}


def find(folder: Path) -> tuple[list[Found], list[str]]:
    """The runs in a folder, what was at work last first; and, of directories that cannot be read, why.

    Raises:
        SettingsError: the folder is none.
    """
    if not folder.exists():
        return [], []
    if not folder.is_dir():
        raise SettingsError(f"{folder} is no folder; give one that holds runs")
    found, complaints = [], []
    for path in _directories(folder):
        try:
            found += [read(path)] if is_run(path) else []
        except DsdmaeError as error:
            complaints.append(str(error))
    return sorted(found, key=lambda run: -run.changed), complaints


def _directories(folder: Path) -> Iterator[Path]:
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise SettingsError(f"cannot read {folder}: {error.strerror or error}") from error
    for path in paths:
        with suppress(OSError):  # what may not be looked into is nobody's run here
            if (path / SETTINGS).is_file():
                yield path


def is_run(path: Path) -> bool:
    """Whether a directory with a settings.toml is a run's: other programs call their files so, and what is theirs must
    be neither listed nor deleted. One whose settings are damaged is known by what lies beside them."""
    try:
        values = read_toml(path / SETTINGS)
    except SettingsError:
        values = {}
    if all(isinstance(values.get(section), dict) for section in _OURS):
        return True
    return any((path / name).is_file() for name in (RUN, METRICS))


def read(path: Path) -> Found:
    """The run in a directory.

    Raises:
        SettingsError: its settings are damaged.
    """
    values = {name: table for name, table in read_toml(path / SETTINGS).items() if isinstance(table, dict)}
    command = schema_of(values).command
    result, about = _json(path / RESULT), _json(path / RUN)
    directory = RunDir(path)
    metrics = directory.metrics()
    ended = about.get("ended") if isinstance(about.get("ended"), dict) else {}
    state, why = _state(path, result, ended)
    kind, key = _DENSE_SCORE if _DENSE_SCORE[1] in result else _SCORES.get(command, ("", ""))
    score = result.get(key)
    if score is None and command == "pretrain" and not result:
        score = next((record["knn"] for record in reversed(metrics) if "knn" in record), None)
    train = values.get("train", {})
    return Found(
        path=path,
        command=command,
        state=state,
        why=why,
        changed=max(
            (found for name in (SETTINGS, METRICS, RESULT, RUN) if (found := _changed(path / name))), default=0
        ),
        dataset=str(result.get("dataset") or values.get("data", {}).get("dataset", "")),
        method=str(result.get("method") or values.get("method", {}).get("name", "")),
        backbone=str(result.get("backbone") or values.get("backbone", {}).get("name", "")),
        score=_number(score),
        score_kind=kind,
        epoch=_number(metrics[-1].get("epoch")) if metrics else None,
        epochs=train["epochs"] if isinstance(train.get("epochs"), int) else None,
        seconds=_number(result.get("seconds")),
        start=next(_starts(values), None),
        closing=str(result.get("closing") or ""),
    )


def _number(value: Any) -> float | None:
    known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if known else None


def _starts(values: Values) -> Iterator[str]:
    for table in values.values():
        start = table.get("start")
        if start not in (None, "none"):
            yield str(start)


def _state(path: Path, result: dict[str, Any], ended: Any) -> tuple[State, str]:
    if busy(path):
        return "running", ""
    if result:
        return "finished", ""
    if ended.get("state") in ("stopped", "failed"):
        return ended["state"], str(ended.get("why", ""))
    return "failed", "it ended without a word: killed, or the machine went down"


def _json(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none, or it is damaged: what else is known of a run still counts."""
    try:
        content = parsed_json(read_within(path))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _changed(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def resolve(name: str, folder: Path) -> Path:
    """The directory of a run that is named: by its path, or by its name in the folder of runs.

    Raises:
        SettingsError: there is none.
    """
    for path in (Path(name), folder / name):
        with suppress(OSError):
            if (path / SETTINGS).is_file() and is_run(path):
                return path
    meant = near(name, words=tuple(path.name for path in _directories(folder)) if folder.is_dir() else ())
    where = f"neither a directory nor a run in {folder}"
    if Path(name).is_dir():
        there = (Path(name) / SETTINGS).is_file()
        where = "its settings.toml is not of this program" if there else "it has no settings.toml"
    raise SettingsError(f"{name} is no run ({where}){meant}; `dsdmae runs` lists them")


def last_unfinished(command: str) -> tuple[Found, int]:
    """The run of a command at the default place that was at work last and has not finished; how many there are.

    Raises:
        SettingsError: there is none.
    """
    folder = default_folder()
    runs, _ = find(folder)
    waiting = [run for run in runs if run.unfinished and run.command == command]
    if not waiting:
        working = [run for run in runs if run.state == "running" and run.command == command]
        also = f" ({working[0].name} is still running)" if working else ""
        raise SettingsError(
            f"--resume: no unfinished run of `dsdmae {command}` is in {folder}{also}; for one elsewhere add --out DIR"
        )
    return waiting[0], len(waiting)


def named(name: str) -> Path:
    """The directory of a run by the name that a person gives it.

    Raises:
        SettingsError: it cannot be one.
    """
    fine = all(c.isalnum() or c in "-._+=" for c in name) and name[:1].isalnum() and len(name) <= _LONGEST_NAME
    if not fine or name in _TAKEN:
        raise SettingsError(
            f"--name {name!r} cannot be a run's name: it takes letters, digits and -._+= after a letter or digit,"
            f" {_LONGEST_NAME} at most, but not {' or '.join(sorted(_TAKEN))}; --out takes a path"
        )
    return default_folder() / name


def size_of(path: Path) -> int:
    """Bytes of all files below a directory; of those that can be looked at."""
    total = 0
    for file in path.rglob("*"):
        with suppress(OSError):
            if file.is_file() and not file.is_symlink():
                total += file.stat().st_size
    return total


def remove(path: Path) -> None:
    """Delete a run with all that its directory holds.

    Raises:
        SettingsError: it is running, is a link, or cannot be deleted.
    """
    if busy(path):
        raise SettingsError(f"{path} is running; stop it first (Ctrl-C saves it)")
    if path.is_symlink():
        raise SettingsError(f"{path} is a link to {path.resolve()}; name that")
    try:
        shutil.rmtree(path.resolve())  # "." cannot be deleted by that name, though all in it can
    except OSError as error:
        raise SettingsError(f"cannot delete {error.filename or path}: {error.strerror or error}") from error


def age(seconds: float) -> str:
    """ "3 min", "5 h", "12 d": how long ago, in one unit."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def since(run: Found) -> str:
    """How long ago it last wrote something."""
    return age(time.time() - run.changed)


def size(count: float) -> str:
    """ "812 B", "3.4 MB", "12 GB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 10 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
