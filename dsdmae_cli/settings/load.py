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

from dsdmae_cli import plugins
from dsdmae_cli.errors import SettingsError, nearest
from dsdmae_cli.settings.describe import allowed, key_of, tables
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
) -> Loaded:
    """Compose and validate the settings of a run.

    Args:
        preset: name of a packaged preset; by default the config file's `preset` key, then DSDMAE_PRESET, then
            "quick" if no place names a dataset.
        config: a TOML file; by default DSDMAE_CONFIG.
        flags: {"section.key": value} from the command line; None values are ignored.
        assignments: "section.key=value" texts from --set; they stand above flags.
        environ: the environment; os.environ by default.

    Raises:
        SettingsError: an unknown key, a value that is not allowed, a file that is not TOML.
        PluginError: a plugin that is not there.
    """
    environ = os.environ if environ is None else environ
    config = config or (Path(environ["DSDMAE_CONFIG"]) if environ.get("DSDMAE_CONFIG") else None)
    from_file, file_preset = _file_layer(config) if config else (Layer({}, {}), None)
    upper = [
        from_file,
        _environment_layer(environ),
        _flag_layer(flags or {}),
        _assignment_layer(assignments or []),
    ]

    preset = preset or environ.get("DSDMAE_PRESET") or file_preset
    if preset is None and not any("dataset" in layer.values.get("data", {}) for layer in upper):
        preset = DEFAULT_PRESET
    lower = [_preset_layer(preset)] if preset else []
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
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not valid TOML: {error}") from error


def parse_word(text: str) -> Any:
    """The value of a text from a flag or variable: TOML if it is TOML ("0.5", "[1, 2]", "true"), a pair if it is
    "LOW,HIGH" or "LOW..HIGH", else the text itself."""
    for candidate in (text, f"[{text.replace('..', ',')}]" if "," in text or ".." in text else text):
        try:
            return tomllib.loads(f"value = {candidate}")["value"]
        except tomllib.TOMLDecodeError:
            continue
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


def _preset_layer(name: str) -> Layer:
    if name not in preset_names():
        raise SettingsError(
            f"unknown preset {name!r}{nearest(name, preset_names())}; there is {', '.join(preset_names())}"
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
                f"unknown environment variable {variable}; settings are DSDMAE_SECTION_KEY with a section of"
                f" {', '.join(SECTIONS)} (for example DSDMAE_TRAIN_EPOCHS=5)"
            )
        values.setdefault(section, {})[key] = parse_word(environ[variable])
        origin[f"{section}.{key}"] = f"environment variable {variable}"
    return Layer(values, origin)


def _flag_layer(flags: Mapping[str, Any]) -> Layer:
    from dsdmae_cli.settings.flags import FLAGS

    names = {dotted: flag for flag, dotted in FLAGS.items()}
    values: Values = {}
    origin: dict[str, str] = {}
    for dotted, value in flags.items():
        if value is None:
            continue
        section, _, key = dotted.partition(".")
        values.setdefault(section, {})[key] = parse_word(value) if isinstance(value, str) else value
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
                " (for example --set optim.weight_decay=0.1)"
            )
        values.setdefault(section, {})[key] = parse_word(value.strip())
        origin[f"{section}.{key}"] = f"--set {text}"
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
    spec = plugins.find(kind, name).spec
    # A preset's patch size is a ViT's; a convolutional stem would refuse it or shrink by it.
    return keys - {"patch_size"} if getattr(spec, "own_patch_size", False) else keys


def _validate(values: Values, origin: dict[str, str]) -> Loaded:
    sections: dict[str, Any] = {}
    for section in SECTIONS:
        sections[section] = _validate_section(section, section_class(section, values[section]), values[section], origin)
    settings = Settings(**sections)
    sources = {
        f"{section}.{key}": origin.get(f"{section}.{key}", "default") if key in values[section] else "default"
        for section, table in tables(settings).items()
        for key in table
    }
    return Loaded(settings, sources)


def section_class(section: str, values: Mapping[str, Any]) -> type[BaseModel]:
    """The class that validates a section: its plugin's own, where a plugin is named.

    Raises:
        PluginError: the plugin is not there or is broken.
    """
    if section not in NAMED:
        return OptimSettings if section == "optim" else TrainSettings
    key, kind, shared = NAMED[section]
    name = values.get(key, shared.model_fields[key].default)
    return plugins.find(kind, str(name)).spec.settings


def _validate_section(
    section: str, model: type[BaseModel], values: dict[str, Any], origin: dict[str, str]
) -> BaseModel:
    try:
        return model(**values)
    except ValidationError as error:
        raise SettingsError(_one_line(section, model, error, origin)) from error


def _one_line(section: str, model: type[BaseModel], error: ValidationError, origin: dict[str, str]) -> str:
    """The first fault in words: which key, what was got and from where, what is allowed."""
    fields = {key_of(name, f): f for name, f in model.model_fields.items()}
    names = {key_of(name, f): name for name, f in model.model_fields.items()}
    first = error.errors()[0]
    if not first["loc"]:  # a rule between several keys; its author wrote the message
        return f"[{section}] {first['msg'].removeprefix('Value error, ')}"
    key = str(first["loc"][0])
    key = next((k for k, n in names.items() if key in (k, n)), key)
    dotted = f"{section}.{key}"
    where = f" (from {origin[dotted]})" if dotted in origin else ""
    if key not in fields:
        return f"unknown setting {dotted}{where}{nearest(key, list(fields))}; [{section}] has {', '.join(fields)} here"
    got = error.errors()[0]["input"] if len(first["loc"]) == 1 else _at_top(error, key)
    if first["type"] == "value_error":
        return f"{dotted} = {got!r}{where}: {first['msg'].removeprefix('Value error, ')}"
    return f"{dotted} = {got!r}{where} is not allowed; it takes {allowed(fields[key])}"


def _at_top(error: ValidationError, key: str) -> Any:
    # The input pydantic reports for a nested fault is the innermost value; in a pair that is half of the story,
    # but it is the half that is wrong.
    return next(e["input"] for e in error.errors() if str(e["loc"][0]) == key)


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
        # The paper cuts every image into 16x16 patches (32/2, 96/6); beyond 128 px that of ImageNet's ViTs.
        patch = max(1, size // 16) if size <= 128 else 16
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
