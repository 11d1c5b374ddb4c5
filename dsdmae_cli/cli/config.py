"""`dsdmae config`: look at settings without running anything."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated

import typer

from dsdmae_cli.cli import options as o
from dsdmae_cli.config.compose import compose, load
from dsdmae_cli.config.describe import key_of, reference, tables, to_toml
from dsdmae_cli.config.resolve import methods_augment, resolve
from dsdmae_cli.config.schema import (
    ALL_SECTIONS,
    FINETUNE,
    NAMED,
    PRETRAIN,
    SCHEMAS,
    SECTIONS,
    schema_of,
    section_class,
)
from dsdmae_cli.config.sources import preset_names, read_toml
from dsdmae_cli.errors import SettingsError, nearest
from dsdmae_cli.settings.models import MethodSettings

app = typer.Typer(help="Show, check and explain settings.", no_args_is_help=True)


@app.command()
def show(
    command: Annotated[
        str, typer.Option("--for", metavar="COMMAND", help="Whose settings: pretrain or finetune or probe")
    ] = "pretrain",
    preset: o.Preset = None,
    config: o.Config = None,
    set_: o.Set = None,
    sources: Annotated[bool, typer.Option("--sources", help="Say where each value came from")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object instead of TOML")] = False,
    debug: o.Debug = False,
) -> None:
    """Print the resolved settings as TOML; the output is a valid --config file."""
    if command not in SCHEMAS:
        raise SettingsError(f"--for {command}{nearest(command, list(SCHEMAS))}: it takes {', '.join(SCHEMAS)}")
    loaded = compose(SCHEMAS[command], preset=preset, config=config, assignments=set_)
    before, after = tables(loaded.settings), tables(resolve(loaded.settings))
    method: MethodSettings | None = getattr(loaded.settings, "method", None)
    by = f" (auto, by {method.name})" if method is not None else ""
    decided = {f"data.{key}": by for key in methods_augment(loaded.settings.data, method)}
    origin = {
        dotted: source + decided.get(dotted, " (auto)") if before[s][k] != after[s][k] else source
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
    values = read_toml(file)
    resolve(compose(schema_of(values), config=file, parsed=values, environ={}).settings)
    typer.echo(f"{file} is valid")


@app.command()
def presets(debug: o.Debug = False) -> None:
    """List the packaged presets."""
    width = max(map(len, [*preset_names(), *preset_names(FINETUNE)]))
    for name in preset_names():
        settings = load(preset=name, environ={}).settings
        train = settings.train
        typer.echo(
            f"{name:<{width}}  {settings.method.name} with {settings.backbone.name} on {settings.data.dataset},"
            f" batch {train.batch_size}, {train.epochs} epochs"
        )
    for name in preset_names(FINETUNE):
        found = compose(FINETUNE, preset=name, environ={}).settings
        typer.echo(
            f"{name:<{width}}  for finetune: batch {found.train.batch_size}, {found.train.epochs} epochs,"
            f" layer decay {found.optim.layer_decay:g}"
        )


@app.command()
def describe(
    section: Annotated[
        str | None, typer.Argument(help=f"One of {', '.join(ALL_SECTIONS)}; all of them by default")
    ] = None,
    debug: o.Debug = False,
) -> None:
    """Explain every setting of every command and installed plugin, as Markdown."""
    if section is not None and section not in ALL_SECTIONS:
        raise SettingsError(
            f"there is no section {section!r}{nearest(section, list(ALL_SECTIONS))}; there is {', '.join(ALL_SECTIONS)}"
        )
    for name in ALL_SECTIONS if section is None else (section,):
        if name in NAMED:
            _describe_plugins(name)
            continue
        for command, schema in SCHEMAS.items():
            if name in schema.sections:
                of = "" if schema is PRETRAIN else f" of `dsdmae {command}`"
                typer.echo(reference(f"[{name}]{of}", section_class(name, {}, schema=schema)))


def _describe_plugins(name: str) -> None:
    """A section that all plugins of a kind share, with what each of them adds to it."""
    from dsdmae_cli import plugins

    _, kind, base = NAMED[name]
    of = "" if name in SECTIONS else f" of `dsdmae {name}`"
    typer.echo(reference(f"[{name}]{of}", base))
    for plugin in plugins.discover(kind):
        if isinstance(plugin, plugins.Plugin) and plugin.spec.settings is not base:
            own = plugin.spec.settings
            intro = f"{plugin.spec.summary} ({plugin.distribution}); beside the keys of [{name}]:"
            typer.echo(reference(f"[{name}] of {plugin.name}", own, intro, leave_out=_keys(base)))


def _keys(model: type) -> set[str]:
    return {key_of(name, field) for name, field in model.model_fields.items()}  # type: ignore[attr-defined]
