"""`dsdmae config`: look at settings without running anything."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated

import typer

from dsdmae_cli.cli import options as o
from dsdmae_cli.errors import SettingsError, nearest
from dsdmae_cli.settings.describe import key_of, reference, tables, to_toml
from dsdmae_cli.settings.load import SECTIONS, load, preset_names, resolve, section_class

app = typer.Typer(help="Show, check and explain settings.", no_args_is_help=True)


@app.command()
def show(
    preset: o.Preset = None,
    config: o.Config = None,
    set_: o.Set = None,
    sources: Annotated[bool, typer.Option("--sources", help="Say where each value came from")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object instead of TOML")] = False,
    debug: o.Debug = False,
) -> None:
    """Print the resolved settings as TOML; the output is a valid --config file."""
    loaded = load(preset=preset, config=config, assignments=set_)
    before, after = tables(loaded.settings), tables(resolve(loaded.settings))
    origin = {
        dotted: f"{source} (auto)" if before[s][k] != after[s][k] else source
        for dotted, source in loaded.sources.items()
        for s, _, k in [dotted.partition(".")]
    }
    if json:
        typer.echo(json_module.dumps({"settings": after, **({"sources": origin} if sources else {})}, indent=2))
    else:
        typer.echo(to_toml(after, origin if sources else None).rstrip())


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="A TOML file of settings")],
    debug: o.Debug = False,
) -> None:
    """Say whether a file's settings are valid; exit code 2 and one line if not."""
    resolve(load(config=file, environ={}).settings)
    typer.echo(f"{file} is valid")


@app.command()
def presets(debug: o.Debug = False) -> None:
    """List the packaged presets."""
    for name in preset_names():
        settings = load(preset=name, environ={}).settings
        train = settings.train
        typer.echo(
            f"{name:<20} {settings.method.name} with {settings.backbone.name} on {settings.data.dataset},"
            f" batch {train.batch_size}, {train.epochs} epochs"
        )


@app.command()
def describe(
    section: Annotated[str | None, typer.Argument(help=f"One of {', '.join(SECTIONS)}; all of them by default")] = None,
    debug: o.Debug = False,
) -> None:
    """Explain every setting of every installed plugin, as Markdown."""
    from dsdmae_cli import plugins

    if section is not None and section not in SECTIONS:
        raise SettingsError(
            f"there is no section {section!r}{nearest(section, list(SECTIONS))}; there is {', '.join(SECTIONS)}"
        )
    for name in SECTIONS if section is None else (section,):
        base = section_class(name, {}) if name in {"optim", "train"} else _shared(name)
        typer.echo(reference(f"[{name}]", base))
        for kind in plugins.KINDS:
            if (name, kind) not in {("data", "dataset"), ("backbone", "backbone"), ("method", "method")}:
                continue
            for plugin in plugins.discover(kind):
                if isinstance(plugin, plugins.Plugin) and plugin.spec.settings is not base:
                    own = plugin.spec.settings
                    intro = f"{plugin.spec.summary} ({plugin.distribution}); beside the keys of [{name}]:"
                    typer.echo(reference(f"[{name}] of {plugin.name}", own, intro, leave_out=_keys(base)))


def _shared(section: str) -> type:
    from dsdmae_cli.settings.load import NAMED

    return NAMED[section][2]


def _keys(model: type) -> set[str]:
    return {key_of(name, field) for name, field in model.model_fields.items()}  # type: ignore[attr-defined]
