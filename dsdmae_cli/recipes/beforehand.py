"""What a method needs trained beforehand, provided: taken where it is there, waited for where another process trains
it, else trained. Which run that is, runs/prerequisite.py knows.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from filelock import FileLock, Timeout

from dsdmae_cli import distributed
from dsdmae_cli.config.schema import Loaded
from dsdmae_cli.errors import DsdmaeError, RunInterrupted, SettingsError
from dsdmae_cli.plugins import Requirement
from dsdmae_cli.report import Report
from dsdmae_cli.runs.prerequisite import has_ended, required_folder, requirement
from dsdmae_cli.runs.rundir import SETTINGS, RunDir
from dsdmae_cli.settings.models import Settings
from dsdmae_cli.settings.resolved import ResolvedSettings

_PATIENCE = 2.0  # seconds between looks at what another process trains

# (settings, directory, resume, overridden, report)
Train = Callable[[Loaded[Settings], Path, bool, bool, Report], dict[str, Any]]


def provided(
    settings: ResolvedSettings, out: Path | None, report: Report, train: Train, refuse: Callable[[], Any]
) -> Path:
    """The directory of the run that a method needs, which has ended.

    Args:
        settings: of the run that needs it.
        out: where that run will be, if the directory has to be free.
        train: runs pre-training.
        refuse: raises what the run itself would be refused by, before an hour of work, not after it.

    Raises:
        RunInterrupted: a signal asked to stop; what was learned is saved.
        SettingsError, DataError, RunFailed: it cannot be trained.
    """
    needs = requirement(settings)
    assert needs is not None
    if out is not None:
        distributed.main_says(RunDir(out).check_free)
    folder, loaded = distributed.main_says(lambda: required_folder(settings, needs))
    if not distributed.main_says(lambda: has_ended(folder)):
        with distributed.one_fate():
            refuse()
    lock = FileLock(folder.parent / f".{folder.name}.lock", timeout=0)
    told = False
    try:
        while (state := distributed.main_says(lambda: _claim(folder, lock, needs))) == "wait":
            if not told:
                report.note(f"waiting for another run that trains the {needs.method} {folder}")
            told = True
            time.sleep(_PATIENCE)
        if state == "train":
            report.note(f"training the {needs.method} first: {folder}")
            begun = distributed.from_main((folder / SETTINGS).is_file())
            # What may differ from its first part is this run's: another device, another place of the images.
            train(loaded, folder, begun, begun, report)
            gc.collect()  # images and optimiser state of that run, before this one looks for room
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        else:
            report.note(f"{needs.method} {folder}")
    except RunInterrupted as stopped:
        stopped.args = (
            f"stopped by {stopped.by} while the {needs.method} was trained, which is saved; the same command goes on",
        )
        raise
    except DsdmaeError as error:
        or_else = f"or train one by `{needs.command}` and name it as method.{needs.setting}"
        error.args = (f"while training the {needs.method} {folder}: {error}; {or_else}",)
        raise
    finally:
        lock.release()
    return folder


def _claim(folder: Path, lock: FileLock, needs: Requirement) -> Literal["there", "train", "wait"]:
    """Whether a run is there, is ours to make (the lock is then held), or is being made by another process."""
    if has_ended(folder):
        return "there"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        return "wait"
    except OSError as error:
        raise SettingsError(
            f"cannot write to {folder.parent}, where each {needs.method} is kept: {error.strerror or error}; set"
            f" XDG_DATA_HOME to a directory that can be written, or name one as method.{needs.setting}"
        ) from error
    return "there" if has_ended(folder) else "train"
