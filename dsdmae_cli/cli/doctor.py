"""`dsdmae doctor`: what there is, what is missing, and what to do about it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from dsdmae_cli.cli.options import Debug
from dsdmae_cli.report import folded, tell

if TYPE_CHECKING:
    from dsdmae_cli.doctor import Check

_NAME = 18  # columns for the longest name: "extra tensorboard"
_STYLES = {"ok": "green", "note": "cyan", "warning": "yellow", "wrong": "bold red"}


def command(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout")] = False,
    debug: Debug = False,
) -> None:
    """Look at the installation and the machine, and say what to do about what is missing.

    Exit code 0: nothing must be mended (notes and warnings are advice); 1: something is wrong.
    """
    from dsdmae_cli.doctor import checks, summary

    found = []
    for check in checks():
        found.append(check)
        if not as_json:
            _print(check)
    counts = {state: sum(check.state == state for check in found) for state in _STYLES}
    if as_json:
        tell(json.dumps(summary(found), indent=2), as_data=True)
    else:
        said = [f"{counts[state]} {word}" for state, word in
                (("wrong", "wrong"), ("warning", "to look at"), ("note", "to know")) if counts[state]]  # fmt: skip
        tell(", ".join(said) or "all is well")
    if counts["wrong"]:
        raise typer.Exit(1)


def _print(check: Check) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    begins = f"{check.state:<9}{check.name:<{_NAME}}  "
    found = (
        folded(f"{begins}{check.found}", console.width, len(begins)) if console.is_terminal else begins + check.found
    )
    lines = [Text.assemble((found[:7], _STYLES[check.state]), found[7:])]
    if check.todo:
        todo = " " * len(begins) + check.todo
        lines.append(Text(folded(todo, console.width, len(begins)) if console.is_terminal else todo))
    for line in lines:
        # A path or a command that is broken by a line's end cannot be copied.
        console.print(line, soft_wrap=True)
