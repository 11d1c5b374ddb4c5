"""--dry-run: what a study would run and take; nothing is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dsdmae_cli.ablation.definition import Definition, Metric, trial_name
from dsdmae_cli.ablation.plans import Plans
from dsdmae_cli.ablation.storage import free_for
from dsdmae_cli.ablation.sweep import Point, describe, validate
from dsdmae_cli.ablation.trial import judged_folder
from dsdmae_cli.ablation.words import flop
from dsdmae_cli.report import duration, number_of, without_password
from dsdmae_cli.runs.rundir import RESULT
from dsdmae_cli.runs.workers import make_slots


def dry_run(
    definition: Definition, out: Path | None, *, workers: int | None, parallel: bool, storage: str | None = None
) -> tuple[dict[str, Any], str, list[str]]:
    """(For scripts, for people, warnings) of a study; arguments are those of recipes/ablate.py.

    Raises:
        DsdmaeError: it would be refused.
    """
    folder = free_for(definition, out, storage, workers)
    points = definition.points
    validate(definition.axes, points, definition.base)
    plans = Plans(definition)
    plans.work_out(points)
    definition = plans.once()
    points = definition.points
    count = (len(points) or definition.trials or 0) * definition.seeds
    slots = make_slots(workers, parallel, definition.common().train.device, count, plans.most_memory())
    torch.set_num_threads(int(slots[0].environ["OMP_NUM_THREADS"]))  # so that times are those of one worker
    drawn_later: list[Point] = [{}]
    rows = [
        _row(definition, plans, point, seed, folder)
        for point in points or drawn_later
        for seed in (definition.seed_numbers() if point else range(count))
    ]
    left = [row for row in rows if not row["done"]]
    known = all(row["seconds"] is not None for row in left)
    total = {
        "trials": len(rows),
        "done": len(rows) - len(left),
        "workers": len(slots),
        "gflop": sum(row["gflop"] for row in left),
        "seconds": sum(row["seconds"] for row in left) / len(slots) if known else None,
        "not_included": _not_included(definition.judges, len(left), storage),
    }
    plan = {
        "study": str(folder),
        "equal": definition.equal,
        "trials": rows,
        "notes": definition.remarks(),
        "same": dict(definition.twins),
        "total": total,
    }
    return plan, _text(definition, rows, total), plans.warnings()


def _row(definition: Definition, plans: Plans, point: Point, seed: int, folder: Path) -> dict[str, Any]:
    """A trial; of a search, whose points are drawn later, the base in its place."""
    plan, name = plans.of(point), trial_name(point, seed) if point else None
    return {
        "settings": point or None,
        "seed": seed if point else None,
        "run": name,
        "done": name is not None and _is_done(folder / "trials" / name, definition.judges),
        "epochs": plan.epochs,
        "steps": plan.steps,
        "gflop": plans.work(point),
        "gflop_to_budget": plans.work(point) / plans.budget if plans.budget else None,
        "seconds": plans.seconds(point),
        "memory_gib": plan.memory_gib,
    }


def _is_done(run: Path, judges: tuple[Metric, ...]) -> bool:
    return all((folder / RESULT).exists() for folder in (run, *(judged_folder(run, metric) for metric in judges)))


def _not_included(judges: tuple[Metric, ...], left: int, storage: str | None) -> list[str]:
    """What the total leaves out, in words."""
    judged = [f"`dsdmae {' '.join(metric.command)}` of each ({left} times)" for metric in judges]
    untried = [] if storage is None else [f"connecting to {without_password(storage)}, which was not tried"]
    return [*judged, "starting the processes, reading images, k-NN scores on the way", *untried]


def _text(definition: Definition, rows: list[dict[str, Any]], total: dict[str, Any]) -> str:
    shown = rows if definition.points else rows[:1]
    names = [
        f"{describe(r['settings'])}, seed {r['seed']}" if r["settings"] else "drawn when its turn comes" for r in shown
    ]
    width = max(map(len, names))

    def line(name: str, row: dict[str, Any]) -> str:
        share = "" if row["gflop_to_budget"] is None else f" ({row['gflop_to_budget']:.2f} of the budget)"
        epochs = number_of(row["epochs"], "epoch")
        cost = f"{epochs}, {number_of(row['steps'], 'step')}  {flop(row['gflop'])}{share}"
        seconds = "" if row["seconds"] is None else f"  about {duration(row['seconds'])}"
        return f"{name:<{width}}  {cost}{seconds}{'  done already' if row['done'] else ''}"

    at_once = f", {total['workers']} at a time" if total["workers"] > 1 else ""
    when = f"about {duration(total['seconds'])}" if total["seconds"] is not None else "a time unknown until it runs"
    left = total["trials"] - total["done"]
    return "\n".join(
        [
            *map(line, names, shown),
            *definition.remarks(),
            *definition.said_of_twins(),
            f"total: {number_of(left, 'run')} to do{at_once}, {flop(total['gflop'])}, {when} of pre-training",
            f"not included: {'; '.join(total['not_included'])}",
        ]
    )
