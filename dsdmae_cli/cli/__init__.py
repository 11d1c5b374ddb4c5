"""The command line: thin. Each command collects its flags and calls a recipe; torch is imported inside functions."""

from __future__ import annotations

from typing import Annotated

import typer

from dsdmae_cli import __version__
from dsdmae_cli.cli import config, plugins, pretrain

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
app.add_typer(config.app, name="config", rich_help_panel="Look around")
app.add_typer(plugins.app, name="plugins", rich_help_panel="Look around")
