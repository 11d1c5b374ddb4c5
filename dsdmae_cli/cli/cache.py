"""`dsdmae cache`: what is kept so that it need not be made or fetched again."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from dsdmae_cli.cli.completion import kept as complete
from dsdmae_cli.cli.group import Command, Group
from dsdmae_cli.cli.options import Debug
from dsdmae_cli.report import tell

if TYPE_CHECKING:
    from dsdmae_cli.kept import Kept

app = typer.Typer(cls=Group, help="List what the program keeps on disk, and clear it.", add_completion=False)

_DAY = 86400.0


@app.callback(invoke_without_command=True)
def list_kept(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout")] = False,
    debug: Debug = False,
) -> None:
    """List what the program keeps on disk, and clear it.

    Nothing of it is needed but what you have put there yourself: it is made or fetched anew. Runs are elsewhere
    (`dsdmae runs`).
    """
    if context.invoked_subcommand is not None:
        return
    import time

    from dsdmae_cli.kept import folder, listed
    from dsdmae_cli.runs.listing import age, size

    found = listed()
    if as_json:
        tell(json.dumps({"folder": str(folder()), "kept": [kept.json() for kept in found]}, indent=2), as_data=True)
        return
    for kept in found:
        when = "" if kept.used is None else f", the newest {age(time.time() - kept.used)} old"
        tell(f"{kept.name:<9}  {size(kept.bytes):>7}  {_files(kept.files)}{when}")
        tell(f"{'':<9}  {'':>7}  {kept.path}")
        tell(f"{'':<9}  {'':>7}  {kept.what}" + _reach(kept))


def _reach(kept: Kept) -> str:
    if not kept.own:
        return "; shared, never cleared from here"
    return "; cleared only by name" if kept.when_named else ""


def _files(count: int) -> str:
    return f"{count} file{'' if count == 1 else 's'}"


@app.command(cls=Command)
def clear(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME", help="What to clear, as `dsdmae cache` calls it; by default all that is"
                       " made anew by itself, and so no datasets", show_default=False, autocompletion=complete),
    ] = None,
    older_than: Annotated[
        float | None,
        typer.Option("--older-than", metavar="DAYS", min=0, help="Only files written so many days ago",
                     show_default=False),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask")] = False,
    debug: Debug = False,
) -> None:  # fmt: skip
    """Delete what is kept; it asks first."""
    from dsdmae_cli.cli.runs import agreed
    from dsdmae_cli.kept import chosen
    from dsdmae_cli.kept import clear as delete
    from dsdmae_cli.runs.listing import size

    found = [kept for kept in chosen(names or []) if kept.files]
    if not found:
        tell("nothing to clear", err=True)
        return
    if not yes:
        agreed([f"{kept.name}: {_files(kept.files)}, {size(kept.bytes)}, {kept.path}" for kept in found])
    for kept in found:
        number, freed = delete(kept, (older_than or 0) * _DAY)
        tell(f"{kept.name}: deleted {_files(number)}, {size(freed)}", err=True)
