"""`dsdmae worth`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer

from dsdmae_cli.cli import completion
from dsdmae_cli.cli.options import takes
from dsdmae_cli.config.given import Given
from dsdmae_cli.errors import SettingsError

_QUESTION = "Question"


def _option(*words: str, **more: Any) -> Any:
    return typer.Option(*words, rich_help_panel=_QUESTION, **more)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The flags of a question."""

    beside: Annotated[
        list[str] | None,
        _option("--beside", metavar="RUN|ENCODER|NAME:ARG", autocompletion=completion.runs, show_default=False,
                help="Another network to lay beside it, repeatable: another run, or published weights"),
    ] = None  # fmt: skip
    shares: Annotated[
        str,
        _option(
            "--shares",
            metavar="1,5,10,100%",
            help="Shares of each class's training labels; all of them are always judged with",
        ),
    ] = "1,5,10,100%"
    seeds: Annotated[int, _option("--seeds", metavar="N", min=1, help="Repetitions, each with other labels")] = 3
    budget: Annotated[
        float, _option("--budget", metavar="MINUTES", min=0.1, help="How long all of it may take, about")
    ] = 60


@takes("worth")
def command(given: Given, asked: Asked) -> None:
    """Say whether pre-training pays: a run against the same network without it, with few labels and with all.

    dsdmae worth RUN                           on the run's own dataset, an hour
    dsdmae worth RUN --dataset folder:LABELLED --budget 20
    dsdmae worth RUN --beside timm:vit_tiny_patch16_224.augreg_in21k

    Linear probe, efficient probe and short fine-tuning, three seeds, in processes of their own; the page report.html
    begins with the answer. No test image has a say in any choice. The same command goes on where it was stopped.
    """
    from dsdmae_cli.config.schema import WORTH
    from dsdmae_cli.recipes.gather import judging

    loaded = judging(given, WORTH, "finetune")

    from dsdmae_cli.files import SAME, not_resumable
    from dsdmae_cli.recipes.worth import ask, worth
    from dsdmae_cli.report import print_result
    from dsdmae_cli.worth.record import plan_text, summary

    question, notes = ask(
        loaded, beside=tuple(asked.beside or ()), shares=_shares(asked.shares), seeds=asked.seeds, minutes=asked.budget
    )
    if given.dry_run:
        plan, text = plan_text(question, notes, given.out)
        print_result(plan, as_json=given.json, text=text)
        return
    with not_resumable(SAME):
        result = worth(question, notes, out=given.out, as_json=given.json)
    print_result(result, as_json=given.json, text=summary(result))


def _shares(text: str) -> tuple[float, ...]:
    """ "1,5,10,100%" or "0.01,0.05,0.1,1" for (0.01, 0.05, 0.1, 1)."""
    scale = 100 if text.endswith("%") else 1
    try:
        found = tuple(float(part) / scale for part in text.removesuffix("%").split(","))
    except ValueError:
        found = ()
    if not found or not all(0 < share <= 1 for share in found):
        raise SettingsError(f"--shares {text}: give shares of the labels above 0 and up to all, as 1,5,10,100%")
    return found
