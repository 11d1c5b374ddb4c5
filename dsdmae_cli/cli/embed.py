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
    Path,
    typer.Option("--out", metavar="FILE", help="The .npz or .parquet file to write (Parquet needs dsdmae\\[parquet])",
                 rich_help_panel=_RESULT, show_default=False),
]  # fmt: skip
Split = Annotated[
    Literal["train", "test", "labelled", "all"],
    typer.Option("--split", help="Which images; all = train, then test; labelled = the training images with labels,"
                 " where those are others", rich_help_panel="Data"),
]  # fmt: skip
Pool = Annotated[
    Literal["mean", "cls", "max", "mean+cls", "tokens"],
    typer.Option("--pool", help="Mean or largest of the patch tokens, the class token, mean and class token side by"
                 " side, or all patch tokens as they lie (n, rows, columns, features)", rich_help_panel=_RESULT),
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
    out: Out,
    split: Split = "train",
    image_size: ImageSize = None,
    pool: Pool = "mean",
    attention: Attention = False,
    thumbnails: Thumbnails = False,
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

    from dsdmae_cli.recipes.embed import Request, embed, summary
    from dsdmae_cli.report import print_result
    from dsdmae_cli.settings.size import size_flag

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
    )
    said = embed(request, out, force=force, as_json=as_json)
    print_result(said, as_json=as_json, text=summary(said))
