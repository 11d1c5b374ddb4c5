"""`dsdmae pretrain`: from settings to a run directory with an encoder in it."""

from __future__ import annotations

from functools import partial
from math import isclose
from pathlib import Path
from typing import Any

from dsdmae_cli import checkpoint, distributed
from dsdmae_cli.artifacts.beginning import open_beginning
from dsdmae_cli.artifacts.format import load_with, save_encoder
from dsdmae_cli.config.describe import tables
from dsdmae_cli.config.resolve import BEGUN_RATE, resolve
from dsdmae_cli.config.schema import Loaded
from dsdmae_cli.data.masks import labels_of
from dsdmae_cli.data.open import open_all, open_dataset
from dsdmae_cli.data.run_data import RunData, open_run_data
from dsdmae_cli.data.twins import find_twins
from dsdmae_cli.evaluation.closing import (
    DIVERGED,
    NEIGHBOURS,
    closing_words,
    diverged,
    knn_entries,
    last_words,
    open_words,
)  # fmt: skip
from dsdmae_cli.evaluation.judging import warn_of_twins
from dsdmae_cli.files import write_bytes
from dsdmae_cli.methods.base import Method
from dsdmae_cli.page.words import page_line
from dsdmae_cli.recipes.beforehand import provided
from dsdmae_cli.report import Report, duration, make_report, number_of
from dsdmae_cli.runs.build import build_method
from dsdmae_cli.runs.conduct import conduct
from dsdmae_cli.runs.observers.base import Observer
from dsdmae_cli.runs.observers.collapse import Collapse
from dsdmae_cli.runs.observers.features import Features, Watcher
from dsdmae_cli.runs.observers.knn import NearestNeighbours
from dsdmae_cli.runs.observers.pictures import Pictures
from dsdmae_cli.runs.plan import Plan, make_plan
from dsdmae_cli.runs.prerequisite import frozen_part, give_weights, requirement
from dsdmae_cli.runs.run import Parts, Run, Start
from dsdmae_cli.runs.rundir import ENCODER, REQUIRED, RUN, SETTINGS, RunDir, called
from dsdmae_cli.runtime import choose_device, choose_runtime, resident_bytes
from dsdmae_cli.settings.models import Settings
from dsdmae_cli.settings.resolved import ResolvedSettings

_SCORES = {"step", "epoch", "knn", "spread", "rank"}  # what every method has measured


def pretrain(
    loaded: Loaded[Settings],
    *,
    out: Path | None,
    resume: bool,
    overridden: bool,
    accept_changes: bool = False,
    as_json: bool = False,
    report: Report | None = None,
) -> dict[str, Any]:
    """Run pre-training; arguments, result and errors are those of runs.conduct.conduct."""
    settings = loaded.settings
    with distributed.process_group(choose_device(settings.train.device)):
        report = report or make_report(as_json=as_json, main_process=distributed.rank() == 0)
        run = RunDir(out) if resume and out is not None else None
        begun = run is not None and distributed.main_says(
            lambda: bool(checkpoint.newest_first(run.checkpoints) or run.finished())
        )
        required = None
        if requirement(settings) is not None and not begun:  # a run that has begun holds what it needed
            refuse = partial(plan, loaded, resume=resume, as_json=True, timed=False)
            required = provided(resolve(settings), None if resume else out, report, _train, refuse)
        return _train(loaded, out, resume, overridden, report, required, accept_changes)


def plan(loaded: Loaded[Settings], *, resume: bool, as_json: bool = False, timed: bool = True) -> Plan:
    """What --dry-run shows; weights to begin with are opened, and refused as the run would refuse them.

    Raises:
        DataError, SettingsError, PluginError, CheckpointError: as pretrain.
    """
    settings = resolve(loaded.settings)
    if settings.train.start is None or resume:  # a run that goes on needs them no more
        return make_plan(settings, timed=timed)
    report = make_report(as_json=as_json, main_process=True)
    return make_plan(settings, timed=timed, build=lambda: _begun(settings, report))


def _train(
    loaded: Loaded[Settings],
    out: Path | None,
    resume: bool,
    overridden: bool,
    report: Report,
    required: Path | None = None,
    accept_changes: bool = False,
) -> dict[str, Any]:
    name = loaded.settings.method.name
    put_together = partial(_put_together, required=required)
    return conduct(
        "pretrain", put_together, loaded, name, out=out, resume=resume, overridden=overridden,
        accept_changes=accept_changes, report=report,
    )  # fmt: skip


def _put_together(start: Start, required: Path | None) -> Parts:
    """The method around its backbone, its images, and what looks at it on the way."""
    settings: ResolvedSettings = start.settings
    method = _method(start, settings, required)
    with distributed.main_first():
        dataset = open_all(settings.data)
    runtime = choose_runtime(settings, method, held=resident_bytes(dataset, settings))
    runtime.receive(method)
    for note in dataset.notes:
        start.report.note(note)
    if start.main and not start.resumed:
        warn_of_twins(find_twins(dataset, open_dataset(settings.data, "test")), start.report)
    data = open_run_data(
        dataset,
        settings.data,
        start.batching(dataset, runtime),
        runtime.device,
        num_views=method.num_views,
        most=None if settings.train.knn_every is None else settings.train.knn_images,
        note=start.report.note,
        account=start.report.account,
    )
    for line in data.held_out_unreadable.lines("held-out image"):
        start.report.warn(f"skipped {line}")
    s = settings
    return Parts(
        method=method,
        runtime=runtime,
        source=data.source,
        dataset=dataset,
        unreadable=data.unreadable,
        observers=_observers(start, settings, data),
        sentence=f"{s.method.name} with {s.backbone.name} on {s.data.dataset}",
        result=partial(_result, 0 if data.queries is None else len(data.queries.labels)),
        about=_about(start, settings, required),
    )


