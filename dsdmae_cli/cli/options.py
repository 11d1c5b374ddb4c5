"""Flags that commands share. Their help is made from the settings they stand for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dsdmae_cli.config.compose import compose, load
from dsdmae_cli.config.describe import help_text
from dsdmae_cli.config.flags import FLAGS
from dsdmae_cli.config.schema import FINETUNE, PRETRAIN, PROBE, Loaded, Schema, section_class
from dsdmae_cli.errors import PluginError, SettingsError
from dsdmae_cli.settings.models import Settings

_SOURCES, _DATA, _METHOD, _TRAINING, _RUN = "Where settings come from", "Data", "Method", "Training", "Run"
_PROBE = "Probe"


def _help(dotted: str, schema: Schema[Any] = PRETRAIN) -> str:
    section, _, key = dotted.partition(".")
    try:
        # What the flag of a method means is written in that method's settings; DSdMAE's stand for all.
        return help_text(section_class(section, {}, schema=schema), key)
    except (PluginError, StopIteration):
        # Help must work beside a broken installation; the command itself will say what is wrong.
        return f"The setting {dotted}"


def _setting(flag: str, metavar: str | None, panel: str, schema: Schema[Any] = PRETRAIN) -> Any:
    text = _help(schema.flags[flag], schema)
    return typer.Option(flag, metavar=metavar, help=text, rich_help_panel=panel, show_default=False)


Text = str | None

Preset = Annotated[
    Text,
    typer.Option("--preset", metavar="NAME", help="Packaged settings; `dsdmae config presets` lists them. Default"
                 " quick, where no dataset is named", rich_help_panel=_SOURCES, show_default=False),
]  # fmt: skip
Config = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE.toml", help="Your settings, as `dsdmae config show` prints them",
                 rich_help_panel=_SOURCES, show_default=False),
]  # fmt: skip
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Any setting, repeatable; `dsdmae config describe` lists"
                 " them", rich_help_panel=_SOURCES, show_default=False),
]  # fmt: skip

Dataset = Annotated[Text, _setting("--dataset", "NAME", _DATA)]
DataDir = Annotated[Text, _setting("--data-dir", "DIR", _DATA)]
StrictData = Annotated[
    bool | None,
    typer.Option("--strict-data", help=_help(FLAGS["--strict-data"]), rich_help_panel=_DATA, show_default=False),
]
Method = Annotated[Text, _setting("--method", "NAME", _METHOD)]
Backbone = Annotated[Text, _setting("--backbone", "NAME", _METHOD)]
MaskRatio = Annotated[Text, _setting("--mask-ratio", "R[,R]", _METHOD)]
NoiseStd = Annotated[Text, _setting("--noise-std", "SIGMA[,SIGMA]", _METHOD)]
Lambda = Annotated[Text, _setting("--lambda", "X", _METHOD)]
Epochs = Annotated[Text, _setting("--epochs", "N", _TRAINING)]
BatchSize = Annotated[Text, _setting("--batch-size", "N", _TRAINING)]
Lr = Annotated[Text, _setting("--lr", "X", _TRAINING)]
Seed = Annotated[Text, _setting("--seed", "N", _TRAINING)]
Device = Annotated[Text, _setting("--device", "NAME", _TRAINING)]
Precision = Annotated[Text, _setting("--precision", "NAME", _TRAINING)]
Compile = Annotated[
    bool | None,
    typer.Option("--compile/--no-compile", help=_help(FLAGS["--compile/--no-compile"]), rich_help_panel=_TRAINING,
                 show_default=False),
]  # fmt: skip

FinetuneEpochs = Annotated[Text, _setting("--epochs", "N", _TRAINING, FINETUNE)]
FinetuneBatchSize = Annotated[Text, _setting("--batch-size", "N", _TRAINING, FINETUNE)]
LayerDecay = Annotated[Text, _setting("--layer-decay", "X", _TRAINING, FINETUNE)]
Validation = Annotated[Text, _setting("--validation", "SHARE", _DATA, FINETUNE)]
FinetunePool = Annotated[Text, _setting("--pool", "NAME", _METHOD, FINETUNE)]

Kind = Annotated[Text, _setting("--kind", "NAME", _PROBE, PROBE)]
ProbePool = Annotated[Text, _setting("--pool", "NAME", _PROBE, PROBE)]
FewShot = Annotated[Text, _setting("--few-shot", "SHARE[,SHARE...]", _PROBE, PROBE)]
ProbeEpochs = Annotated[Text, _setting("--epochs", "N", _PROBE, PROBE)]
ProbeBatchSize = Annotated[Text, _setting("--batch-size", "N", _PROBE, PROBE)]

Subject = Annotated[
    Text,
    typer.Argument(metavar="RUN|ENCODER|timm:NAME|scratch", help="What to start from: a run's directory, an encoder's"
                   " .safetensors file, timm's published weights, or random ones", show_default=False),
]  # fmt: skip

Like = Annotated[
    Text,
    typer.Option("--like", metavar="RUN", help="For scratch and pixels: whose data and backbone to take",
                 rich_help_panel=_SOURCES, show_default=False),
]  # fmt: skip
FinetunePreset = Annotated[
    Text,
    typer.Option("--preset", metavar="NAME", help="Packaged recipe: paper or strong, and both with -stl or -imagenet."
                 " Default paper", rich_help_panel=_SOURCES, show_default=False),
]  # fmt: skip

Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="The run's directory, new or empty. Default: one of its own under the"
                 " user's data directory", rich_help_panel=_RUN, show_default=False),
]  # fmt: skip
Resume = Annotated[
    bool,
    typer.Option("--resume", help="Go on with the run in --out, by its own settings", rich_help_panel=_RUN),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print what the run would be, write nothing", rich_help_panel=_RUN)
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, no progress", rich_help_panel=_RUN)]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error", rich_help_panel=_RUN)]


def load_settings(
    preset: str | None,
    config: Path | None,
    assignments: list[str] | None,
    flags: dict[str, Any],
    base: Settings | None = None,
) -> Loaded[Settings]:
    """Pre-training settings from a command's flags; `flags` maps parameter names (mask_ratio) to what was given."""
    dotted = by_setting(PRETRAIN, flags)
    return load(preset=preset, config=config, flags=dotted, assignments=assignments, base=base)


