"""The recipe of `dsdmae ablate`: from a definition to a report."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from dsdmae_cli import distributed
from dsdmae_cli.ablation import report
from dsdmae_cli.ablation.definition import Definition
from dsdmae_cli.ablation.plans import Plans
from dsdmae_cli.ablation.progress import make_progress
from dsdmae_cli.ablation.results import repeat_command, results_of
from dsdmae_cli.ablation.run import Runner, total_failure
from dsdmae_cli.ablation.storage import JOURNAL, free_for, reach
from dsdmae_cli.ablation.study import Study
from dsdmae_cli.ablation.sweep import validate
from dsdmae_cli.errors import RunFailed, RunInterrupted, SettingsError
from dsdmae_cli.report import number_of
from dsdmae_cli.runs.workers import make_slots


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
    # What needs no trial's plan is refused before they are worked out.
    folder = free_for(definition, out, storage, workers)
    if storage is not None:
        reach(storage)
    progress = make_progress(definition.metric, as_json)
    try:
        plans = Plans(definition)
        validate(definition.axes, definition.points, definition.base)
        points = definition.points
        progress.note("working out what the trials take")
        plans.work_out(points)
        definition = plans.once()
        points = definition.points
        for said in (*definition.remarks(), *definition.said_of_twins()):
            progress.note(said)
        for warning in plans.warnings():
            progress.warn(warning)
        count = len(points) * definition.seeds if points else (definition.trials or 1) * definition.seeds
        slots = make_slots(workers, parallel, definition.common().train.device, count, plans.most_memory())
        study = Study(definition, storage or folder / JOURNAL, retry_failed)
        progress.note(f"{number_of(count, 'trial')}, {len(slots)} at a time, in {folder}")
        runner = Runner(study, folder, slots, plans, progress, partial(report.write_meanwhile, study, folder))
        try:
            runner.run()
        except RunInterrupted as stopped:
            results = results_of(study, folder)
            report.write(results, folder)
            done = sum(row.state == "done" for row in results.rows)
            raise RunInterrupted(
                f"stopped by {stopped.by} with {done} of {number_of(max(count, len(results.rows)), 'trial')}"
                f" done; the runs were saved, and the same command goes on: {repeat_command()}",
                stopped.exit_code - 128,
            ) from None
        if study.used_up:
            progress.note("the search ended early: its space holds no more different settings")
    finally:
        progress.stop()
    results = results_of(study, folder)
    report.write(results, folder)
    if error := total_failure(results.rows):
        raise RunFailed(f"{error}; what they said is in {folder / 'logs'}, and --retry-failed runs them once more")
    return results.json(), report.summary(results, folder)
