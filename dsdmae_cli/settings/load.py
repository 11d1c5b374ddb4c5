"""Gather settings from everywhere: defaults < preset < TOML file < environment < flags.

Nothing here imports torch. Every value remembers where it came from, so that a message can say so. What "auto" means
is decided later: by `resolve` below where settings and specs suffice, by the recipe where the hardware has a say.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from dsdmae_cli import plugins
from dsdmae_cli.errors import PluginError, SettingsError, nearest
from dsdmae_cli.settings.describe import admits, allowed, key_of, tables
from dsdmae_cli.settings.models import (
    BackboneSettings,
    DataSettings,
    MethodSettings,
    OptimSettings,
    Settings,
    TrainSettings,
)

DEFAULT_PRESET = "quick"
SECTIONS = tuple(Settings.model_fields)
# The key of a section that names its plugin, and the class that holds what all plugins of the kind share.
NAMED: dict[str, tuple[str, plugins.Kind, type[BaseModel]]] = {
    "data": ("dataset", "dataset", DataSettings),
    "backbone": ("name", "backbone", BackboneSettings),
    "method": ("name", "method", MethodSettings),
}
# Environment variables of ours that are no settings.
_NOT_SETTINGS = {"DSDMAE_TEST_DATA", "DSDMAE_PRESET", "DSDMAE_CONFIG"}

Values = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Layer:
    """Values from one place; `origin` maps "section.key" to words for a message ("--epochs")."""

    values: Values
    origin: dict[str, str]


@dataclass(frozen=True)
class Loaded:
    """Validated settings and, for every "section.key", where its value came from."""

    settings: Settings
    sources: dict[str, str] = field(compare=False)


def preset_names() -> list[str]:
    """The packaged presets, sorted."""
    folder = files("dsdmae_cli") / "presets"
    return sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml"))


def load(
    *,
    preset: str | None = None,
    config: Path | None = None,
    flags: Mapping[str, Any] | None = None,
    assignments: list[str] | None = None,
    environ: Mapping[str, str] | None = None,
    base: Settings | None = None,
) -> Loaded:
    """Compose and validate the settings of a run.

    Args:
        preset: name of a packaged preset; by default the config file's `preset` key, then DSDMAE_PRESET, then
            "quick" if no place names a dataset.
        config: a TOML file; by default DSDMAE_CONFIG.
        flags: {"section.key": value} from the command line; None values are ignored.
        assignments: "section.key=value" texts from --set; they stand above flags.
        environ: the environment; os.environ by default.
        base: complete settings to stand below all others, in place of the default preset: those of a run that resumes.

    Raises:
        SettingsError: an unknown key, a value that is not allowed, a file that is not TOML.
        PluginError: a plugin that is not there.
    """
    environ = os.environ if environ is None else environ
    config = config or (Path(environ["DSDMAE_CONFIG"]) if environ.get("DSDMAE_CONFIG") else None)
    from_file, file_preset = _file_layer(config) if config else (Layer({}, {}), None)
    upper = [from_file, _environment_layer(environ), _command_line_layer(flags or {}, assignments or [])]

    named = (
        (preset, "--preset"),
        (environ.get("DSDMAE_PRESET") or None, "DSDMAE_PRESET"),
        (file_preset, f"preset in {config}"),
    )
    chosen = next(((name, origin) for name, origin in named if name is not None), None)
    if chosen is None and base is None and not any("dataset" in layer.values.get("data", {}) for layer in upper):
        chosen = (DEFAULT_PRESET, "default")
    lower = [_checked_layer(tables(base), "the run")] if base else []
    lower += [_preset_layer(*chosen)] if chosen else []
    return _validate(*_merge([*lower, *upper]))


def from_tables(values: Values, origin: str) -> Loaded:
    """Validate settings that were written down whole: a run's settings.toml, a checkpoint's metadata."""
    return _validate(*_merge([_checked_layer(values, origin)]))


def read_toml(path: Path) -> dict[str, Any]:
    """Parse a TOML file.

    Raises:
        SettingsError: it cannot be read or is not TOML; the message names the line.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))  # Windows editors put a mark before the text
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # the decoder's own errors, and those of absurd numbers and nesting
        raise SettingsError(f"{path} is not valid TOML: {error}") from error


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


