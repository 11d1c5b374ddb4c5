"""`dsdmae config`: look at settings without running anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from dsdmae_cli.cli import completion
from dsdmae_cli.cli.group import Command, Group
from dsdmae_cli.cli.options import Debug, takes
from dsdmae_cli.config.given import Given
from dsdmae_cli.errors import SettingsError, nearest
from dsdmae_cli.report import shown, tell

app = typer.Typer(cls=Group, help="Show, check and explain settings.", no_args_is_help=True, add_completion=False)


@app.command(cls=Command)
@takes("config show")
def show(
    *,
    command: Annotated[
        str,
        typer.Option("--for", metavar="COMMAND", help="Whose settings: pretrain or finetune or probe",
                     autocompletion=completion.schemas),
    ] = "pretrain",
    given: Given,
    sources: Annotated[bool, typer.Option("--sources", help="Say where each value came from")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of TOML")] = False,
) -> None:  # fmt: skip
    """Print the resolved settings as TOML; the output is a valid --config file.

    It takes the flags of `dsdmae pretrain`: dsdmae config show --method mae --epochs 20 --sources
    """
    from dsdmae_cli.config.compose import compose
    from dsdmae_cli.config.describe import tables, to_toml
    from dsdmae_cli.config.flags import flags_of
    from dsdmae_cli.config.own_images import fitted
    from dsdmae_cli.config.resolve import methods_augment, resolve
    from dsdmae_cli.config.schema import SCHEMAS

    if command not in SCHEMAS:
        raise SettingsError(f"--for {command}{nearest(command, list(SCHEMAS))}: it takes {', '.join(SCHEMAS)}")
    schema = SCHEMAS[command]
    for flag in flags_of("config show"):
        if flag.setting in given.flags and flag.setting.partition(".")[0] not in schema.sections:
            raise SettingsError(
                f"{flag.name} sets {flag.setting}, which `dsdmae {command}` does not have; leave it out"
            )
    loaded: Any = compose(
        schema, preset=given.preset, config=given.config, flags=given.flags, assignments=given.assignments,
        start=_begun,
    )  # fmt: skip
    if command in ("pretrain", "finetune"):
        loaded = fitted(loaded)
    before, after = tables(loaded.settings), tables(resolve(loaded.settings))
    method = getattr(loaded.settings, "method", None)
    by = f" (auto, by {method.name})" if method is not None else ""
    decided = {f"data.{key}": by for key in methods_augment(loaded.settings.data, method)}
    origin = {
        dotted: source + decided.get(dotted, " (auto)") if before[s][k] != after[s][k] else source
        for dotted, source in loaded.sources.items()
        for s, _, k in [dotted.partition(".")]
    }
    if as_json:
        tell(json.dumps({"settings": after, **({"sources": origin} if sources else {})}, indent=2), as_data=True)
    else:
        tell(to_toml(after, origin if sources else None).rstrip(), as_data=True)


def _begun(text: str, images_named: bool) -> Any:
    from dsdmae_cli.artifacts.begun import begun_with

    return begun_with(text, images_named)


@app.command(cls=Command)
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE.toml", help="A file of settings")],
    debug: Debug = False,
) -> None:
    """Say whether a file's settings are valid; exit code 2 and one line if not."""
    from dsdmae_cli.config.compose import compose
    from dsdmae_cli.config.resolve import resolve
    from dsdmae_cli.config.schema import schema_of
    from dsdmae_cli.config.sources import read_toml

    values = read_toml(file)
    resolve(compose(schema_of(values), config=file, parsed=values, environ={}).settings)
    tell(shown(f"{file} is valid", one_line=True))


@app.command(cls=Command)
def presets(debug: Debug = False) -> None:
    """List the packaged presets by kind, and what each sets.

    One of each kind may be named, in any order: dsdmae pretrain --preset dsdmae,cifar10,vit-tiny
    """
    from dsdmae_cli.config.presets import KINDS, presets_by_kind, read_preset
    from dsdmae_cli.config.schema import FINETUNE, PRETRAIN

    rows = [
        (name, f"{'finetune ' if schema is FINETUNE else ''}{KINDS[kind]}", _says(read_preset(schema, kind, name)))
        for schema in (PRETRAIN, FINETUNE)
        for kind, names in presets_by_kind(schema).items()
        for name in names
    ]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for name, kind, says in rows:
        tell(f"{name:<{widths[0]}}  {kind:<{widths[1]}}  {says}")


def _says(values: dict[str, Any]) -> str:
    """What a preset sets, and what it sets beside another one."""
    beside = values.pop("with", {})
    said = [f"{section}.{key}={_short(value)}" for section, table in values.items() for key, value in table.items()]
    return "; ".join([" ".join(said), *(f"with {other}: {_says(tables)}" for other, tables in beside.items())])


def _short(value: Any) -> str:
    """A value as --set takes it."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


@app.command(cls=Command)
def describe(
    section: Annotated[
        str | None,
        typer.Argument(metavar="SECTION|SECTION.KEY", help="A section of settings, such as train, or one key of it,"
                       " such as train.epochs; all of them by default", show_default=False,
                       autocompletion=completion.described),
    ] = None,
    debug: Debug = False,
) -> None:  # fmt: skip
    """Explain every setting of every command and installed plugin, as Markdown; or one key, in a few lines."""
    from dsdmae_cli.config.describe import reference
    from dsdmae_cli.config.schema import ALL_SECTIONS, NAMED, PRETRAIN, SCHEMAS, section_class

    name, dot, key = (section or "").partition(".")
    if section is not None and name not in ALL_SECTIONS:
        raise SettingsError(
            f"there is no section {name!r}{nearest(name, list(ALL_SECTIONS))}; there is {', '.join(ALL_SECTIONS)}"
        )
    if dot:
        from dsdmae_cli.config.keys import told

        tell(told(name, key))
        return
    for name in ALL_SECTIONS if section is None else (section,):
        if name in NAMED:
            _describe_plugins(name)
            continue
        for command, schema in SCHEMAS.items():
            if name in schema.sections:
                of = "" if schema is PRETRAIN else f" of `dsdmae {command}`"
                tell(reference(f"[{name}]{of}", section_class(name, {}, schema=schema)), as_data=True)


def _describe_plugins(name: str) -> None:
    """A section that all plugins of a kind share, with what each of them adds to it."""
    from dsdmae_cli import plugins
    from dsdmae_cli.config.describe import reference
    from dsdmae_cli.config.schema import NAMED, SECTIONS

    _, kind, base = NAMED[name]
    of = "" if name in SECTIONS else f" of `dsdmae {name}`"
    tell(reference(f"[{name}]{of}", base), as_data=True)
    for plugin in plugins.discover(kind):
        if isinstance(plugin, plugins.Plugin) and plugin.spec.settings is not base:
            own = plugin.spec.settings
            intro = f"{plugin.spec.summary} ({plugin.distribution}); beside the keys of [{name}]:"
            tell(reference(f"[{name}] of {plugin.name}", own, intro, leave_out=_keys(base)), as_data=True)


def _keys(model: type) -> set[str]:
    from dsdmae_cli.config.describe import key_of

    return {key_of(name, field) for name, field in model.model_fields.items()}  # type: ignore[attr-defined]