def _method(start: Start, settings: ResolvedSettings, required: Path | None) -> Method:
    kept = start.directory.path / REQUIRED
    if start.resumed:  # its checkpoint brings all weights
        return build_method(settings.without_weights(), kept)
    method = _begun(settings, start.report)
    needs = requirement(settings)
    if needs is not None:
        assert required is not None
        give_weights(method, required, needs)
        assert frozen_part(method).trained
        if start.main:
            write_bytes(kept, (required / SETTINGS).read_bytes())
    return method


def _begun(settings: ResolvedSettings, report: Report) -> Method:
    """A new method, or one that begins with weights that somebody has."""
    if settings.train.start is None:
        return build_method(settings)
    beginning = open_beginning(settings.train.start, settings)
    method = build_method(settings.without_weights(), begin=beginning.fill_encoder)
    for note in (*beginning.notes, beginning.fill_parts(method, settings.method.name), _rate(settings)):
        report.note(note)
    return method


def _rate(settings: ResolvedSettings) -> str:
    """The learning rate of a run that begins with trained weights; where nobody said it, beside that of a new run."""
    optim = settings.optim
    own = isclose(optim.lr, BEGUN_RATE * optim.base_lr * settings.train.batch_size / 256)
    share = ": a tenth of what a new run has" if own else ""
    warmup = f"{optim.warmup_epochs:.3g} epoch{'' if optim.warmup_epochs == 1 else 's'} of warm-up"
    return f"learning rate {optim.lr:.3g} at its peak after {warmup}{share} (--lr changes it)"


def _about(start: Start, settings: ResolvedSettings, required: Path | None) -> dict[str, Any]:
    needs = requirement(settings)
    if needs is None:
        return {}
    before = start.directory.read_json(RUN).get("required")
    return {"required": {needs.method: str(required)} if required else before}


def _observers(start: Start, settings: ResolvedSettings, data: RunData) -> list[Observer]:
    """Pictures of held-out images; and k-NN where there are labels, collapse in any case, unless that is off."""
    observers: list[Observer] = [Pictures(data.pictures, start.directory.figures)]
    every = settings.train.knn_every
    if every is not None and data.watched is not None:
        watchers: list[Watcher] = [Collapse()]
        if data.bank is not None and data.queries is not None:
            watchers.insert(0, NearestNeighbours(data.bank, data.queries))
        observers.append(Features(data.watched, every, watchers))
    return observers


# -- the end


def _result(num_queries: int, run: Run) -> dict[str, Any]:
    """What result.json holds, where so many images are behind a k-NN score."""
    settings: ResolvedSettings = run.settings
    records = run.directory.metrics()
    encoder, path = run.method.encoder(), run.directory.path / ENCODER
    save_encoder(encoder, tables(settings), run.images_seen, path)
    train = [r for r in records if "loss" in r]
    before = "the weights it began with" if settings.train.start else "untrained"
    labels = "classes" if num_queries else labels_of(run.parts.dataset)
    closing = closing_words(records, num_queries, before, labels) if run.method.learns_features else ""
    lost = diverged(records, run.trainer.step)
    spreads = [r for r in records if "rank" in r and not lost]
    last = {k: v for k, v in train[-1].items() if k not in {"step", "epoch", "images_per_second"}} if train else {}
    return {
        "run": str(run.directory.path),
        "method": settings.method.name,
        "backbone": settings.backbone.name,
        "dataset": settings.data.dataset,
        "data_notes": list(run.parts.dataset.notes),
        "labels": labels,
        "epochs": settings.train.epochs,
        "steps": run.trainer.step,
        "images_seen": run.images_seen,
        "seconds": round(run.seconds(), 1),
        "final": last,
        **knn_entries(records, num_queries, settings.train.start is not None, lost=lost),
        "start": settings.train.start,
        "closing": DIVERGED if lost else closing,
        "measured": {k: spreads[-1][k] for k in spreads[-1] if k not in _SCORES} if spreads else {},
        "feature_spread": spreads[-1]["spread"] if spreads else None,
        "feature_rank": spreads[-1]["rank"] if spreads else None,
        "skipped_steps": int(run.trainer.skipped),
        "unreadable_images": len(run.unreadable),
        "encoder": str(path),
        "load_with": load_with(encoder, path),
        "pictures": str(run.directory.figures) if run.directory.figures.exists() else None,
    }


def summary(result: dict[str, Any]) -> str:
    """The lines for people at the end of a run."""
    seen = number_of(result["images_seen"], "image")
    lines = [f"{number_of(result['steps'], 'step')}, {seen} in {duration(result['seconds'])}"]
    if result["final"]:
        lines[0] += f", last loss {result['final'].get('loss', float('nan')):.4f}"
    if result["knn_accuracy"] is not None:
        untrained, start = result["knn_accuracy_untrained"], result["knn_accuracy_start"]
        was = f" (untrained {untrained:.1%})" if untrained is not None else ""
        was = f" (the weights it began with {start:.1%})" if start is not None else was
        lines.append(f"k-NN accuracy  {result['knn_accuracy']:.1%}{was}{open_words(result)}, k = {NEIGHBOURS}")
    if result["measured"]:
        lines.append(f"on held-out    {', '.join(f'{name} {value:.4g}' for name, value in result['measured'].items())}")
    if result["unreadable_images"]:
        lines.append(f"skipped        {result['unreadable_images']} unreadable images")
    words = last_words(result, called(Path(result["run"])))  # the finding, and what to type next
    where = [f"encoder        {result['encoder']}", f"load it with   {result['load_with']}", *page_line(result["run"])]
    return "\n".join([*lines, *words[:1], *where, *words[1:]])
