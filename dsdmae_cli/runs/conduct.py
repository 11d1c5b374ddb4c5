"""What goes around a run in every process: the group, the directory, and which settings count."""

from __future__ import annotations

import signal
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from dsdmae_cli import checkpoint, distributed
from dsdmae_cli.config.compose import written
from dsdmae_cli.config.own_images import remarks
from dsdmae_cli.config.resolve import colour_notes, resolve
from dsdmae_cli.config.schema import SCHEMAS, Loaded, schema_of
from dsdmae_cli.errors import CheckpointError, DsdmaeError, RunFailed, RunInterrupted, SettingsError
from dsdmae_cli.files import AGAIN, RESUME
from dsdmae_cli.report import Report, make_report
from dsdmae_cli.runs.observers.trackers import check_usable
from dsdmae_cli.runs.run import Parts, Run, Start
from dsdmae_cli.runs.rundir import SETTINGS, RunDir, changed_settings, default_path
from dsdmae_cli.runtime import choose_device, undisturbed
from dsdmae_cli.signals import Stopped, no_save_kills, stopping


def conduct(
    command: str,
    put_together: Callable[[Start], Parts],
    loaded: Loaded[Any],
    name: str,
    *,
    out: Path | None,
    resume: bool,
    overridden: bool,
    accept_changes: bool = False,
    report: Report | None = None,
    as_json: bool = False,
) -> dict[str, Any]:
    """Make or reopen the run directory, in every process alike, and run.

    Args:
        command: as a person types it: "pretrain".
        put_together: builds what is trained and looked at.
        loaded: settings as the person gave them.
        name: what is done, for the name of a directory of its own.
        out: the run directory; None = a new one under the user's data directory.
        resume: go on with the run in `out`, by its own settings; of one that has finished nothing is touched.
        overridden: settings were given beside --resume; they must equal the run's.
        accept_changes: go on though settings.toml or the images are not those of the run's newest checkpoint.
        report: what is told to the person; None = what fits stderr.
        as_json: no progress on stderr.

    Returns:
        What result.json holds.

    Raises:
        RunInterrupted: a signal asked to stop; the run was saved.
        RunFailed, DataError, SettingsError, CheckpointError: see their descriptions. Whatever is raised before the
            first step of a new run leaves no directory behind.
    """
    device = choose_device(loaded.settings.train.device)
    with distributed.process_group(device), undisturbed(), no_save_kills(), stopping():
        main = distributed.rank() == 0
        report = report or make_report(as_json=as_json, main_process=main)
        its = loaded.settings
        path = distributed.main_says(lambda: out or default_path(datetime.now(), name, its.backbone.name, its.data))
        directory = RunDir(path)
        run: Run | None = None
        try:
            settings: Any
            settings, resumed = distributed.main_says(lambda: _take(directory, loaded, resume, overridden))
            if resumed:
                distributed.main_says(lambda: _unchanged(directory, settings, accept_changes, report))
            if resume and (before := distributed.main_says(directory.finished)) is not None:
                report.note(f"finished already, in {path}: nothing is trained, judged or written")
                return before if main else {}
            with distributed.one_fate():
                check_usable(settings.train.trackers)
                resolved = resolve(settings)
                for note in () if resume else (*remarks(loaded, SCHEMAS[command]), *colour_notes(resolved)):
                    report.note(note)
                start = Start(
                    command, directory, settings, resolved, report, resume, resumed, accept_changes,
                    {} if resume else loaded.sources,
                )  # fmt: skip
                parts = put_together(start)
            run = Run(start, parts)
            return run.train()
        except BaseException as raised:
            error = _told(raised, run)
            if main and run is not None and run.trainer.step > 0:
                run.page.over(run, *_note_end(directory, error))
            if resume or (run is not None and run.trainer.step > 0):
                if error is not raised:
                    raise error from raised
                raise
            if main:
                directory.take_back(made=out is None)
            if isinstance(error, RunFailed):  # what it says of --resume holds for a run that has begun
                error.args = (str(error).replace(RESUME, AGAIN),)
            raise
        finally:
            report.stop()
            directory.release()


