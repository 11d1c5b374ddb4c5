"""One key of the settings in a few lines: what it takes, its default, its meaning, and the flags that set it."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from dsdmae_cli import plugins
from dsdmae_cli.config.describe import allowed, key_of, plain
from dsdmae_cli.config.flags import FLAGS
from dsdmae_cli.config.schema import NAMED, SCHEMAS, section_class
from dsdmae_cli.errors import SettingsError, nearest


def told(section: str, key: str) -> str:
    """What there is to say of a key; where commands or plugins differ in it, of each of them.

    Args:
        section: one of schema.ALL_SECTIONS.

    Raises:
        SettingsError: nothing has this key.
    """
    found: dict[tuple[tuple[str, str], ...], list[str]] = {}
    keys: dict[str, None] = {}
    for whose, model in _models(section):
        for name, field in model.model_fields.items():
            keys[key_of(name, field)] = None
            if key_of(name, field) == key:
                found.setdefault(_lines(field), []).append(whose)
    if not found:
        raise SettingsError(
            f"there is no setting {section}.{key}{nearest(key, list(keys))}; [{section}] has {', '.join(keys)}"
        )
    parts = []
    for lines, owners in found.items():
        of = f" of {', '.join(owners)}" if len(found) > 1 or section in NAMED else ""
        parts.append("\n".join([f"{section}.{key}{of}", *map(_line, lines)]))
    set_by = (("flag", _flags(f"{section}.{key}")), ("variable", f"DSDMAE_{section}_{key}".upper()))
    ways = "\n".join(_line(pair) for pair in set_by if pair[1])
    return "\n\n".join([*parts, f"set by\n{ways}"]) if len(parts) > 1 else f"{parts[0]}\n{ways}"


def _line(pair: tuple[str, str]) -> str:
    return f"  {pair[0]:<8}  {pair[1]}"


def _models(section: str) -> Iterator[tuple[str, type[BaseModel]]]:
    """The classes that validate a section, and whose they are."""
    if section not in NAMED:
        for command, schema in SCHEMAS.items():
            if section in schema.sections:
                yield f"dsdmae {command}", section_class(section, {}, schema=schema)
        return
    for plugin in plugins.discover(NAMED[section][1]):
        if isinstance(plugin, plugins.Plugin):
            yield f"{plugin.kind} {plugin.name}", plugin.spec.settings


def _lines(field: FieldInfo) -> tuple[tuple[str, str], ...]:
    default = plain(field.get_default())
    shown = str(default).lower() if isinstance(default, bool) else str(default)
    return ("meaning", field.description or ""), ("takes", allowed(field)), ("default", shown)


def _flags(dotted: str) -> str:
    """ "--epochs (pretrain, ablate)"."""
    by_name: dict[str, dict[str, None]] = {}
    for flag in FLAGS:
        if flag.setting == dotted:
            by_name.setdefault(flag.name, {}).update(dict.fromkeys(flag.commands))
    return ", ".join(f"{name} ({', '.join(commands)})" for name, commands in by_name.items())
