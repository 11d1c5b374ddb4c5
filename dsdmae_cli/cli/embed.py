"""`dsdmae embed`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from dsdmae_cli.cli import options as o
from dsdmae_cli.cli.export import Architecture, Set, Subject

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
    Literal["mean", "cls", "max", "mean+cls"],
    typer.Option("--pool", help="Mean or largest of the patch tokens, the class token, or mean and class token side by"
                 " side", rich_help_panel=_RESULT),
]  # fmt: skip
ImageSize = Annotated[
    int | None,
    typer.Option("--image-size", metavar="N", min=1, help="Side in pixels of the images that the encoder sees. Default:"
                 " that of its training", rich_help_panel="Data", show_default=False),
]  # fmt: skip
Device = Annotated[
    str,
    typer.Option("--device", metavar="NAME", help="auto, cpu, cuda, cuda:N or mps; auto = the fastest at hand"),
]
Precision = Annotated[
    Literal["auto", "bf16", "fp16", "fp32"],
    typer.Option("--precision", help="auto = bf16 where the hardware has it, else fp16 on CUDA, else fp32"),
]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Neither look for the features in the cache nor keep them")]
Force = Annotated[bool, typer.Option("--force", help="Replace what is at --out", rich_help_panel=_RESULT)]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout", rich_help_panel=_RESULT)]


def command(
    subject: Subject,
    out: Out,
    dataset: o.Dataset = None,
    data_dir: o.DataDir = None,
    strict_data: o.StrictData = None,
    split: Split = "train",
    image_size: ImageSize = None,
    pool: Pool = "mean",
    backbone: Architecture = None,
    set_: Set = None,
    device: Device = "auto",
    precision: Precision = "auto",
    no_cache: NoCache = False,
    force: Force = False,
    json: Json = False,
    debug: o.Debug = False,
) -> None:
    """Write the features of every image of a dataset, with names and labels.

    dsdmae embed RUN --dataset folder:PATH --split all --out features.npz

    Without --dataset it embeds what the run learned from.
    """
    from dsdmae_cli.recipes.embed import Request, embed, summary
    from dsdmae_cli.report import print_result

    flags = {"data.dataset": dataset, "data.data_dir": data_dir, "data.strict": strict_data, "backbone.name": backbone}
    request = Request(subject, out, flags, set_, split, pool, image_size, device, precision, not no_cache, force, json)
    said = embed(request)
    print_result(said, as_json=json, text=summary(said))
