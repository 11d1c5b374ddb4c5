"""Words for settings: what a value may be, help texts, TOML and the reference page. All of it read off the models."""

from __future__ import annotations

from collections.abc import Collection
from datetime import date, time
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types as at
import tomli_w
from pydantic import BaseModel
from pydantic.fields import FieldInfo

_LONGEST_NUMBER = 10  # characters
_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}


def _range(metadata: list[Any]) -> str:
    flat: list[Any] = []
    for item in metadata:
        flat.extend(item.metadata if isinstance(item, FieldInfo) else [item])
    low = high = step = ""
    for item in flat:
        match item:
            case at.Ge(ge=value):
                low = f"from {value}"
            case at.Gt(gt=value):
                low = f"above {value}"
            case at.Le(le=value):
                high = f"to {value}"
            case at.Lt(lt=value):
                high = f"below {value}"
            case at.MultipleOf(multiple_of=value):
                step = f"in steps of {value}"
    if low.startswith("from") and not high:
        high = "up"
    return "".join(f" {word}" for word in (low, high, step) if word)


def _allowed(annotation: Any, metadata: list[Any]) -> str:
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *more = get_args(annotation)
        return _allowed(inner, [*metadata, *more])
    if origin in (Union, UnionType, Literal):
        return _one_of(_alternatives(annotation))
    if origin is tuple and get_args(annotation)[-1] is Ellipsis:
        return f"a list{_of(_allowed(get_args(annotation)[0], []))}"
    if origin is tuple:
        parts = [_allowed(part, []) for part in get_args(annotation)]
        return f"a pair{_of(parts[0])}" if len(set(parts)) == 1 else f"a pair [{', '.join(parts)}]"
    if origin is dict:
        return "a table"
    if annotation is NoneType:
        return "'none'"
    return _WORDS.get(annotation, getattr(annotation, "__name__", str(annotation))) + _range(metadata)


def _alternatives(annotation: Any) -> list[str]:
    """What a value may be, one phrase each; a pair of what it may be alone is a pair of such."""
    if get_origin(annotation) is Literal:
        return [repr(word) for word in get_args(annotation)]
    if annotation is bool:
        return ["true", "false"]
    if get_origin(annotation) not in (Union, UnionType):
        return [_allowed(annotation, [])]
    found = [phrase for part in get_args(annotation) for phrase in _alternatives(part)]
    pairs = {f"a pair{_of(phrase)}" for phrase in found}
    return ["a pair of such" if phrase in pairs else phrase for phrase in found]


def _of(phrase: str) -> str:
    """What follows "a pair" or "a list" of values that one phrase describes."""
    for one, several in (("a number", "numbers"), ("a whole number", "whole numbers"), ("a pair", "pairs")):
        if phrase.startswith(one) and " or " not in phrase:
            return f" of {several}{phrase.removeprefix(one)}"
    return f", each {phrase}"


def _one_of(phrases: list[str]) -> str:
    """ "a, b or c"."""
    return " or ".join(filter(None, [", ".join(phrases[:-1]), phrases[-1]]))


def admits(field: FieldInfo, *kinds: type) -> bool:
    """Whether a setting may be of one of these types itself, not only inside a pair or table."""

    def within(annotation: Any) -> bool:
        origin = get_origin(annotation)
        if origin is Annotated:
            return within(get_args(annotation)[0])
        if origin in (Union, UnionType):
            return any(map(within, get_args(annotation)))
        return annotation in kinds

    return within(field.annotation)


def words(field: FieldInfo) -> list[str]:
    """The words that a setting may be, where its type lists some: "auto", "true", "none"."""

    def within(annotation: Any) -> list[str]:
        origin = get_origin(annotation)
        if origin is Annotated:
            return within(get_args(annotation)[0])
        if origin in (Union, UnionType):
            return [word for part in get_args(annotation) for word in within(part)]
        if origin is Literal:
            return [str(word) for word in get_args(annotation)]
        return {bool: ["true", "false"], NoneType: ["none"]}.get(annotation, [])

    return within(field.annotation)


