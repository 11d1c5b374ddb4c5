"""`dsdmae compare`."""

from __future__ import annotations

import json as json_module
import sys
from pathlib import Path
from typing import Annotated

import typer

from dsdmae_cli.cli import completion
from dsdmae_cli.cli.options import Debug
from dsdmae_cli.errors import SettingsError
from dsdmae_cli.report import shown, tell

_FORM = "Form"

Runs = Annotated[
    list[Path] | None,
    typer.Argument(metavar="RUN", help="Directories of finished runs of pretrain, probe or finetune, or their"
                   " result.json files", show_default=False, autocompletion=completion.runs),
]  # fmt: skip
Paper = Annotated[
    str | None,
    typer.Option("--paper", metavar="DATASET|none", help="Show the paper's rows for cifar10, cifar100 or stl10,"
                 " whatever yours is called. Default: those of your own dataset, where the paper has it",
                 show_default=False),
]  # fmt: skip
Markdown = Annotated[bool, typer.Option("--markdown", help="A Markdown table", rich_help_panel=_FORM)]
Csv = Annotated[bool, typer.Option("--csv", help="All fields as CSV", rich_help_panel=_FORM)]
Json = Annotated[bool, typer.Option("--json", help="One JSON object", rich_help_panel=_FORM)]


def command(
    runs: Runs = None,
    paper: Paper = None,
    markdown: Markdown = False,
    csv: Csv = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Lay results side by side, with the paper's own beside them.

    dsdmae compare RUN PROBE FINETUNE --markdown

    Below the table it says which results the intervals do not tell apart.
    """
    if markdown + csv + json > 1:
        raise SettingsError("--markdown, --csv and --json exclude each other; give one of them")
    from dsdmae_cli.recipes import compare

    found = compare.compare(runs or [], paper)
    if json:
        tell(json_module.dumps(found.json(), indent=2), as_data=True)
    elif csv:
        tell(compare.as_csv(found), as_data=True)
    elif markdown:
        tell(compare.markdown(found), as_data=True)
    else:
        _print(compare.cells(found), compare.footnotes(found), [row.of_paper for row in found.rows])


def _print(cells: list[list[str]], footnotes: list[str], of_paper: list[bool]) -> None:
    cells = [[shown(cell, one_line=True) for cell in line] for line in cells]
    if sys.stdout.isatty():
        _print_rich(cells, of_paper)
    else:
        widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
        for line in cells:
            tell("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    for remark in footnotes:
        tell(shown(remark))


def _print_rich(cells: list[list[str]], of_paper: list[bool]) -> None:
    from rich.console import Console
    from rich.table import Table

    # A name in [brackets] is text, not markup.
    console = Console(markup=False, highlight=False)
    cells, left_out = _narrowed(cells, console.width)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in cells[0]:
        table.add_column(_two_lines(heading), overflow="fold")
    for line, theirs in zip(cells[1:], of_paper, strict=True):
        table.add_row(*line, style="dim" if theirs else None)
    console.print(table)
    if left_out:
        console.print(f"left out for want of width: {', '.join(left_out)} (--markdown has them)", style="dim")


def _two_lines(heading: str) -> str:
    return heading.replace("pre-training ", "pre-training\n")


def _narrowed(cells: list[list[str]], width: int) -> tuple[list[list[str]], list[str]]:
    """The columns that fit a terminal, and the headings of those left out."""
    left_out: list[str] = []
    for heading in ("time", "top-5", "FLOP", "epochs", "pre-training FLOP", "backbone", "pre-training epochs"):
        columns = zip(*cells, strict=True)
        widths = (max(len(part) for cell in column for part in _two_lines(cell).split("\n")) for column in columns)
        if sum(widths) + 2 * len(cells[0]) <= width:
            break
        if heading in cells[0]:
            index = cells[0].index(heading)
            cells = [[*line[:index], *line[index + 1 :]] for line in cells]
            left_out.append(heading)
    return cells, left_out
