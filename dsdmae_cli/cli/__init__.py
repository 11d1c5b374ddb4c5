"""The command line: thin. Each command collects its flags and calls a recipe; torch is imported inside functions."""

from __future__ import annotations

from typing import Annotated

import typer

from dsdmae_cli import __version__
from dsdmae_cli.cli import (
    ablate,
    compare,
    config,
    denoise,
    embed,
    export,
    finetune,
    plugins,
    pretrain,
    probe,
    tokenizer,
)

app = typer.Typer(
    name="dsdmae",
    help="Pre-train vision backbones on your own images with DSdMAE, the denoising self-distillation masked"
    " autoencoder, and its family.",
    epilog="`dsdmae pretrain` alone learns handwritten digits in under two minutes.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"dsdmae {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


app.command("pretrain", rich_help_panel="Train")(pretrain.command)
app.command("tokenizer", rich_help_panel="Train")(tokenizer.command)
app.command("ablate", cls=ablate.SweepCommand, rich_help_panel="Train")(ablate.command)
app.command("probe", rich_help_panel="Judge")(probe.command)
app.command("finetune", rich_help_panel="Judge")(finetune.command)
app.command("compare", rich_help_panel="Judge")(compare.command)
app.command("embed", rich_help_panel="Judge")(embed.command)
app.command("export", rich_help_panel="Use")(export.command)
app.command("denoise", rich_help_panel="Use")(denoise.command)
app.add_typer(config.app, name="config", rich_help_panel="Look around")
app.add_typer(plugins.app, name="plugins", rich_help_panel="Look around")