def _checked_layer(values: Mapping[str, Any], origin: str) -> Layer:
    for section, table in values.items():
        if section not in SECTIONS:
            raise SettingsError(
                f"unknown section [{section}] in {origin}{nearest(section, list(SECTIONS))};"
                f" there is {', '.join(SECTIONS)}"
            )
        if not isinstance(table, dict):
            raise SettingsError(f"{section} in {origin} must be a table of settings, got {table!r}")
    copied = {section: dict(table) for section, table in values.items()}
    return Layer(copied, {f"{s}.{k}": origin for s, table in copied.items() for k in table})


def _preset_layer(name: str, origin: str) -> Layer:
    if name not in preset_names():
        raise SettingsError(
            f"unknown preset {name!r} (from {origin}){nearest(name, preset_names())};"
            f" there is {', '.join(preset_names())}"
        )
    text = (files("dsdmae_cli") / "presets" / f"{name}.toml").read_text(encoding="utf-8")
    return _checked_layer(tomllib.loads(text), f"preset {name}")


def _file_layer(path: Path) -> tuple[Layer, str | None]:
    values = read_toml(path)
    preset = values.pop("preset", None)
    if preset is not None and not isinstance(preset, str):
        raise SettingsError(f"preset in {path} must be a preset's name, got {preset!r}")
    return _checked_layer(values, str(path)), preset


def _environment_layer(environ: Mapping[str, str]) -> Layer:
    values: Values = {}
    origin: dict[str, str] = {}
    for variable in sorted(environ):
        if not variable.startswith("DSDMAE_") or variable in _NOT_SETTINGS:
            continue
        section, _, key = variable.removeprefix("DSDMAE_").lower().partition("_")
        if section not in SECTIONS or not key:
            raise SettingsError(
                f"unknown environment variable {variable}{_nearest_variable(variable)}; settings are DSDMAE_SECTION_KEY"
                f" with a section of {', '.join(SECTIONS)} (for example DSDMAE_TRAIN_EPOCHS=5)"
            )
        values.setdefault(section, {})[key] = Word(environ[variable])
        origin[f"{section}.{key}"] = f"environment variable {variable}"
    return Layer(values, origin)


def _nearest_variable(variable: str) -> str:
    _, _, key = variable.removeprefix("DSDMAE_").partition("_")
    known = [*_NOT_SETTINGS, *(f"DSDMAE_{section.upper()}_{key}" for section in SECTIONS if key)]
    return nearest(variable, known)


def _command_line_layer(flags: Mapping[str, Any], assignments: list[str]) -> Layer:
    """Flags and --set in one: whichever way a person names a method, what they say of it beside is about that one."""
    spoken, assigned = _flag_layer(flags), _assignment_layer(assignments)
    both = {
        section: spoken.values.get(section, {}) | assigned.values.get(section, {})
        for section in spoken.values.keys() | assigned.values.keys()
    }
    return Layer(both, spoken.origin | assigned.origin)


def _flag_layer(flags: Mapping[str, Any]) -> Layer:
    from dsdmae_cli.settings.flags import FLAGS

    names = {dotted: flag for flag, dotted in FLAGS.items()}
    values: Values = {}
    origin: dict[str, str] = {}
    for dotted, value in flags.items():
        if value is None:
            continue
        section, _, key = dotted.partition(".")
        values.setdefault(section, {})[key] = Word(value) if isinstance(value, str) else value
        origin[dotted] = names[dotted]
    return Layer(values, origin)


