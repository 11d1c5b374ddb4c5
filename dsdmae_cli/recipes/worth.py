"""`dsdmae worth`: from a run to a page that says whether pre-training pays."""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from platformdirs import user_data_path

from dsdmae_cli import distributed, plugins
from dsdmae_cli.artifacts.subject import PIXELS, SCRATCH, parse
from dsdmae_cli.config.resolve import resolve
from dsdmae_cli.config.schema import Loaded
from dsdmae_cli.data.once import opened_once
from dsdmae_cli.errors import RunInterrupted, SettingsError
from dsdmae_cli.evaluation.judging import open_labelled
from dsdmae_cli.files import write_bytes
from dsdmae_cli.recipes.finetune import build_classifier
from dsdmae_cli.report import Report, duration, make_report
from dsdmae_cli.runs.plan import make_plan
from dsdmae_cli.runs.rundir import LOCK, RESULT, file_name
from dsdmae_cli.runs.workers import make_slots
from dsdmae_cli.settings.judge import FinetuneSettings
from dsdmae_cli.worth import page
from dsdmae_cli.worth.findings import Findings, read
from dsdmae_cli.worth.running import Runner, check_same
from dsdmae_cli.worth.tasks import WAYS, Contender, Question, usable_shares


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
    subject = parse(settings.finetune.start)
    if subject.kind in (SCRATCH, PIXELS):
        raise SettingsError(
            f"{subject.text} was not pre-trained; say what was: a run, a weights file, or published weights"
        )
    contenders = [
        Contender("scratch", "without pre-training", SCRATCH),
        Contender("run", f"pre-trained ({subject.name})", subject.text),
    ]
    for number, word in enumerate(beside, start=1):
        other = parse(word)
        if other.kind in (SCRATCH, PIXELS):
            raise SettingsError(f"--beside {word}: {'it is always there' if other.kind == SCRATCH else 'no network'}")
        contenders.append(Contender(f"beside{number}", other.name, other.text, own_backbone=True))
    with opened_once():
        judged = open_labelled(resolve(settings).data)
        labels, few = usable_shares(shares, judged.train_labels)
        build_classifier(resolve(settings), len(judged.classes))
    notes = [
        f"{100 * share:g}% of the labels is {count} of {len(judged.classes)} classes, too few to choose by; left out"
        for share, count in few.items()
    ]
    return Question(tuple(contenders), tuple(labels), tuple(labels.values()), seeds, minutes, settings), notes


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
    folder = (out or default_folder(question)).absolute()
    check_same(question, folder)
    began = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        with lock:
            for note in notes:
                report.note(note)
            runner = _runner(question, folder, report)
            _run(runner)
            findings = read(question, runner.judged, [*notes, *runner.notes])
            wall = time.monotonic() - began
            said = page.write(findings, folder, _command(), runner.epochs, wall)
            result = _result(findings, said, folder, runner.epochs, wall)
            write_bytes(folder / RESULT, (json.dumps(result, indent=2) + "\n").encode())
            return result
    except Timeout:
        raise SettingsError(f"{folder} is worked on by another process; wait for it, or give another --out") from None


def _runner(question: Question, folder: Path, report: Report) -> Runner:
    settings = resolve(question.settings)
    # As in words_of: no batch is larger than its labels.
    batch = min(settings.train.batch_size, question.labels[-1])
    settings = settings.model_copy(update={"train": settings.train.model_copy(update={"batch_size": batch})})
    split = plugins.find("dataset", settings.data.dataset).spec.labelled_split
    with opened_once():
        _, classifier = build_classifier(settings, len(open_labelled(settings.data).classes))
        memory = make_plan(settings, classifier, split, timed=False).memory_gib
    slots = make_slots(None, True, settings.train.device, len(question.contenders) * question.seeds, memory)
    names = ", ".join(contender.name for contender in question.contenders)
    report.note(
        f"{names}: {', '.join(f'{count:,}' for count in question.labels)} labels, {question.seeds} seeds, about"
        f" {question.minutes:g} minutes, {len(slots)} at a time, in {folder}"
    )
    return Runner(question, folder, slots, report)


def _run(runner: Runner) -> None:
    try:
        runner.run()
    except RunInterrupted as stopped:
        raise RunInterrupted(
            f"stopped by signal {stopped.exit_code - 128}; what was done is kept, and the same command goes on:"
            f" {_command()}",
            stopped.exit_code - 128,
        ) from None


def default_folder(question: Question) -> Path:
    """The same command finds its answers again: the directory is named after what is asked, not after the time."""
    digest = hashlib.sha256(json.dumps(question.json(), sort_keys=True, default=str).encode()).hexdigest()[:8]
    names = (question.contenders[1].name, question.settings.data.dataset)
    return user_data_path("dsdmae") / "worth" / "-".join([*map(file_name, names), digest])


def _command() -> str:
    return shlex.join(["dsdmae", *sys.argv[1:]])


def _result(findings: Findings, said: str, folder: Path, epochs: int, wall: float) -> dict[str, Any]:
    question = findings.question
    scratch, run = question.contenders[:2]
    return {
        "kind": "worth",
        "answer": said,
        "sentences": page.sentences(findings),
        "dataset": question.settings.data.dataset,
        "gains": [asdict(gain) for gain in findings.gains(run, scratch)],
        "scores": [
            {"network": key, "share": share, "way": way, "top1": scores.top1, "held_out": scores.held_out,
             "seconds": round(scores.seconds, 1), "flops": scores.flops}
            for (key, share, way), scores in findings.scores.items()
        ],
        "networks": [asdict(contender) for contender in question.contenders],
        "labels": list(question.labels),
        "seeds": list(question.seed_numbers),
        "finetune_epochs": epochs,
        "notes": list(findings.notes),
        "seconds": round(wall, 1),
        "folder": str(folder),
        "page": str(folder / "report.html"),
    }  # fmt: skip


def plan_text(question: Question, notes: list[str]) -> tuple[dict[str, Any], str]:
    """--dry-run: what would be done, as an object and as lines; nothing is computed or written."""
    probes = [*question.probes("linear", question.seed_numbers), *question.probes("ep", question.seed_numbers)]
    tasks = [*probes, *question.finetunings()]
    plan = {
        "networks": [asdict(contender) for contender in question.contenders],
        "labels": list(question.labels),
        "shares": list(question.shares),
        "seeds": list(question.seed_numbers),
        "minutes": question.minutes,
        "tasks": [task.name for task in tasks],
        "folder": str(default_folder(question)),
        "notes": notes,
    }
    each = [sum(task.way == way for task in tasks) for way in WAYS]
    counts = "{} linear probes, {} efficient probes, {} fine-tunings".format(*each)
    when = f"about {duration(60 * question.minutes)}; fine-tuning gets the epochs that this has room for"
    text = "\n".join(
        [
            f"{', '.join(contender.name for contender in question.contenders)} on {question.settings.data.dataset}",
            f"labels         {', '.join(f'{count:,}' for count in question.labels)}",
            f"tasks          {counts} ({question.seeds} seeds)",
            f"time           {when}",
            *notes,
        ]
    )
    return plan, text


def summary(result: dict[str, Any]) -> str:
    """The lines for people."""
    return "\n".join([*result["sentences"], f"page           {result['page']}",
                      f"time           {duration(result['seconds'])}"])  # fmt: skip