def load_judging(
    schema: Schema[Any],
    section: str,
    start: str | None,
    like: str | None,
    preset: str | None,
    config: Path | None,
    assignments: list[str] | None,
    flags: dict[str, Any],
    resume: Path | None,
) -> Loaded[Any]:
    """Settings of a command that judges `start`, on the data and with the backbone that it was made with.

    Args:
        section: that holds what is judged, as `start`.
        like: whose data and backbone to take for scratch.
        resume: the run to go on with; its settings then stand below all others.
    """
    dotted = by_setting(schema, flags)
    if resume is not None:
        from dsdmae_cli.config.describe import tables
        from dsdmae_cli.runs.rundir import RunDir

        before = tables(RunDir(resume).settings().settings)
        if section not in before:
            raise SettingsError(
                f"{resume} holds no run of `dsdmae {section}`; resume it with the command that began it"
            )
        given = [f"{section}.start={start}"] if start is not None else []
        return compose(
            schema, preset=preset, config=config, flags=dotted, assignments=[*given, *(assignments or [])],
            base=(before, "the run"), use_default_preset=False,
        )  # fmt: skip
    from dsdmae_cli.artifacts.subject import taken_over

    if start is None:
        raise SettingsError(
            "say what to judge: a run's directory, an encoder's .safetensors file, timm:NAME, or scratch"
        )
    if like is not None and start not in ("scratch", "pixels"):
        raise SettingsError(f"--like is for scratch and pixels, which have no data of their own; {start} has")
    values, origin = taken_over(start, like)
    values = {**values, section: {"start": start}}
    return compose(schema, preset=preset, config=config, flags=dotted, assignments=assignments, base=(values, origin))


def by_setting(schema: Schema[Any], flags: dict[str, Any]) -> dict[str, Any]:
    """What flags set: {"train.epochs": ...} of {"epochs": ...}."""
    return {dotted: flags[name] for flag, dotted in schema.flags.items() if (name := _parameter(flag)) in flags}


def _parameter(flag: str) -> str:
    name = flag.split("/")[0].removeprefix("--").replace("-", "_")
    return "lambda_" if name == "lambda" else name