def _assignment_layer(assignments: list[str]) -> Layer:
    values: Values = {}
    origin: dict[str, str] = {}
    for text in assignments:
        dotted, equals, value = text.partition("=")
        section, dot, key = dotted.strip().partition(".")
        if not (equals and dot and key) or section not in SECTIONS:
            raise SettingsError(
                f"--set takes SECTION.KEY=VALUE with a section of {', '.join(SECTIONS)}, got {text!r}"
                f"{nearest(section, [s for s in SECTIONS if s != section])} (for example --set optim.weight_decay=0.1)"
            )
        values.setdefault(section, {})[key] = Word(value.strip())
        origin[f"{section}.{key}"] = f"--set {' '.join(text.split())}"
    return Layer(values, origin)


def _merge(layers: list[Layer]) -> tuple[Values, dict[str, str]]:
    """Lay the layers over each other, lowest first.

    A layer that names another plugin keeps only what all plugins of that kind share: the mask ratio of DSdMAE's
    preset is no mask ratio for MAE.
    """
    values: Values = {section: {} for section in SECTIONS}
    origin: dict[str, str] = {}
    for layer in layers:
        for section, table in layer.values.items():
            if section in NAMED:
                key, kind, shared = NAMED[section]
                before = values[section].get(key, shared.model_fields[key].default)
                after = table.get(key, before)
                if after != before:
                    kept = _shared_keys(kind, shared, str(after))
                    values[section] = {k: v for k, v in values[section].items() if k in kept}
            values[section].update(table)
        origin.update(layer.origin)
    return values, origin


def _shared_keys(kind: plugins.Kind, shared: type[BaseModel], name: str) -> set[str]:
    """The keys of a section that mean the same for the plugin `name` as for the one named below it."""
    keys = set(shared.model_fields)
    try:
        spec = plugins.find(kind, name).spec
    except PluginError:
        return keys  # validation will say so, and from where the name came
    # A preset's patch size is a ViT's; a convolutional stem would refuse it or shrink by it.
    return keys - {"patch_size"} if getattr(spec, "own_patch_size", False) else keys


def _validate(values: Values, origin: dict[str, str]) -> Loaded:
    sections: dict[str, Any] = {}
    for section in SECTIONS:
        model = section_class(section, values[section], origin)
        sections[section] = _validate_section(section, model, values[section], origin)
    settings = Settings(**sections)
    sources = {
        f"{section}.{key}": origin.get(f"{section}.{key}", "default") if key in values[section] else "default"
        for section, table in tables(settings).items()
        for key in table
    }
    return Loaded(settings, sources)


def section_class(section: str, values: Mapping[str, Any], origin: Mapping[str, str] | None = None) -> type[BaseModel]:
    """The class that validates a section: its plugin's own, where a plugin is named.

    Raises:
        PluginError: the plugin is not there or is broken.
    """
    if section not in NAMED:
        return OptimSettings if section == "optim" else TrainSettings
    key, kind, shared = NAMED[section]
    name = str(values.get(key, shared.model_fields[key].default))
    dotted = f"{section}.{key}"
    try:
        return plugins.find(kind, name).spec.settings
    except PluginError as error:
        raise PluginError(f"{dotted} = {name!r}{_where(dotted, origin or {})}: {error}") from error


def _validate_section(
    section: str, model: type[BaseModel], values: dict[str, Any], origin: dict[str, str]
) -> BaseModel:
    fields = {key_of(name, field): field for name, field in model.model_fields.items()}
    given: dict[str, Any] = {}
    for key, value in values.items():
        dotted = f"{section}.{key}"
        if key not in fields:
            raise SettingsError(
                f"unknown setting {dotted}{_where(dotted, origin)}{nearest(key, list(fields))};"
                f" [{section}] has {', '.join(fields)} here"
            )
        given[key] = _meant(value, fields[key])
        no_path = given[key] == "" and admits(fields[key], Path)  # pathlib would take it for the current folder
        if no_path or _stray_bool(given[key], fields[key]):
            raise SettingsError(_not_allowed(dotted, given[key], fields[key], origin))
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


def _where(dotted: str, origin: Mapping[str, str]) -> str:
    return f" (from {origin[dotted]})" if dotted in origin else ""


