"""Merged values become settings, or one line that says what is wrong with them and where they came from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from dsdmae_cli.config.describe import admits, allowed, as_written, key_of, tables
from dsdmae_cli.config.schema import Loaded, S, Schema, Values, section_class, where
from dsdmae_cli.config.sources import Word, parse_word
from dsdmae_cli.errors import SettingsError, nearest
from dsdmae_cli.files import is_text

_LARGEST = 2**63 - 1
_LARGEST_FLOAT32 = 3.4028234e38


def validate(values: Values, origin: dict[str, str], schema: Schema[S]) -> Loaded[S]:
    sections: dict[str, Any] = {}
    for section in schema.sections:
        model = section_class(section, values[section], origin, schema)
        sections[section] = _validate_section(section, model, values[section], origin)
    settings = schema.model(**sections)
    sources = {
        f"{section}.{key}": origin.get(f"{section}.{key}", "default") if key in values[section] else "default"
        for section, table in tables(settings).items()
        for key in table
    }
    return Loaded(settings, sources)


def _validate_section(
    section: str, model: type[BaseModel], values: dict[str, Any], origin: dict[str, str]
) -> BaseModel:
    fields = {key_of(name, field): field for name, field in model.model_fields.items()}
    given: dict[str, Any] = {}
    for key, value in values.items():
        dotted = f"{section}.{key}"
        if key not in fields:
            raise SettingsError(
                f"unknown setting {dotted}{where(dotted, origin)}{nearest(key, list(fields))};"
                f" [{section}] has {', '.join(fields)} here"
            )
        given[key] = _meant(value, fields[key])
        no_path = given[key] == "" and admits(fields[key], Path)  # pathlib would take it for the current folder
        if no_path or _stray_bool(given[key], fields[key]):
            raise SettingsError(_not_allowed(dotted, given[key], fields[key], origin))
        if not is_text(given[key]):
            raise SettingsError(
                f"{dotted} = {value}{where(dotted, origin)} is not allowed: it is no UTF-8, which settings.toml is"
                " written in; rename it, or name it by a link whose own name is UTF-8"
            )
        if section != "data" and _over_large(given[key]):  # data.range is of the files' values, which may be float64
            raise SettingsError(
                f"{dotted} = {value}{where(dotted, origin)} is not allowed: networks compute in float32, which ends at"
                " 3.4e38"
            )
        if _over_long(given[key]) and admits(fields[key], int) and not admits(fields[key], float, str, Path):
            raise SettingsError(f"{dotted} = {value}{where(dotted, origin)} is not allowed: it has more than 64 bits")
    try:
        return model(**given)
    except ValidationError as error:
        raise SettingsError(_one_line(section, fields, error, origin)) from error


def _meant(value: Any, field: FieldInfo) -> Any:
    """What a typed word means for a setting: itself where text or a path is wanted ("2024" may be a folder)."""
    if not isinstance(value, Word):
        return value
    return str(value) if admits(field, str, Path) else parse_word(str(value))


def _stray_bool(value: Any, field: FieldInfo) -> bool:
    """Whether true or false stands where a number should: Python would take it for 1 or 0."""
    if isinstance(value, bool):
        return not admits(field, bool)
    return isinstance(value, list) and any(isinstance(item, bool) for item in value)


def _over_large(value: Any) -> bool:
    """Whether a number here is finite and more than float32 holds; infinite ones are refused by each setting's type."""
    if isinstance(value, list | tuple):
        return any(map(_over_large, value))
    return isinstance(value, float) and math.isfinite(value) and abs(value) > _LARGEST_FLOAT32


def _over_long(value: Any) -> bool:
    """Whether this is a whole number that TOML does not know: a run with it in its settings.toml could not be read."""
    if isinstance(value, int):
        return abs(value) > _LARGEST
    digits = value.strip().lstrip("+-").replace("_", "").lstrip("0") if isinstance(value, str) else ""
    return digits.isdecimal() and (len(digits) > len(str(_LARGEST)) or int(digits) > _LARGEST)


def _not_allowed(dotted: str, got: Any, field: FieldInfo, origin: Mapping[str, str]) -> str:
    return f"{dotted} = {as_written(got)}{where(dotted, origin)} is not allowed; it takes {allowed(field)}"


def _one_line(section: str, fields: Mapping[str, FieldInfo], error: ValidationError, origin: Mapping[str, str]) -> str:
    """The first fault in words: which key, what was got and from where, what is allowed."""
    first = error.errors()[0]
    if not first["loc"]:  # a rule between several keys; its author wrote the message
        return f"[{section}] {first['msg'].removeprefix('Value error, ')}"
    key = str(first["loc"][0])
    dotted = f"{section}.{key}"
    if first["type"] == "value_error":
        got, why = as_written(first["input"]), first["msg"].removeprefix("Value error, ")
        return f"{dotted} = {got}{where(dotted, origin)}: {why}"
    return _not_allowed(dotted, first["input"], fields[key], origin)
