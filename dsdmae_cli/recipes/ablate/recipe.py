"""The recipe of `dsdmae ablate`: from a definition to a report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dsdmae_cli import distributed
from dsdmae_cli.errors import RunFailed, RunInterrupted, SettingsError
from dsdmae_cli.recipes.ablate import report
from dsdmae_cli.recipes.ablate.definition import Definition, trial_name
from dsdmae_cli.recipes.ablate.progress import make_progress
from dsdmae_cli.recipes.ablate.results import Results, repeat_command
from dsdmae_cli.recipes.ablate.run import Plans, Runner, total_failure
from dsdmae_cli.recipes.ablate.study import Study
from dsdmae_cli.recipes.ablate.workers import make_slots
from dsdmae_cli.recipes.plan import make_plan
from dsdmae_cli.report import duration
from dsdmae_cli.rundir import RESULT
from dsdmae_cli.settings.load import resolve
from dsdmae_cli.settings.sweep import Point, describe, validate

_JOURNAL = "study.journal"


def ablate(
    definition: Definition,
    *,
    out: Path | None,
    storage: str | None,
    workers: int | None,
    parallel: bool,
    retry_failed: bool,
    as_json: bool,
) -> tuple[dict[str, Any], str]:
    """Run a study, or go on with it.

    Args:
        definition: what is asked for.
        out: the study's directory; None = one named after the definition, under the user's data directory.
        storage: URL of a database that several machines share; None = a journal in the directory.
        workers: trials at a time.
        parallel: a worker for each GPU, or each core of a CPU.
        retry_failed: run failed trials once more.
        as_json: nothing on stderr.

    Returns:
        (the result for scripts, the lines for people).

    Raises:
        RunInterrupted: a signal asked to stop; the same command goes on.
        RunFailed: no trial came to a value.
        SettingsError, PluginError, DataError: a trial could not run; nothing was.
    """
    if distributed.launched_by_torchrun():
        raise SettingsError("dsdmae ablate starts its own processes; run it without torchrun, and see --parallel")
    folder = (out or definition.default_path()).absolute()
    _check_usable(folder)
    progress = make_progress(definition.metric, as_json)
    try:
        plans = Plans(definition)
        validate(definition.axes, definition.points, definition.base)
        points = definition.points
        progress.note("working out what the trials take")
        plans.work_out(points)
        count = len(points) * definition.seeds if points else (definition.trials or 1) * definition.seeds
        slots = make_slots(workers, parallel, definition.common().train.device, count, plans.most_memory())
        study = Study(definition, storage or folder / _JOURNAL, retry_failed)
        progress.note(f"{count} trials, {len(slots)} at a time, in {folder}")
        runner = Runner(study, folder, slots, plans, progress)
        try:
            runner.run()
        except RunInterrupted as stopped:
            results = Results(definition, study.rows(), str(folder), repeat_command())
            report.write(results, folder)
            done = sum(row.state == "done" for row in results.rows)
            raise RunInterrupted(
                f"stopped by signal {stopped.exit_code - 128} with {done} of {len(results.rows)} trials done; the runs"
                f" were saved, and the same command goes on: {repeat_command()}",
                stopped.exit_code - 128,
            ) from None
        if study.used_up:
            progress.note("the search ended early: its space holds no more different settings")
    finally:
        progress.stop()
    results = Results(definition, study.rows(), str(folder), repeat_command())
    report.write(results, folder)
    if error := total_failure(results.rows):
        raise RunFailed(f"{error}; what they said is in {folder / 'logs'}")
    return results.json(), report.summary(results, folder)


def _check_usable(folder: Path) -> None:
    """See that a directory is new, empty, or holds a study.

    Raises:
        SettingsError: it holds something else, or cannot be read.
    """
    try:
        names = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    except OSError as error:
        raise SettingsError(f"cannot use --out {folder}: {error.strerror or error}") from error
    if names and not {_JOURNAL, "trials"} & set(names):
        raise SettingsError(f"--out {folder} holds no study but other things ({names[0]}); choose another one")


def dry_run(
    definition: Definition, *, out: Path | None, workers: int | None, parallel: bool
) -> tuple[dict[str, Any], str]:
    """What a study would run and cost; nothing is written. (For scripts, for people.)"""
    points = definition.points
    validate(definition.axes, points, definition.base)
    drawn = definition.trials or 0
    count = (len(points) or drawn) * definition.seeds
    plans = Plans(definition)
    plans.work_out(points)
    slots = make_slots(workers, parallel, definition.common().train.device, count, plans.most_memory())
    folder = (out or definition.default_path()).absolute()
    _check_usable(folder)
    torch.set_num_threads(int(slots[0].environ["OMP_NUM_THREADS"]))  # so that times are those of one worker
    rows: list[dict[str, Any]] = []
    drawn_later: list[Point | None] = [None]
    for point in points or drawn_later:
        settings = definition.settings(point, definition.seed_numbers()[0]) if point else definition.base.load()
        plan = make_plan(resolve(settings.settings))
        for seed in definition.seed_numbers() if point else range(count):
            name = trial_name(point, seed) if point else None
            rows.append(
                {
                    "settings": point,
                    "seed": seed if point else None,
                    "run": name,
                    "done": bool(name) and (folder / "trials" / str(name) / RESULT).exists(),
                    "steps": plan.steps,
                    "gflop": plan.gflop_per_image * plan.steps * plan.effective_batch,
                    "seconds": plan.estimated_seconds,
                    "memory_gib": plan.memory_gib,
                }
            )
    left = [row for row in rows if not row["done"]]
    known = all(row["seconds"] is not None for row in left)
    total = {
        "trials": len(rows),
        "done": len(rows) - len(left),
        "workers": len(slots),
        "gflop": sum(row["gflop"] for row in left),
        "seconds": sum(row["seconds"] for row in left) / len(slots) if known else None,
    }
    return {"study": str(folder), "trials": rows, "total": total}, _plan_text(definition, rows, total)


def _plan_text(definition: Definition, rows: list[dict[str, Any]], total: dict[str, Any]) -> str:
    def line(row: dict[str, Any]) -> str:
        what = f"{describe(row['settings'])}, seed {row['seed']}" if row["settings"] else "drawn when its turn comes"
        cost = f"{row['steps']} steps  {report.flop(row['gflop'])}"
        seconds = "" if row["seconds"] is None else f"  about {duration(row['seconds'])}"
        return f"{what:<40}  {cost}{seconds}{'  done already' if row['done'] else ''}"

    at_once = f", {total['workers']} at a time" if total["workers"] > 1 else ""
    when = f"about {duration(total['seconds'])}" if total["seconds"] is not None else "a time unknown until it runs"
    judged = f", and then `dsdmae {definition.metric.command[0]}` of each" if definition.metric.command else ""
    shown = rows if definition.points else rows[:1]
    left = total["trials"] - total["done"]
    return "\n".join(
        [
            *map(line, shown),
            f"total: {left} runs to do{at_once}, {report.flop(total['gflop'])}, {when} of pre-training{judged}",
        ]
    )
