"""`dsdmae plugins`: list what is installed, and make a package for a new plugin.

How plugins are found is in dsdmae_cli.plugins; what a new package holds is in dsdmae_cli.scaffold.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dsdmae_cli.cli.group import Command, Group
from dsdmae_cli.cli.options import Debug
from dsdmae_cli.errors import SettingsError, nearest
from dsdmae_cli.report import number_of, tell

if TYPE_CHECKING:
    from dsdmae_cli.plugins import BrokenPlugin, Plugin

app = typer.Typer(cls=Group, help="List the installed plugins, or make a package for a new one.", add_completion=False)

_HEADER = ("name", "kind", "distribution", "version", "summary")
Row = tuple[str, str, str, str, str]


@app.callback(invoke_without_command=True)
def list_plugins(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table")] = False,
    debug: Debug = False,
) -> None:
    """List the installed backbones, datasets, methods, probes and trackers, and the packages that bring them."""
    if context.invoked_subcommand is not None:
        return
    from dsdmae_cli.plugins import KINDS, BrokenPlugin, discover

    found = list(chain.from_iterable(discover(kind) for kind in KINDS))
    _print_json(found) if as_json else _print_table([_row(plugin) for plugin in found])
    for plugin in found:
        if isinstance(plugin, BrokenPlugin):
            source = f"{plugin.kind} {plugin.name!r} of {plugin.distribution} {plugin.version}"
            tell(f"dsdmae: warning: {source} is broken: {plugin.reason}", err=True)


def _kinds(incomplete: str) -> list[str]:
    from dsdmae_cli.plugins import KINDS

    return [kind for kind in KINDS if kind.startswith(incomplete)]


@app.command("new", cls=Command)
def new(
    kind: Annotated[
        str,
        typer.Argument(
            metavar="KIND",
            help="What to make: a backbone, dataset, method, probe or tracker",
            show_default=False,
            autocompletion=_kinds,
        ),
    ],
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Its name: lower-case letters, digits and hyphens", show_default=False)
    ],
    into: Annotated[Path, typer.Option(metavar="DIR", help="Folder that receives dsdmae-NAME/")] = Path(),
    debug: Debug = False,
) -> None:
    """Write the package dsdmae-NAME: a small plugin that works, to be installed, tested and changed."""
    from dsdmae_cli import scaffold
    from dsdmae_cli.doctor.program import install_beside
    from dsdmae_cli.plugins import KINDS

    known = next((known for known in KINDS if known == kind), None)
    if known is None:
        there = ", ".join(map(repr, KINDS))
        raise SettingsError(f"dsdmae plugins new {kind!r}{nearest(kind, list(KINDS))}: the kind is one of {there}")
    folder, *written = scaffold.create(known, name, into)
    tell(folder, as_data=True)
    then = f"{install_beside(folder)} && {Path(sys.executable).with_name('pytest')} {folder} && dsdmae plugins"
    tell(f"wrote {number_of(len(written), 'file')}; next: {then}", err=True)


def _print_json(found: Iterable[Plugin[Any] | BrokenPlugin]) -> None:
    from dsdmae_cli.plugins import BrokenPlugin

    listing: dict[str, list[dict[str, Any]]] = {"plugins": [], "broken": []}
    for plugin in found:
        entry = {
            "name": plugin.name,
            "kind": plugin.kind,
            "distribution": plugin.distribution,
            "version": plugin.version,
        }
        if isinstance(plugin, BrokenPlugin):
            listing["broken"].append({**entry, "reason": plugin.reason})
        else:
            spec = plugin.spec
            listing["plugins"].append({**entry, "argument": spec.argument, "summary": spec.summary})
    tell(json.dumps(listing, indent=2), as_data=True)


def _row(plugin: Plugin[Any] | BrokenPlugin) -> Row:
    from dsdmae_cli.plugins import BrokenPlugin

    if isinstance(plugin, BrokenPlugin):
        name, summary = plugin.name, f"broken: {plugin.reason}"
    else:
        argument = plugin.spec.argument
        name, summary = f"{plugin.name}:{argument}" if argument else plugin.name, plugin.spec.summary
    return name, plugin.kind, plugin.distribution, plugin.version, summary


def _print_table(rows: list[Row]) -> None:
    if sys.stdout.isatty():
        _print_rich(rows)
    else:
        _print_plain(rows)


def _print_rich(rows: list[Row]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in _HEADER:
        table.add_column(title, overflow="fold", no_wrap=title in ("name", "kind", "version"))
    for row in rows:
        table.add_row(*row, style="red" if row[-1].startswith("broken: ") else None)
    # A summary in [brackets] is text, not markup.
    Console(markup=False, highlight=False).print(table)


def _print_plain(rows: list[Row]) -> None:
    lines = [_HEADER, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEADER))]
    for line in lines:
        tell("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
