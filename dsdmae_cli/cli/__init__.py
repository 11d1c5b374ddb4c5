"""The command line: thin. A command collects its flags and calls a recipe; torch is imported inside functions.

A command's module is imported when that command is asked for, so that neither `dsdmae --help` nor another command waits
for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from dsdmae_cli import __version__
from dsdmae_cli.cli.group import Command, Group
from dsdmae_cli.report import tell

_TRAIN, _JUDGE, _USE, _LOOK = "Train", "Judge", "Use", "Look around"


@dataclass(frozen=True)
class Entry:
    """A command as `dsdmae --help` lists it; its module is called after it, and its help begins with the same line."""

    name: str
    panel: str
    summary: str


COMMANDS = (
    Entry("pretrain", _TRAIN, "Pre-train a backbone on images, without labels."),
    Entry("tokenizer", _TRAIN, "Train a tokenizer: the visual words that BEiT and CAE learn to predict."),
    Entry("ablate", _TRAIN, "Run an ablation: pre-train once for each value of a setting, and report which is best."),
    Entry("probe", _JUDGE, "Judge a frozen backbone: linear, k-NN, logistic, attentive or efficient probe."),
    Entry("finetune", _JUDGE, "Train a whole network on labels, from a pre-trained encoder or from scratch, and judge"
          " it on the test images."),
    Entry("worth", _JUDGE, "Say whether pre-training pays: a run against the same network without it, with few labels"
          " and with all."),
    Entry("compare", _JUDGE, "Lay results side by side, with the paper's own beside them."),
    Entry("embed", _JUDGE, "Write the features of every image of a dataset, with names and labels."),
    Entry("export", _USE, "Write an encoder in the form that other programs read."),
    Entry("predict", _USE, "Say what is on pictures, by a fine-tuned network: classes and probabilities as CSV or"
          " JSON."),
    Entry("denoise", _USE, "Take the noise out of pictures."),
    Entry("restore", _USE, "Show what a run has learned to restore: pictures masked or made noisy, and given back."),
    Entry("data", _USE, "Make images ready for fast training, and check that they still are what they were."),
    Entry("doctor", _LOOK, "Look at the installation and the machine, and say what to do about what is missing."),
    Entry("bench", _LOOK, "Measure how fast the program is here: a training step, decoding, the denoiser, starting; a"
          " GPU in one go."),
    Entry("runs", _LOOK, "List runs and what became of them; show, open, compare or delete one."),
    Entry("cache", _LOOK, "List what the program keeps on disk, and clear it."),
    Entry("config", _LOOK, "Show, check and explain settings."),
    Entry("plugins", _LOOK, "List the installed plugins, or make a package for a new one."),
)  # fmt: skip


class Commands(Group):
    """The commands by name and summary; one that is called is loaded."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for entry in COMMANDS:
            self.add_command(
                TyperCommand(entry.name, callback=None, help=entry.summary, rich_help_panel=entry.panel), entry.name
            )

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        return name, load(name) if name else command, rest


def load(name: str) -> Any:
    """A command as Typer makes it of its module: a group where that has an `app`."""
    module = import_module(f"{__name__}.{name}")
    own = getattr(module, "app", None)
    if own is None:
        own = typer.Typer(add_completion=False, rich_markup_mode="rich")
        own.command(name, cls=getattr(module, "COMMAND_CLASS", Command))(module.command)
    command = typer.main.get_command(own)
    command.name = name
    return command


app = typer.Typer(
    name="dsdmae",
    cls=Commands,
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
        tell(f"dsdmae {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass
