"""Where settings come from, one layer each: TOML files, the environment, flags and --set; presets are in
config/presets.py. No torch here."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsdmae_cli.config.describe import as_written
from dsdmae_cli.config.schema import ALL_SECTIONS, Schema, Values
from dsdmae_cli.errors import SettingsError, nearest
from dsdmae_cli.files import beside, require_file

# Environment variables of ours that are no settings.
_NOT_SETTINGS = {"DSDMAE_TEST_DATA", "DSDMAE_PRESET", "DSDMAE_CONFIG"}


@dataclass(frozen=True)
class Layer:
    """Values from one place; `origin` maps "section.key" to words for a message ("--epochs")."""

    values: Values
    origin: dict[str, str]


_MOST_BYTES = 4 << 20


def read_toml(path: Path) -> dict[str, Any]:
    """Parse a TOML file.

    Raises:
        SettingsError: it cannot be read or is not TOML; the message names the line.
    """
    try:
        require_file(path, handed_over=True)
        with path.open("rb") as file:  # what is handed over may have no end
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise SettingsError(f"{path} is no settings file: it has more than {_MOST_BYTES >> 20} MB")
        values = tomllib.loads(content.decode("utf-8-sig"))  # Windows editors put a mark before the text
        _check_numbers(values)
        return values
    except OSError as error:
        meant = beside(path)
        raise SettingsError(f"cannot read {path}: {error.strerror or error}{meant}") from error
    except (ValueError, RecursionError) as error:  # the decoder's own errors, and those of absurd numbers and nesting
        raise SettingsError(f"{path} is not valid TOML: {error}") from error


def _check_numbers(value: Any) -> None:
    """TOML's whole numbers have 64 bits; the parser takes any."""
    if isinstance(value, int) and abs(value) >= 2**63:
        raise ValueError("a whole number of more than 64 bits")
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_numbers(part)


class Word(str):
    """A value as a person typed it; what it means depends on the setting, which is known only when all is merged."""

    __slots__ = ()


def parse_word(text: str) -> Any:
    """The value of a text from a flag or variable: TOML if it is TOML ("0.5", "[1, 2]", "true"), a pair if it is
    "LOW,HIGH" or "LOW..HIGH", else the text itself."""
    for candidate in (text, f"[{text.replace('..', ',')}]" if "," in text or ".." in text else text):
        try:
            parsed = tomllib.loads(f"value = {candidate}")
        except (ValueError, RecursionError):
            continue
        value = parsed["value"]
        # A line break could have brought other keys along; a number of 400 digits is no number for anyone.
        if parsed.keys() == {"value"} and not (isinstance(value, int) and abs(value) >= 2**63):
            return value
    return text


def checked_layer(values: Mapping[str, Any], origin: str, schema: Schema[Any]) -> Layer:
    for section, table in values.items():
        if section not in schema.sections:
            raise SettingsError(
                f"unknown section [{section}] in {origin}{nearest(section, list(schema.sections))};"
                f" there is {', '.join(schema.sections)}"
            )
        if not isinstance(table, dict):
            raise SettingsError(f"{section} in {origin} must be a table of settings, got {as_written(table)}")
    copied = {section: dict(table) for section, table in values.items()}
    return Layer(copied, {f"{s}.{k}": origin for s, table in copied.items() for k in table})


def file_layer(
    path: Path, parsed: Mapping[str, Any] | None, schema: Schema[Any]
) -> tuple[Layer, str | list[str] | None]:
    """The settings of a TOML file, and the presets that it names."""
    values = read_toml(path) if parsed is None else dict(parsed)
    preset = values.pop("preset", None)
    named = preset if isinstance(preset, list) else [preset]
    if preset is not None and not all(isinstance(name, str) for name in named):
        raise SettingsError(f"preset in {path} must be a preset's name or a list of them, got {as_written(preset)}")
    return checked_layer(values, str(path), schema), preset


def environment_layer(environ: Mapping[str, str], schema: Schema[Any]) -> Layer:
    values: Values = {}
    origin: dict[str, str] = {}
    for variable in sorted(environ):
        if not variable.startswith("DSDMAE_") or variable in _NOT_SETTINGS:
            continue
        section, _, key = variable.removeprefix("DSDMAE_").lower().partition("_")
        if section not in ALL_SECTIONS or not key:
            raise SettingsError(
                f"unknown environment variable {variable}{_nearest_variable(variable)}; settings are DSDMAE_SECTION_KEY"
                f" with a section of {', '.join(ALL_SECTIONS)} (for example DSDMAE_TRAIN_EPOCHS=5)"
            )
        if section not in schema.sections:
            continue  # it is about another command
        values.setdefault(section, {})[key] = Word(environ[variable])
        origin[f"{section}.{key}"] = f"environment variable {variable}"
    return Layer(values, origin)


def _nearest_variable(variable: str) -> str:
    _, _, key = variable.removeprefix("DSDMAE_").partition("_")
    known = [*_NOT_SETTINGS, *(f"DSDMAE_{section.upper()}_{key}" for section in ALL_SECTIONS if key)]
    return nearest(variable, known)


def command_line_layer(
    flags: Mapping[str, Any], assignments: Sequence[str], names: Mapping[str, str], schema: Schema[Any]
) -> Layer:
    """Flags and --set in one: whichever way a person names a method, what they say of it beside is about that one.

    Args:
        names: what a message calls each value of `flags`: {"train.epochs": "--epochs"}.
    """
    spoken, assigned = _flag_layer(flags, names), _assignment_layer(assignments, schema)
    both = {
        section: spoken.values.get(section, {}) | assigned.values.get(section, {})
        for section in spoken.values.keys() | assigned.values.keys()
    }
    return Layer(both, spoken.origin | assigned.origin)


def _flag_layer(flags: Mapping[str, Any], names: Mapping[str, str]) -> Layer:
    values: Values = {}
    origin: dict[str, str] = {}
    for dotted, value in flags.items():
        if value is None:
            continue
        section, _, key = dotted.partition(".")
        values.setdefault(section, {})[key] = Word(value) if isinstance(value, str) else value
        origin[dotted] = names.get(dotted, "the call")  # from Python any setting may be named
    return Layer(values, origin)


def _assignment_layer(assignments: Sequence[str], schema: Schema[Any]) -> Layer:
    sections = schema.sections
    values: Values = {}
    origin: dict[str, str] = {}
    for text in assignments:
        dotted, equals, value = text.partition("=")
        section, dot, key = dotted.strip().partition(".")
        if not (equals and dot and key) or section not in sections:
            raise SettingsError(
                f"--set takes SECTION.KEY=VALUE with a section of {', '.join(sections)}, got {text!r}"
                f"{nearest(section, [s for s in sections if s != section])} (for example --set optim.weight_decay=0.1)"
            )
        values.setdefault(section, {})[key] = Word(value.strip())
        origin[f"{section}.{key}"] = f"--set {' '.join(text.split())}"
    return Layer(values, origin)
