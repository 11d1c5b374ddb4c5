"""What completion offers for the values of flags. Functions import what they need when a shell asks, never torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from dsdmae_cli.config.flags import Flag

_MOST_RUNS = 50
_WEIGHTS = ("encoder.safetensors", "classifier.safetensors", "checkpoints")  # a run with none of them is no subject
Complete = Callable[[str], list[str]]


def presets(whose: str) -> Complete:
    """Names of presets, of the kinds that were not named before a comma."""

    def complete(incomplete: str) -> list[str]:
        from dsdmae_cli.config.presets import presets_by_kind
        from dsdmae_cli.config.schema import SCHEMAS

        before, comma, last = incomplete.rpartition(",")
        named = set(before.split(","))
        kinds = [names for names in presets_by_kind(SCHEMAS[whose]).values() if not named & set(names)]
        return [f"{before}{comma}{name}" for names in kinds for name in names if name.startswith(last)]

    return complete


def values_of(flag: Flag, command: str) -> Complete:
    """The values of a flag, where they are few words."""

    def complete(incomplete: str) -> list[str]:
        if flag.setting == "train.start":
            return [word for word in subjects(incomplete) if word not in ("scratch", "pixels")]
        found = flag.values or setting_values(flag.setting, command)
        return [value for value in found if value.startswith(incomplete)]

    return complete


def setting_values(dotted: str, command: str = "pretrain") -> list[str]:
    """The words that a setting may be: names of plugins, or those that its type lists."""
    from dsdmae_cli.config.describe import key_of, words
    from dsdmae_cli.config.schema import NAMED, PRETRAIN, SCHEMAS, section_class

    section, _, key = dotted.partition(".")
    schema = SCHEMAS.get(command, PRETRAIN)
    if section in NAMED and NAMED[section][0] == key:
        return plugin_names(NAMED[section][1])
    if section not in schema.sections:
        return []
    fields = section_class(section, {}, schema=schema).model_fields
    return next((words(field) for name, field in fields.items() if key_of(name, field) == key), [])


def plugin_names(kind: Any) -> list[str]:
    """The names of the plugins of a kind that work; with a colon where something follows."""
    from dsdmae_cli.plugins import Plugin, discover

    return [p.name + (":" if p.spec.argument else "") for p in discover(kind) if isinstance(p, Plugin)]


def methods(incomplete: str) -> list[str]:
    """Names of methods."""
    return [name for name in plugin_names("method") if name.startswith(incomplete)]


def datasets(incomplete: str) -> list[str]:
    """Names of datasets."""
    return [name for name in plugin_names("dataset") if name.startswith(incomplete)]


def settings(incomplete: str) -> list[str]:
    """Settings as SECTION.KEY: sections first, then the keys of one."""
    from dsdmae_cli.config.describe import key_of
    from dsdmae_cli.config.schema import ALL_SECTIONS, SCHEMAS, section_class

    section, dot, _ = incomplete.partition(".")
    if not dot:
        return [f"{name}." for name in ALL_SECTIONS if name.startswith(incomplete)]
    schemas = [schema for schema in SCHEMAS.values() if section in schema.sections]
    fields = [f for schema in schemas for f in section_class(section, {}, schema=schema).model_fields.items()]
    found = dict.fromkeys(f"{section}.{key_of(name, field)}" for name, field in fields)
    return [dotted for dotted in found if dotted.startswith(incomplete)]


def assignments(incomplete: str) -> list[str]:
    """SECTION.KEY=VALUE, one part after the other."""
    dotted, equals, value = incomplete.partition("=")
    if equals:
        return [f"{dotted}={word}" for word in setting_values(dotted) if word.startswith(value)]
    return [text if text.endswith(".") else f"{text}=" for text in settings(incomplete)]


def directories(incomplete: str) -> list[str]:
    """Directories of runs that were given no place of their own, the newest first; none of these and the shell offers
    files."""
    return [text for path in _runs() if (text := str(path)).startswith(incomplete)][:_MOST_RUNS]


def runs(incomplete: str) -> list[str]:
    """The same by their names, as commands know them, until a path is typed."""
    if any(mark in incomplete for mark in "/\\~"):
        return directories(incomplete)
    return [path.name for path in _runs() if path.name.startswith(incomplete)][:_MOST_RUNS]


def subjects(incomplete: str) -> list[str]:
    """What a command judges or starts from: runs with weights, published weights up to their colon, scratch, pixels."""
    from dsdmae_cli.artifacts.subject import completions

    folder = _folder()
    trained = [run for run in runs(incomplete) if any((folder / run / part).exists() for part in _WEIGHTS)]
    return list(dict.fromkeys([*trained, *completions(incomplete)]))


def _runs() -> list[Path]:
    folder = _folder()
    return sorted((p for p in folder.iterdir() if p.is_dir()), key=_age, reverse=True) if folder.is_dir() else []


def _folder() -> Path:
    from platformdirs import user_data_path

    return user_data_path("dsdmae") / "runs"


def _age(path: Path) -> float:
    return path.stat().st_mtime


def schemas(incomplete: str) -> list[str]:
    """Commands whose settings can be shown."""
    from dsdmae_cli.config.schema import SCHEMAS

    return [name for name in SCHEMAS if name.startswith(incomplete)]


def sections(incomplete: str) -> list[str]:
    """Sections of settings."""
    from dsdmae_cli.config.schema import ALL_SECTIONS

    return [name for name in ALL_SECTIONS if name.startswith(incomplete)]


def described(incomplete: str) -> list[str]:
    """Sections, and after a dot the keys of one."""
    return settings(incomplete) if "." in incomplete else sections(incomplete)


def kept(incomplete: str) -> list[str]:
    """What `dsdmae cache` can clear."""
    from dsdmae_cli.kept import listed

    return [thing.name for thing in listed() if thing.own and thing.name.startswith(incomplete)]
