"""`dsdmae runs`: what there is, and what became of it."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dsdmae_cli.cli.completion import runs as complete
from dsdmae_cli.cli.group import Command, Group
from dsdmae_cli.cli.options import Debug
from dsdmae_cli.errors import SettingsError
from dsdmae_cli.files import typed
from dsdmae_cli.report import between_words, shown, tell

if TYPE_CHECKING:
    from dsdmae_cli.runs.listing import Found

app = typer.Typer(cls=Group, help="List runs and what became of them; show, open, compare or delete one.",
                  add_completion=False)  # fmt: skip

In = Annotated[
    Path | None,
    typer.Option("--in", metavar="DIR", help="The folder that holds the runs. Default: where runs without --out go",
                 show_default=False),
]  # fmt: skip
Named = Annotated[str, typer.Argument(metavar="RUN", help="A run's directory, or its name in the folder",
                                      show_default=False, autocompletion=complete)]  # fmt: skip
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout")]
_STYLES = {"running": "bold", "finished": "green", "stopped": "yellow", "failed": "red"}


@app.callback(invoke_without_command=True)
def list_runs(
    context: typer.Context,
    folder: In = None,
    state: Annotated[
        Literal["running", "finished", "stopped", "failed"] | None,
        typer.Option(
            "--state", metavar="STATE", help="Only running, finished, stopped or failed ones", show_default=False
        ),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List runs and what became of them; show, open, compare or delete one.

    stopped: by Ctrl-C or a signal, and saved; failed: an error or the machine ended it. `dsdmae pretrain --resume` goes
    on with the last of either.
    """
    if context.invoked_subcommand is not None:
        return
    from dsdmae_cli.runs.listing import find
    from dsdmae_cli.runs.rundir import default_folder

    folder = folder or default_folder()
    if not folder.exists() and folder != default_folder():
        raise SettingsError(f"there is no folder {folder}; give one that holds runs")
    found, complaints = find(folder)
    chosen = [run for run in found if state in (None, run.state)]
    if as_json:
        tell(json.dumps({"folder": str(folder), "runs": [run.json() for run in chosen]}, indent=2), as_data=True)
    elif chosen:
        _table(chosen)
    else:
        which = "no run" if state is None else f"no {state} run"
        tell(f"{which} in {folder}; `dsdmae pretrain` makes one", err=True)
    for complaint in complaints:
        tell(f"dsdmae: warning: {complaint}", err=True)


_TITLES = ("name", "state", "age", "command", "data", "method", "score", "cost")


def _table(found: list[Found]) -> None:
    rows = [tuple(shown(cell, one_line=True) for cell in (run.name, run.state, *_cells(run))) for run in found]
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        console = Console(markup=False, highlight=False)
        if max(map(len, _aligned([_TITLES, *rows]))) > console.width:
            # A name that is folded cannot be copied: it gets a line of its own.
            for row, below in zip(rows, _aligned([row[1:] for row in rows]), strict=True):
                console.print(row[0], style="bold", soft_wrap=True)
                style = _STYLES[row[1]] if row[1] != "finished" else None
                console.print(_between_cells(below, console.width), style=style, soft_wrap=True)
            return
        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
        for title in _TITLES:
            table.add_column(title, overflow="fold", no_wrap=title in ("state", "age", "score"),
                             justify="right" if title == "age" else "left")  # fmt: skip
        for row in rows:
            table.add_row(*row, style=_STYLES[row[1]] if row[1] != "finished" else None)
        console.print(table)
        return
    for line in _aligned([_TITLES, *rows]):
        tell(line)


def _between_cells(line: str, width: int) -> str:
    """A line of a table, indented; where it is too long for the terminal it is ended between two of its cells."""
    if len(line) + 2 <= width:
        return f"  {line}"
    lines = [""]
    for cell in re.split(" {2,}", line.strip()):
        if lines[-1] and len(lines[-1]) + len(cell) + 2 > width:
            lines.append("")
        lines[-1] += f"  {cell}"
    return "\n".join(lines)


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def _cells(run: Found) -> tuple[str, ...]:
    from dsdmae_cli.runs.listing import since

    return since(run), run.command, _data(run.dataset), _what(run), _score(run), _cost(run)


def _data(dataset: str) -> str:
    """A folder by its last part: tables have no room for paths, `show` has."""
    name, colon, path = dataset.partition(":")
    return Path(path).name or path if colon else name


def _what(run: Found) -> str:
    return f"{run.method} {run.backbone}" if run.method else run.backbone


def _score(run: Found) -> str:
    return "" if run.score is None else f"{run.score_kind} {run.score:.1%}"


def _cost(run: Found) -> str:
    from dsdmae_cli.report import duration

    if run.seconds is not None:
        return duration(run.seconds)
    return f"epoch {run.epoch or 0:.3g} of {run.epochs}" if run.epochs else ""


@app.command(cls=Command)
def show(run: Named, folder: In = None, as_json: Json = False, debug: Debug = False) -> None:
    """Say what a run is, what became of it and how to go on."""
    from dsdmae_cli.runs.listing import read, resolve, since, size, size_of
    from dsdmae_cli.runs.rundir import PAGE, called, default_folder

    found = read(resolve(run, folder or default_folder()))
    if as_json:
        tell(json.dumps({**found.json(), "bytes": size_of(found.path)}, indent=2), as_data=True)
        return
    lines = [
        ("run", str(found.path)),
        ("state", f"{found.state}, {since(found)} ago" + (f": {found.why}" if found.why else "")),
        ("command", f"dsdmae {found.command}"),
        ("data", found.dataset),
        ("method", _what(found)),
        ("begun with", found.start or ""),
        ("score", _score(found)),
        ("cost", _cost(found)),
        ("on disk", size(size_of(found.path))),
        ("page", str(found.path / PAGE) if (found.path / PAGE).is_file() else ""),
        ("figures", str(found.path / "figures") if (found.path / "figures").is_dir() else ""),
        ("go on", f"dsdmae {found.command} --resume --out {typed(found.path)}" if found.unfinished else ""),
        ("go on", "" if found.unfinished else _anew(found)),
        ("next", _next(found)),
    ]
    for title, text in lines:
        if text:
            tell(shown(f"{title:<10}  {text}", one_line=True))
    if found.closing:
        tell(between_words(found.closing.replace("RUN", called(found.path))))


