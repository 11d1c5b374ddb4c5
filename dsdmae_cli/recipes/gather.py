"""From what was given to settings: one way for the commands that train, one for those that judge."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from dsdmae_cli.artifacts.begun import begun_with, with_its_images
from dsdmae_cli.artifacts.learned_from import with_images
from dsdmae_cli.artifacts.subject import allowed, taken_over, to_adapt
from dsdmae_cli.config.compose import compose
from dsdmae_cli.config.describe import tables
from dsdmae_cli.config.given import Given
from dsdmae_cli.config.own_images import fitted
from dsdmae_cli.config.schema import FINETUNE, PRETRAIN, PROBE, WORTH, Loaded, Schema
from dsdmae_cli.errors import SettingsError
from dsdmae_cli.runs.rundir import RunDir, refuse_run
from dsdmae_cli.settings.models import Settings


def resumed(given: Given, schema: Schema[Any]) -> Path | None:
    """The directory of the run to go on with; None for a new one, whose directory must be free.

    Raises:
        SettingsError: --resume without --out, or --accept-changes without --resume.
    """
    if given.accept_changes and not given.resume:
        raise SettingsError(
            "--accept-changes is about a run that goes on; give --resume --out DIR too, or leave it out"
        )
    if given.resume and given.out is None:
        raise SettingsError("--resume needs the run's directory; add --out DIR")
    if given.dry_run and given.out is not None and schema is not WORTH:  # whose directory is no run's
        RunDir(given.out).look(resume=given.resume, probe=schema is PROBE)
    return given.out if given.resume else None


def pretraining(given: Given, schema: Schema[Settings] = PRETRAIN, method: str | None = None) -> Loaded[Settings]:
    """Settings of a run of pre-training.

    Args:
        schema: of the command.
        method: that the command stands for, where it stands for one.
    """
    before = resumed(given, schema)
    base = (tables(RunDir(before).settings().settings), "the run") if before else None
    flags, origins = dict(given.flags), dict(given.origins)
    if method is not None:
        flags["method.name"], origins["method.name"] = method, f"dsdmae {schema.command}"
    loaded = compose(
        schema, preset=given.preset, config=given.config, flags=flags, origins=origins, assignments=given.assignments,
        base=base, start=None if before else begun_with, use_default_preset=base is None,
    )  # fmt: skip
    refuse_run(loaded.settings.data.dataset)
    _refuse_changes(given, before, loaded)
    return fitted(with_its_images(loaded))


def judging(given: Given, schema: Schema[Any], section: str) -> Loaded[Any]:
    """Settings of a command that judges `given.subject`, on the data and with the backbone that it was made with.

    Args:
        section: that holds what is judged, as `start`.
    """
    before = resumed(given, schema)
    if before is not None:
        return _judging_on(given, schema, section, before)
    if given.subject is None:
        raise SettingsError(f"say what to judge: {allowed(trained=schema.command == 'worth')}")
    values, origin = taken_over(given.subject, given.like)
    # Above what a file says: settings.toml of another run, with which this one is to be judged alike, names its own.
    start = f"{section}.start"
    if other := [text for text in given.assignments or () if text.partition("=")[0].strip() == start]:
        raise SettingsError(f"--set {other[-1]} and {given.subject} both say what to judge; leave one out")
    composed = partial(
        compose, schema, preset=given.preset, config=given.config, flags={**given.flags, start: given.subject},
        origins={**given.origins, start: "SUBJECT"}, assignments=given.assignments,
    )  # fmt: skip
    own = values if schema is not FINETUNE else to_adapt(values, other_images=False)
    make = partial(composed, base=(own, origin))
    loaded = with_images(
        given.like or given.subject, values, make,
        lambda found: found.settings.data if found.sources["data.dataset"] == origin else None,
    )  # fmt: skip
    if schema is not FINETUNE:
        return loaded
    if loaded.sources["data.dataset"] != origin:
        loaded = composed(base=(to_adapt(values, other_images=True), origin))
    return fitted(loaded)


def _judging_on(given: Given, schema: Schema[Any], section: str, run: Path) -> Loaded[Any]:
    """Settings of a run that is resumed; its own stand below what was given."""
    before = tables(RunDir(run).settings().settings)
    if section not in before:
        raise SettingsError(f"{run} holds no run of `dsdmae {section}`; resume it with the command that began it")
    start = (f"{section}.start={given.subject}",) if given.subject is not None else ()
    given = replace(given, assignments=(*start, *(given.assignments or ())))
    loaded = compose(
        schema, preset=given.preset, config=given.config, flags=given.flags, origins=given.origins,
        assignments=given.assignments, base=(before, "the run"), use_default_preset=False,
    )  # fmt: skip
    _refuse_changes(given, run, loaded)
    return loaded


def _refuse_changes(given: Given, run: Path | None, loaded: Loaded[Any]) -> None:
    if given.dry_run and run is not None:  # as the run itself will
        from dsdmae_cli.runs.conduct import look

        look(RunDir(run), loaded, overridden=given.any_setting, accept_changes=given.accept_changes)
