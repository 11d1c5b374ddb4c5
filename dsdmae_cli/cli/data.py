"""`dsdmae data`: images made ready for fast training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from dsdmae_cli.cli import completion
from dsdmae_cli.cli.group import Command, Group
from dsdmae_cli.cli.options import Debug
from dsdmae_cli.errors import SettingsError
from dsdmae_cli.report import number_of, tell

_HELP = "Make images ready for fast training, and check that they still are what they were."
app = typer.Typer(cls=Group, help=_HELP, add_completion=False, no_args_is_help=True)

_DATA = "Data"
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, no progress")]


@app.callback()
def data(debug: Debug = False) -> None:
    """Make images ready for fast training, and check that they still are what they were."""


@app.command(cls=Command)
def pack(
    images: Annotated[
        str,
        typer.Argument(metavar="PATH|NAME", show_default=False, autocompletion=completion.datasets,
                       help="The images, as --dataset takes them: a folder, an archive, shards, or a dataset's name"),
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", show_default=False, help="The folder to write, new or empty")
    ],
    size: Annotated[
        int, typer.Option("--size", metavar="N", min=16, max=8192, help="The shorter side of an image in pixels;"
                          " smaller images stay as they are")
    ] = 256,
    kind: Annotated[
        Literal["jpeg", "array"],
        typer.Option("--format", help="jpeg, or array = the pixels themselves: less work in training, some"
                     " eight times the space"),
    ] = "jpeg",
    quality: Annotated[int, typer.Option("--quality", metavar="N", min=1, max=100, help="Of JPEG")] = 90,
    labels: Annotated[
        str | None,
        typer.Option("--labels", metavar="FILE.csv", show_default=False, rich_help_panel=_DATA,
                     help="Labels of your own images: a file name and a label a row, in place of class folders"),
    ] = None,
    splits: Annotated[
        str | None,
        typer.Option("--splits", metavar="TRAIN,TEST|none", show_default=False, rich_help_panel=_DATA,
                     help="The folders of your own images to learn from and to test on, where their names do not say"),
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="data.KEY=VALUE", show_default=False, rich_help_panel=_DATA,
                     autocompletion=completion.assignments, help="A setting of \\[data], repeatable"),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:  # fmt: skip
    """Write a dataset into shards of images that are small enough to be decoded quickly.

    dsdmae data pack PATH --out DIR, and then dsdmae pretrain DIR

    Splits, labels, names and what was found of the images go with it. Interrupted, the same command goes on. Pictures
    of more than 8 bits, or of other bands than RGB, are kept as the files they are.
    """
    from dsdmae_cli.config.use import given

    flags = {"data.dataset": images, "data.labels": labels, "data.splits": splits}
    settings, _ = given({name: value for name, value in flags.items() if value is not None}, assignments)
    assert settings is not None, "a dataset is named"

    from dsdmae_cli.data.pack import Options
    from dsdmae_cli.data.pack_dataset import pack_dataset
    from dsdmae_cli.report import print_result

    said = pack_dataset(settings, out, Options(size, kind, quality), quiet=as_json)
    print_result(said, as_json=as_json, text=f"packed {number_of(said['images'], 'image')} into {out}")


@app.command(cls=Command)
def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", show_default=False, help="A packed folder")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Read every shard of a packed folder and hold it to its checksum."""
    from dsdmae_cli.data.packed import verify as check

    if not folder.is_dir():
        raise SettingsError(f"there is no folder {folder}; give one that `dsdmae data pack` made")
    shards, size = check(folder.expanduser().absolute())
    if as_json:
        tell(json.dumps({"folder": str(folder), "shards": shards, "bytes": size}, indent=2), as_data=True)
        return
    tell(f"{folder}: {number_of(shards, 'shard')}, {size / 2**20:,.1f} MiB, all as they were packed")