def _told(error: BaseException, run: Run | None) -> BaseException:
    """What is said of a run that ended by `error`: of one that was stopped when its last step was saved, before another
    one or while its result was written, that it goes on."""
    if run is None or not isinstance(error, KeyboardInterrupt) or run.saved_at != run.trainer.step:
        return error
    return run.interrupted(Stopped.by if isinstance(error, Stopped) else signal.SIGINT)


def _unchanged(directory: RunDir, settings: BaseModel, accept_changes: bool, report: Report) -> None:
    """See that settings.toml is what the newest checkpoint was trained by.

    Raises:
        CheckpointError: it is not, and that is not accepted.
    """
    saved = checkpoint.newest_settings(directory.checkpoints)
    if saved is None:
        return
    trained_by: BaseModel = written(schema_of(saved), saved, f"the newest checkpoint of {directory.path}").settings
    changes = changed_settings(trained_by, settings)
    if not changes:
        return
    other = f"{directory.path / SETTINGS} is not what the run was trained by: {'; '.join(changes)}"
    if not accept_changes:
        raise CheckpointError(f"{other}; put it back, or go on by it with --accept-changes")
    report.warn(f"{other}; it goes on by the file")


def _note_end(directory: RunDir, error: BaseException) -> tuple[Literal["stopped", "failed"], str]:
    """Have the directory tell how its run ended, for `dsdmae runs`; the same in words."""
    stopped = isinstance(error, RunInterrupted | KeyboardInterrupt)
    first = (str(error).splitlines() or [""])[0]
    known = isinstance(error, DsdmaeError)
    why = first.partition("; go on with")[0] if known else f"{type(error).__name__}: {first}".removesuffix(": ")
    state: Literal["stopped", "failed"] = "stopped" if stopped else "failed"
    directory.ended(state, why)
    return state, why


def _with_found(settings: Any, data: Any, resolved: Any) -> BaseModel:
    """The settings with what the images said of themselves, so that images which come later do not change it."""
    found = {key: getattr(data, key) for key in ("range", "channels") if getattr(settings.data, key) == "auto"}
    sections: dict[str, Any] = {"data": settings.data.model_copy(update=found)}
    if "method" in type(settings).model_fields:  # what needs colours is off where there are none
        sections["method"] = resolved.method
    return settings.model_copy(update=sections)


def _take(directory: RunDir, loaded: Loaded[Any], resume: bool, overridden: bool) -> tuple[BaseModel, bool]:
    """Make or reopen the run directory; the settings to go by, and whether there is a checkpoint to go on from."""
    resolved = resolve(loaded.settings)  # a rule between sections should fail before a directory is made
    if not resume:
        settings: BaseModel = _with_found(loaded.settings, resolved.data, resolved)
        directory.create(settings)
        return settings, False
    before: BaseModel = directory.resume().settings
    resumed = bool(checkpoint.newest_first(directory.checkpoints))
    if not overridden:
        return before, resumed
    return _those_of(directory, before, loaded, resolved), resumed


def look(directory: RunDir, loaded: Loaded[Any], *, overridden: bool, accept_changes: bool) -> None:
    """Refuse to go on with a run as `conduct` would, and write nothing: for --dry-run; arguments are its.

    Raises:
        CheckpointError, SettingsError: as conduct.
    """
    before: BaseModel = directory.settings().settings
    settings = _those_of(directory, before, loaded, resolve(loaded.settings)) if overridden else before
    _unchanged(directory, settings, accept_changes, Report())


def _those_of(directory: RunDir, before: BaseModel, loaded: Loaded[Any], resolved: Any) -> BaseModel:
    """The settings that were given beside --resume, which are those of the run.

    Raises:
        SettingsError: they differ in more than a resumed run may.
    """
    settings = _with_found(loaded.settings, before.data, resolved)  # type: ignore[attr-defined]
    changes = changed_settings(before, settings)
    if changes:
        longer = any(change.startswith("train.epochs:") for change in changes)
        able = hasattr(
            getattr(before, "train", None), "start"
        )  # a run of pre-training can begin with another's weights
        more = (
            f", for more epochs one that begins with its weights (--from {directory.path})" if longer and able else ""
        )
        raise SettingsError(
            f"--resume goes on with the settings of {directory.path}, but these differ: {'; '.join(changes)};"
            f" leave them out, or start a new run with --out{more}"
        )
    return settings
