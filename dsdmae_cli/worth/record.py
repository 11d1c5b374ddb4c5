"""What a question and its answer are called and written down as: directory, result.json, the lines for people."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from platformdirs import user_data_path

from dsdmae_cli.report import duration, number_of
from dsdmae_cli.runs.rundir import file_name
from dsdmae_cli.worth import page
from dsdmae_cli.worth.findings import Findings
from dsdmae_cli.worth.running import Runner, check_same
from dsdmae_cli.worth.tasks import WAYS, Question


def folder_of(question: Question, out: Path | None) -> Path:
    """The directory of a question, which is free or holds this very question.

    Raises:
        SettingsError: it is not, or cannot be written.
    """
    folder = (out or _default_folder(question)).absolute()
    check_same(question, folder)
    return folder


def _default_folder(question: Question) -> Path:
    """The same command finds its answers again: the directory is named after what is asked, not after the time."""
    digest = hashlib.sha256(json.dumps(question.json(), sort_keys=True, default=str).encode()).hexdigest()[:8]
    names = (question.contenders[1].name, question.settings.data.dataset)
    return user_data_path("dsdmae") / "worth" / "-".join([*map(file_name, names), digest])


def result_of(findings: Findings, folder: Path, runner: Runner) -> dict[str, Any]:
    """What result.json holds."""
    question = findings.question
    scratch, run = question.contenders[:2]
    sentences = page.sentences(findings)
    return {
        "kind": "worth",
        "answer": sentences[0],
        "sentences": sentences,
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
        "finetune_epochs": runner.epochs,
        "failed": runner.failed,
        "notes": list(findings.notes),
        "seconds": round(runner.seconds, 1),
        "folder": str(folder),
        "page": str(folder / "report.html"),
    }  # fmt: skip


def plan_text(question: Question, notes: list[str], out: Path | None) -> tuple[dict[str, Any], str]:
    """--dry-run: what would be done, as an object and as lines; nothing is computed or written.

    Raises:
        SettingsError: it would be refused.
    """
    probes = [*question.probes("linear", question.seed_numbers), *question.probes("ep", question.seed_numbers)]
    tasks = [*probes, *question.finetunings()]
    plan = {
        "networks": [asdict(contender) for contender in question.contenders],
        "labels": list(question.labels),
        "shares": list(question.shares),
        "seeds": list(question.seed_numbers),
        "minutes": question.minutes,
        "tasks": [task.name for task in tasks],
        "folder": str(folder_of(question, out)),
        "notes": notes,
    }
    each = [sum(task.way == way for task in tasks) for way in WAYS]
    counts = "{} linear probes, {} efficient probes, {} fine-tunings".format(*each)
    when = f"about {duration(60 * question.minutes)}; fine-tuning gets the epochs that this has room for"
    text = "\n".join(
        [
            f"{', '.join(contender.name for contender in question.contenders)} on {question.settings.data.dataset}",
            f"labels         {', '.join(f'{count:,}' for count in question.labels)}",
            f"tasks          {counts} ({number_of(question.seeds, 'seed')})",
            f"time           {when}",
            *notes,
        ]
    )
    return plan, text


def summary(result: dict[str, Any]) -> str:
    """The lines for people."""
    return "\n".join([*result["sentences"], f"page           {result['page']}",
                      f"time           {duration(result['seconds'])}"])  # fmt: skip
