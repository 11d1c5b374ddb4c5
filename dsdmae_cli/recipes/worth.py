"""`dsdmae worth`: from a run to a page that says whether pre-training pays."""

from __future__ import annotations

import json
import math
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dsdmae_cli import distributed, plugins
from dsdmae_cli.artifacts.subject import parse, taken_over
from dsdmae_cli.config.compose import compose
from dsdmae_cli.config.describe import tables
from dsdmae_cli.config.resolve import resolve
from dsdmae_cli.config.schema import WORTH, Loaded
from dsdmae_cli.data.once import opened_once
from dsdmae_cli.errors import RunInterrupted, SettingsError
from dsdmae_cli.evaluation.judging import open_labelled
from dsdmae_cli.files import explained, write_bytes
from dsdmae_cli.recipes.finetune import build_classifier
from dsdmae_cli.report import Report, duration, make_report, number_of, without_password
from dsdmae_cli.runs.observers.trackers import check_usable
from dsdmae_cli.runs.plan import make_plan
from dsdmae_cli.runs.rundir import RESULT, RunDir
from dsdmae_cli.runs.workers import make_slots
from dsdmae_cli.runtime import choose_device
from dsdmae_cli.settings.judge import PIXELS, SCRATCH, FinetuneSettings
from dsdmae_cli.settings.resolved import ResolvedFinetuneSettings
from dsdmae_cli.settings.size import size_words
from dsdmae_cli.worth import page
from dsdmae_cli.worth.findings import read
from dsdmae_cli.worth.record import folder_of, result_of
from dsdmae_cli.worth.running import Runner, taken
from dsdmae_cli.worth.tasks import Contender, Question, usable_shares

# What the question itself decides, and so nobody else.
_OWN = (
    "train.epochs", "train.score_every", "finetune.task", "finetune.labels", "finetune.validation", "finetune.select",
)  # fmt: skip


def ask(
    loaded: Loaded[FinetuneSettings],
    *,
    beside: tuple[str, ...] = (),
    shares: tuple[float, ...],
    seeds: int,
    minutes: float,
) -> tuple[Question, list[str]]:
    """The question, and what has to be said of it; everything that can be wrong is found here.

    Args:
        loaded: of fine-tuning; what it starts from is what is asked about.
        beside: further networks, as SUBJECT.
        shares: of the labels.

    Raises:
        SettingsError, DataError, CheckpointError, PluginError: it cannot be asked.
    """
    settings = loaded.settings
    check_usable(settings.train.trackers)
    choose_device(settings.train.device)
    if not math.isfinite(minutes):
        raise SettingsError(f"--budget {minutes}: give a number of minutes")
    for key in _OWN:
        if not loaded.sources[key].startswith(("default", "preset")):
            raise SettingsError(
                f"{key} (from {loaded.sources[key]}) is decided by `dsdmae worth` itself, by --budget and --shares;"
                " leave it out"
            )
    with opened_once():
        data = resolve(settings).data
        judged = open_labelled(data)
        labels, few = usable_shares(shares, judged.train_labels)
        notes = [
            f"{100 * share:g}% of the labels is {count} of {number_of(len(judged.classes), 'class')}, too few; left out"
            for share, count in few.items()
        ]
        run, about = _contender("run", settings, len(judged.classes))
        scratch = Contender("scratch", "without pre-training", SCRATCH, size=run.size)
        contenders = [scratch, replace(run, name=f"pre-trained ({run.name})")]
        notes += about
        for number, word in enumerate(beside, start=1):
            values, origin = taken_over(word, None)
            base = {**values, "data": tables(settings)["data"], "finetune": {"start": word}}
            own = compose(WORTH, base=(base, origin), environ={}).settings
            other, about = _contender(f"beside{number}", own, len(judged.classes))
            contenders.append(replace(other, own_backbone=True))
            notes += about
    fingerprint = f"{judged.train.fingerprint()} {judged.test.fingerprint()}"
    counts = tuple(labels.values())
    return Question(tuple(contenders), tuple(labels), counts, seeds, minutes, fingerprint, settings), notes