def allowed(field: FieldInfo) -> str:
    """What a setting may be, in words: "a whole number from 1 up or 'auto'"."""
    return _allowed(field.annotation, list(field.metadata))


def plain(value: Any) -> Any:
    """A setting's value as TOML knows it: None becomes "none", tuples lists, paths text."""
    match value:
        case None:
            return "none"
        case Path():
            return str(value)
        case date() | time():  # TOML knows them, JSON does not, and no setting of ours is one
            return value.isoformat()
        case tuple() | list():
            return [plain(item) for item in value]
        case dict():
            return {key: plain(item) for key, item in value.items()}
    return value


def as_written(value: Any) -> str:
    """A value as a settings file has it, for a message: true, not True, and a date by its digits."""
    match value:
        case bool():
            return str(value).lower()
        case date() | time():
            return value.isoformat()
        case list() | tuple():
            return f"[{', '.join(map(as_written, value))}]"
        case _:
            return repr(value)


def key_of(name: str, field: FieldInfo) -> str:
    """The name people write: the alias where there is one ("lambda")."""
    return field.alias or name


def tables(settings: BaseModel) -> dict[str, dict[str, Any]]:
    """Settings as {section: {key: plain value}}, in the order of the models."""
    return {section: table(model) for section, model in settings}


def table(section: BaseModel) -> dict[str, Any]:
    """One section's settings as {key: plain value}, in the order of the model."""
    return {key_of(name, field): plain(getattr(section, name)) for name, field in type(section).model_fields.items()}


def _toml_value(value: Any) -> str:
    """A value on one line, whatever it holds."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml_key(k)} = {_toml_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml_value, value)) + "]"
    return tomli_w.dumps({"k": value}).removeprefix("k = ").removesuffix("\n")


def _toml_key(key: str) -> str:
    return tomli_w.dumps({key: 0}).removesuffix(" = 0\n")


def to_toml(values: dict[str, dict[str, Any]], sources: dict[str, str] | None = None) -> str:
    """TOML text; with `sources` ("section.key" -> origin) each line says where its value came from."""
    lines: list[str] = []
    for section, table in values.items():
        lines.append(f"[{section}]")
        for key, value in table.items():
            text = f"{_toml_key(key)} = {_toml_value(value)}"
            lines.append(f"{text:<44} # {sources[f'{section}.{key}']}" if sources else text)
        lines.append("")
    return "\n".join(lines)


def short(value: Any) -> Any:
    """A value to be read by people: 1.333, not 1.3333333333333333."""
    if isinstance(value, list):
        return [short(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) and len(repr(value)) > _LONGEST_NUMBER else value


def _written(default: Any) -> Any:
    """A default as a file of settings has it: true, not True."""
    return str(default).lower() if isinstance(default, bool) else short(default)


def help_text(model: type[BaseModel], section: str, key: str) -> str:
    """One line of help for a flag: description, range, default and where the setting lives."""
    field = next(field for name, field in model.model_fields.items() if key_of(name, field) == key)
    default = plain(field.get_default())
    shown = _written(default)
    takes = allowed(field)
    told = "default" if takes in ("text", "true or false") else f"takes {takes}; default"  # which goes without saying
    return f"{_begun(field.description or '')}. {told[0].upper()}{told[1:]} {shown} ({section}.{key})"


def _begun(description: str) -> str:
    """A description as the beginning of a sentence, unless it begins with a value or a name of code."""
    first = description.split(" ")[0]
    return (
        description[:1].upper() + description[1:]
        if first.isascii() and first.isalpha() and first != "auto"
        else description
    )


def reference(title: str, model: type[BaseModel], intro: str = "", leave_out: Collection[str] = ()) -> str:
    """One Markdown table of a section for docs/settings.md, without the keys in `leave_out`."""
    rows = [f"### {title}", "", intro or (model.__doc__ or "").strip().splitlines()[0], ""]
    rows += ["| key | default | takes | meaning |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        if key_of(name, field) in leave_out:
            continue
        cells = (
            f"`{key_of(name, field)}`",
            f"`{_written(plain(field.get_default()))}`",
            allowed(field),
            field.description or "",
        )
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"
