"""`dsdmae embed`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from dsdmae_cli.cli.export import Subject
from dsdmae_cli.cli.options import takes
from dsdmae_cli.config.given import Given

_RESULT = "Result"

Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="FILE", help="The .npz or .parquet file to write (Parquet needs dsdmae\\[parquet]);"
                 " needed but with --picture", rich_help_panel=_RESULT, show_default=False),
]  # fmt: skip
Picture = Annotated[
    Path | None,
    typer.Option("--picture", metavar="FILE.png", help="With --pool tokens: draw what patches of 8 images know, the"
                 " principal components of all patches as colours", rich_help_panel=_RESULT, show_default=False),
]  # fmt: skip
Point = Annotated[
    str | None,
    typer.Option("--point", metavar="PICTURE:X,Y", help="With --picture: the patches of all images nearest to the one"
                 " at this pixel of a picture", rich_help_panel=_RESULT, show_default=False),
]  # fmt: skip
Split = Annotated[
    Literal["train", "test", "labelled", "all"],
    typer.Option("--split", metavar="NAME", help="Which images: train, test, all (train, then test) or labelled (the"
                 " training images with labels, where those are others)", rich_help_panel="Data"),
]  # fmt: skip
Pool = Annotated[
    Literal["mean", "cls", "max", "mean+cls", "tokens"],
    typer.Option("--pool", metavar="NAME", help="mean or max of the patch tokens, cls (the class token), mean+cls"
                 " (both, side by side), or tokens (all patch tokens as they lie: n, rows, columns, features)",
                 rich_help_panel=_RESULT),
]  # fmt: skip
ImageSize = Annotated[
    str | None,
    typer.Option("--image-size", metavar="N|H,W", help="Images that the encoder sees, in pixels: the side of"
                 " a square or HEIGHT,WIDTH. Default: that of its training", rich_help_panel="Data",
                 show_default=False),
]  # fmt: skip
NoCache = Annotated[bool, typer.Option("--no-cache", help="Neither look for the features in the cache nor keep them")]
Attention = Annotated[
    bool,
    typer.Option("--attention", help="Where a plain ViT looks, too: the last block's attention to each patch, by head,"
                 " as an array and, of 8 images, as FILE.attention.png", rich_help_panel=_RESULT),
]  # fmt: skip
Thumbnails = Annotated[
    bool,
    typer.Option("--thumbnails", help="Small pictures as a column of the Parquet file, for viewers such as Embedding"
                 " Atlas", rich_help_panel=_RESULT),
]  # fmt: skip
Force = Annotated[bool, typer.Option("--force", help="Replace what is at --out", rich_help_panel=_RESULT)]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout", rich_help_panel=_RESULT)]


@takes("embed")
def command(
    *,
    subject: Subject,
    out: Out = None,
    split: Split = "train",
    image_size: ImageSize = None,
    pool: Pool = "mean",
    attention: Attention = False,
    thumbnails: Thumbnails = False,
    picture: Picture = None,
    point: Point = None,
    no_cache: NoCache = False,
    force: Force = False,
    as_json: Json = False,
    given: Given,
) -> None:
    """Write the features of every image of a dataset, with names and labels.

    dsdmae embed RUN --dataset folder:PATH --split all --out features.npz

    Without --dataset it embeds what the run learned from.
    """
    from dsdmae_cli.config.use import hardware

    where = hardware(given.flags)

    from dsdmae_cli.artifacts.patch_picture import wanted
    from dsdmae_cli.artifacts.subject import parse
    from dsdmae_cli.errors import SettingsError
    from dsdmae_cli.recipes.embed import Request, embed, summary
    from dsdmae_cli.report import print_result
    from dsdmae_cli.settings.size import size_flag

    parse(subject)
    if out is None and picture is None:
        raise SettingsError("nothing to write: name a file with --out FILE.npz, or a picture with --picture FILE.png")
    if out is None and (attention or thumbnails):
        raise SettingsError("--attention and --thumbnails are written with the features; add --out FILE")
    request = Request(
        subject,
        given.flags,
        given.assignments,
        split,
        pool,
        size_flag(image_size),
        where.device,
        where.precision,
        not no_cache,
        attention,
        thumbnails,
        wanted(picture, point, pool, force),
    )
    said = embed(request, out, force=force, as_json=as_json)
    print_result(said, as_json=as_json, text=summary(said))