def _contender(key: str, settings: FinetuneSettings, num_classes: int) -> tuple[Contender, list[str]]:
    """A pre-trained network as its tasks will open it, and what is to be said of it.

    Raises:
        SettingsError: it was not pre-trained, or has seen labels.
    """
    subject = parse(settings.finetune.start)
    if subject.kind in (SCRATCH, PIXELS):
        raise SettingsError(
            f"{subject.text} was not pre-trained; say what was: a run, a weights file, or published weights. The same"
            " network without pre-training is always there"
        )
    if isinstance(subject.settings(), ResolvedFinetuneSettings):
        raise SettingsError(
            f"{subject.text} was fine-tuned and has seen labels, so that it cannot show what few of them are worth;"
            " give the run that it came from"
        )
    opened, _ = build_classifier(resolve(settings), num_classes)
    size = f"{size_words(opened.encoder.image_size)} px, {opened.encoder.num_tokens} tokens"
    contender = Contender(key, subject.name, subject.text, weights=opened.weights_sha256, size=size)
    return contender, [f"{subject.name}: {note}" for note in opened.notes]


def worth(
    question: Question, notes: list[str], *, out: Path | None, as_json: bool = False, report: Report | None = None
) -> dict[str, Any]:
    """Answer a question, or go on answering it, and write the page.

    Args:
        out: the directory; None = one named after the question, under the user's data directory.

    Returns:
        What result.json holds.

    Raises:
        RunInterrupted: a signal asked to stop; the same command goes on.
        RunFailed: a task failed.
        SettingsError: the directory holds something else.
    """
    if distributed.launched_by_torchrun():
        raise SettingsError("dsdmae worth starts its own processes; run it without torchrun")
    report = report or make_report(as_json=as_json, main_process=True)
    folder = folder_of(question, out)
    with explained(folder, "the same command goes on when that is mended"), taken(folder):
        return _answered(question, notes, folder, report)


def _answered(question: Question, notes: list[str], folder: Path, report: Report) -> dict[str, Any]:
    """What is there already, or what the tasks come to."""
    before = RunDir(folder).read_json(RESULT)
    if before.get("failed") == {}:
        report.note(f"answered before, in {folder}")
        return before
    for note in notes:
        report.note(note)
    runner, chance = _runner(question, folder, report)
    try:
        runner.run()
    except RunInterrupted as stopped:
        raise RunInterrupted(
            f"stopped by {stopped.by}; what was done is kept, and the same command goes on: {_command()}",
            stopped.exit_code - 128,
        ) from None
    missing = [f"{name} failed, and is not in these tables: {reason}" for name, reason in runner.failed.items()]
    findings = read(question, runner.judged, [*notes, *runner.notes, *missing], chance)
    result = result_of(findings, folder, runner)
    write_bytes(folder / RESULT, (json.dumps(result, indent=2) + "\n").encode())
    with report.spared("the page of the answer"):
        page.write(findings, folder, _command(), runner.epochs, runner.seconds)
    return result


def _runner(question: Question, folder: Path, report: Report) -> tuple[Runner, float]:
    """The runner, and the share of the test images that are of their largest class."""
    settings = resolve(question.settings)
    batch = min(settings.train.batch_size, question.labels[-1])  # as in words_of: none is larger than its labels
    settings = settings.model_copy(update={"train": settings.train.model_copy(update={"batch_size": batch})})
    split = plugins.find("dataset", settings.data.dataset).spec.labelled_split
    with opened_once():
        judged = open_labelled(settings.data)
        _, classifier = build_classifier(settings, len(judged.classes))
        memory = make_plan(settings, classifier, split, timed=False).memory_gib
    slots = make_slots(None, True, settings.train.device, len(question.contenders) * question.seeds, memory)
    names = ", ".join(contender.name for contender in question.contenders)
    report.note(
        f"{names}: {', '.join(f'{count:,}' for count in question.labels)} labels,"
        f" {number_of(question.seeds, 'seed')}, about"
        f" {duration(60 * question.minutes)}, {len(slots)} at a time, in {folder}"
    )
    chance = float(np.bincount(judged.test_labels).max() / len(judged.test))
    return Runner(question, folder, slots, report), chance


def _command() -> str:
    return shlex.join(["dsdmae", *map(without_password, sys.argv[1:])])