def _anew(run: Found) -> str:
    """Of a probe that was killed: it has no --resume."""
    return "" if run.state in ("running", "finished") else "the same command begins it anew, in the same place too"


def _next(run: Found) -> str:
    if run.state != "finished":
        return ""
    from dsdmae_cli.runs.rundir import called

    name = called(run.path)
    return {"pretrain": f"dsdmae probe {name}", "finetune": f"dsdmae predict {name} PICTURES"}.get(run.command, "")


@app.command("open", cls=Command)
def open_page(run: Named, folder: In = None, debug: Debug = False) -> None:
    """Open the page of a run, a study or an answer of `dsdmae worth`; its path goes to stdout."""
    from dsdmae_cli.runs.killed import mend
    from dsdmae_cli.runs.listing import resolve
    from dsdmae_cli.runs.rundir import PAGE, default_folder

    folder = folder or default_folder()
    with suppress(SettingsError):  # what is no run may have a page
        mend(resolve(run, folder))
    page = next((p for p in (Path(run) / PAGE, folder / run / PAGE) if p.is_file()), None)
    if page is None:
        path = resolve(run, folder)
        figures = path / "figures"
        instead = f"; its pictures are in {figures}" if figures.is_dir() else ""
        raise SettingsError(f"{path} has no page {PAGE}{instead}; `dsdmae runs show {run}` says what it has")
    tell(page, as_data=True)
    if sys.stdout.isatty():
        import webbrowser

        if not webbrowser.open(page.resolve().as_uri()):
            tell("no browser was found here; open the file in yours", err=True)


@app.command(cls=Command)
def best(
    folder: In = None,
    kind: Annotated[
        Literal["pretrain", "probe", "finetune"],
        typer.Option("--for", metavar="COMMAND", help="Runs of which command: pretrain, probe or finetune"),
    ] = "pretrain",
    dataset: Annotated[
        str | None,
        typer.Option("--dataset", metavar="NAME|PATH", help="Only runs on this dataset", show_default=False),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Print the directory of the finished run with the best score: dsdmae probe $(dsdmae runs best)

    Scores of different datasets cannot be compared; where there are several, --dataset chooses one.
    """
    from dsdmae_cli.runs.listing import find
    from dsdmae_cli.runs.rundir import default_folder

    folder = folder or default_folder()
    found = [
        run for run in find(folder)[0] if run.state == "finished" and run.command == kind and run.score is not None
    ]
    if dataset is not None:
        found = [run for run in found if _is_data(run.dataset, dataset)]
    if not found:
        on = f" on {dataset}" if dataset is not None else ""
        raise SettingsError(
            f"no finished run of `dsdmae {kind}`{on} with a score is in {folder}; `dsdmae runs` lists all"
        )
    datasets = sorted({run.dataset for run in found})
    if len(datasets) > 1:
        raise SettingsError(
            f"scores of different datasets cannot be compared, and there are {', '.join(datasets)}; choose one by"
            " --dataset"
        )
    chosen = max(found, key=lambda run: run.score or 0)
    if as_json:
        tell(json.dumps(chosen.json(), indent=2), as_data=True)
        return
    tell(chosen.path, as_data=True)
    tell(f"{_score(chosen)}, {_what(chosen)}, the best of {len(found)} on {chosen.dataset}", err=True)


def _is_data(dataset: str, wanted: str) -> bool:
    path = dataset.partition(":")[2]
    return wanted in (dataset, path) or bool(path and Path(path).resolve() == Path(wanted).resolve())


@app.command(cls=Command)
def rm(
    named: Annotated[list[str], typer.Argument(metavar="RUN", help="Runs' directories, or their names in the folder",
                                               show_default=False, autocompletion=complete)],
    folder: In = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask")] = False,
    debug: Debug = False,
) -> None:  # fmt: skip
    """Delete runs with their weights, checkpoints and figures; it asks first."""
    from dsdmae_cli.runs.held import busy
    from dsdmae_cli.runs.listing import remove, resolve, size, size_of
    from dsdmae_cli.runs.rundir import default_folder

    paths = list(dict.fromkeys(resolve(name, folder or default_folder()) for name in named))
    for path in paths:  # all of them before any is gone
        if busy(path):
            raise SettingsError(f"{path} is running; stop it first (Ctrl-C saves it)")
    if not yes:
        agreed([f"{path}  {size(size_of(path))}" for path in paths])
    for path in paths:
        remove(path)
        tell(f"deleted {path}", err=True)


def agreed(lines: list[str]) -> None:
    """Ask before something is deleted.

    Raises:
        SettingsError: nobody can be asked.
    """
    if not sys.stdin.isatty():
        raise SettingsError("it would ask before it deletes, and nobody is there to answer; say --yes")
    for line in lines:
        tell(line, err=True)
    typer.confirm(f"delete {'it' if len(lines) == 1 else 'them'} for good?", abort=True, err=True)