def _not_allowed(dotted: str, got: Any, field: FieldInfo, origin: Mapping[str, str]) -> str:
    return f"{dotted} = {got!r}{_where(dotted, origin)} is not allowed; it takes {allowed(field)}"


def _one_line(section: str, fields: Mapping[str, FieldInfo], error: ValidationError, origin: Mapping[str, str]) -> str:
    """The first fault in words: which key, what was got and from where, what is allowed."""
    first = error.errors()[0]
    if not first["loc"]:  # a rule between several keys; its author wrote the message
        return f"[{section}] {first['msg'].removeprefix('Value error, ')}"
    key = str(first["loc"][0])
    dotted = f"{section}.{key}"
    if first["type"] == "value_error":
        return f"{dotted} = {first['input']!r}{_where(dotted, origin)}: {first['msg'].removeprefix('Value error, ')}"
    return _not_allowed(dotted, first["input"], fields[key], origin)


def resolve(settings: Settings) -> Settings:
    """Replace every "auto" that settings and specs alone decide; pure but for a folder's look at its images.

    The device, precision, compilation and micro-batch are left to the recipe, which knows the hardware.
    """
    data_spec = plugins.find("dataset", settings.data.dataset).spec
    size = settings.data.image_size
    if size == "auto":
        own = data_spec.image_size
        size = plugins.load(own)(settings.data) if isinstance(own, str) else own
    augment = {
        key: data_spec.augment[key] for key in ("crop_scale", "flip", "shift") if getattr(settings.data, key) == "auto"
    }
    patch = settings.backbone.patch_size
    if patch == "auto" and not plugins.find("backbone", settings.backbone.name).spec.own_patch_size:
        patch = _auto_patch_size(size)
    lr, warmup, epochs = settings.optim.lr, settings.optim.warmup_epochs, settings.train.epochs
    tenth = max(1, round(epochs / 10))
    train = {key: tenth for key in ("knn_every", "checkpoint_every") if getattr(settings.train, key) == "auto"}
    resolved = settings.model_copy(
        update={
            "data": settings.data.model_copy(update={"image_size": size, **augment}),
            "backbone": settings.backbone.model_copy(update={"patch_size": patch}),
            "optim": settings.optim.model_copy(
                update={
                    "lr": settings.optim.base_lr * settings.train.batch_size / 256 if lr == "auto" else lr,
                    "warmup_epochs": 0.04 * epochs if warmup == "auto" else warmup,
                }
            ),
            "train": settings.train.model_copy(update=train),
        }
    )
    _check_together(resolved)
    return resolved


def _auto_patch_size(image_size: int) -> int:
    """The divisor of the image's side that is nearest, by ratio, to the paper's choice.

    That is 16x16 patches up to 128 px (32/2, 96/6); beyond, the 16 px of ImageNet's ViTs.
    """
    wanted = image_size / 16 if image_size <= 128 else 16
    divisors = [n for n in range(1, image_size + 1) if image_size % n == 0]
    return min(divisors, key=lambda n: max(n / wanted, wanted / n))


def _check_together(settings: Settings) -> None:
    """Rules between sections, in resolved settings."""
    warmup, epochs = settings.optim.warmup_epochs, settings.train.epochs
    if not isinstance(warmup, str) and warmup >= epochs:
        raise SettingsError(
            f"optim.warmup_epochs = {warmup:g} must be below train.epochs = {epochs}; lower it or train longer"
        )
    lr = settings.optim.lr
    if not isinstance(lr, str) and settings.optim.min_lr > lr:
        raise SettingsError(f"optim.min_lr = {settings.optim.min_lr:g} must not exceed the peak rate {lr:g}")
    method = plugins.find("method", settings.method.name).spec
    backbone = plugins.find("backbone", settings.backbone.name).spec
    if method.needs_subset and not backbone.encodes_subset:
        raise SettingsError(
            f"method {settings.method.name!r} drops patches, and backbone {settings.backbone.name!r} cannot encode"
            " a subset of them; use a vit-* backbone, or a method that drops none (dsdmae)"
        )
