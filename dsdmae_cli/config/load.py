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
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from dsdmae_cli import plugins
from dsdmae_cli.config.describe import admits, allowed, key_of, tables
from dsdmae_cli.config.flags import FINETUNE_FLAGS, FLAGS, PROBE_FLAGS
from dsdmae_cli.errors import PluginError, SettingsError, nearest
from dsdmae_cli.settings.judge import FinetuneOptimSettings, FinetuneSettings, ProbeSettings, ProbeTrainSettings
from dsdmae_cli.settings.models import (
    BackboneSettings,
    DataSettings,
    LoopSettings,
    MethodSettings,
    OptimSettings,
    Settings,
)

S = TypeVar("S", bound=BaseModel)


@dataclass(frozen=True)
class Schema(Generic[S]):
    """What settings a command takes.

    Attributes:
        model: the class of all its sections.
        flags: flags of its own for settings, by what they set ("--epochs": "train.epochs").
        presets: folder of its presets below dsdmae_cli/presets; empty = that one itself; None = it has none.
        default_preset: what stands lowest if no preset is named.
    """

    model: type[S]
    flags: Mapping[str, str]
    presets: str | None = None
    default_preset: str | None = None

    @property
    def sections(self) -> tuple[str, ...]:
        """Names of its sections, in order."""
        return tuple(self.model.model_fields)


PRETRAIN = Schema(Settings, FLAGS, presets="", default_preset="quick")
FINETUNE = Schema(FinetuneSettings, FINETUNE_FLAGS, presets="finetune", default_preset="paper")
PROBE = Schema(ProbeSettings, PROBE_FLAGS)
SCHEMAS: dict[str, Schema[Any]] = {"pretrain": PRETRAIN, "finetune": FINETUNE, "probe": PROBE}
SECTIONS = PRETRAIN.sections
# The key of a section that names its plugin, and the class that holds what all plugins of the kind share.
NAMED: dict[str, tuple[str, plugins.Kind, type[BaseModel]]] = {
    "data": ("dataset", "dataset", DataSettings),
    "backbone": ("name", "backbone", BackboneSettings),
    "method": ("name", "method", MethodSettings),
}
ALL_SECTIONS = tuple(dict.fromkeys(section for schema in SCHEMAS.values() for section in schema.sections))
# Environment variables of ours that are no settings.
_NOT_SETTINGS = {"DSDMAE_TEST_DATA", "DSDMAE_PRESET", "DSDMAE_CONFIG"}

Values = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Layer:
    """Values from one place; `origin` maps "section.key" to words for a message ("--epochs")."""

    values: Values
    origin: dict[str, str]


@dataclass(frozen=True)
class Loaded(Generic[S]):
    """Validated settings and, for every "section.key", where its value came from."""

    settings: S
    sources: dict[str, str] = field(compare=False)


def preset_names(schema: Schema[Any] = PRETRAIN) -> list[str]:
    """A command's packaged presets, sorted."""
    if schema.presets is None:
        return []
    found = _preset_folder(schema).iterdir()
    return sorted(f.name.removesuffix(".toml") for f in found if f.name.endswith(".toml"))


def _preset_folder(schema: Schema[Any]) -> Traversable:
    return files("dsdmae_cli").joinpath("presets", *(schema.presets or "").split())


def load(
    *,
    preset: str | None = None,
    config: Path | None = None,
    flags: Mapping[str, Any] | None = None,
    assignments: list[str] | None = None,
    environ: Mapping[str, str] | None = None,
    base: Settings | None = None,
) -> Loaded[Settings]:
    """The settings of a pre-training run: `compose` with PRETRAIN.

    Args:
        base: complete settings to stand below all others, in place of the default preset: those of a run that resumes.
    """
    below = (tables(base), "the run") if base else None
    return compose(
        PRETRAIN,
        preset=preset,
        config=config,
        flags=flags,
        assignments=assignments,
        environ=environ,
        base=below,
        use_default_preset=base is None,
    )


def compose(
    schema: Schema[S],
    *,
    preset: str | None = None,
    config: Path | None = None,
    parsed: Mapping[str, Any] | None = None,
    flags: Mapping[str, Any] | None = None,
    assignments: list[str] | None = None,
    environ: Mapping[str, str] | None = None,
    base: tuple[Values, str] | None = None,
    use_default_preset: bool = True,
) -> Loaded[S]:
    """Compose and validate the settings of a command.

    Args:
        preset: name of a packaged preset; by default the config file's `preset` key, then DSDMAE_PRESET, then
            "quick" if no place names a dataset.
        config: a TOML file; by default DSDMAE_CONFIG.
        parsed: what `config` holds, where it was read already (a pipe can be read once).
        flags: {"section.key": value} from the command line; None values are ignored.
        assignments: "section.key=value" texts from --set; they stand above flags.
        environ: the environment; os.environ by default.
        base: values to stand below all others, and where they come from: those of a run that resumes or is judged.
        use_default_preset: whether the command's default preset stands in where none is named.

    Raises:
        SettingsError: an unknown key, a value that is not allowed, a file that is not TOML.
        PluginError: a plugin that is not there.
    """
    environ = os.environ if environ is None else environ
    config = config or (Path(environ["DSDMAE_CONFIG"]) if environ.get("DSDMAE_CONFIG") else None)
    from_file, file_preset = _file_layer(config, parsed, schema) if config else (Layer({}, {}), None)
    upper = [
        from_file,
        _environment_layer(environ, schema),
        _command_line_layer(flags or {}, assignments or [], schema),
    ]

    named = (
        (preset, "--preset"),
        (environ.get("DSDMAE_PRESET") or None, "DSDMAE_PRESET"),
        (file_preset, f"preset in {config}"),
    )
    chosen = next(((name, origin) for name, origin in named if name is not None), None)
    if chosen is None and use_default_preset and schema.default_preset is not None:
        # Pre-training's default is about one dataset; naming another leaves it out.
        about_others = schema.model is Settings and any("dataset" in layer.values.get("data", {}) for layer in upper)
        chosen = None if about_others else (schema.default_preset, "default")
    lower = [_checked_layer(*base, schema)] if base else []
    lower += [_preset_layer(*chosen, schema)] if chosen else []
    return _validate(*_merge([*lower, *upper], schema), schema)


def from_tables(values: Values, origin: str) -> Loaded[Settings]:
    """Validate pre-training settings that were written down whole: a run's settings.toml, a checkpoint's metadata."""
    return written(PRETRAIN, values, origin)


def written(schema: Schema[S], values: Values, origin: str) -> Loaded[S]:
    """Validate a command's settings that were written down whole."""
    return _validate(*_merge([_checked_layer(values, origin, schema)], schema), schema)


def schema_of(values: Mapping[str, Any]) -> Schema[Any]:
    """The schema of settings that were written down: a section that no other command has tells."""
    return FINETUNE if "finetune" in values else PROBE if "probe" in values else PRETRAIN


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


def _checked_layer(values: Mapping[str, Any], origin: str, schema: Schema[Any]) -> Layer:
    for section, table in values.items():
        if section not in schema.sections:
            raise SettingsError(
                f"unknown section [{section}] in {origin}{nearest(section, list(schema.sections))};"
                f" there is {', '.join(schema.sections)}"
            )
        if not isinstance(table, dict):
            raise SettingsError(f"{section} in {origin} must be a table of settings, got {table!r}")
    copied = {section: dict(table) for section, table in values.items()}
    return Layer(copied, {f"{s}.{k}": origin for s, table in copied.items() for k in table})


def _preset_layer(name: str, origin: str, schema: Schema[Any]) -> Layer:
    names = preset_names(schema)
    if name not in names:
        there = f"there is {', '.join(names)}" if names else "this command has none; leave it out"
        raise SettingsError(f"unknown preset {name!r} (from {origin}){nearest(name, names)}; {there}")
    text = (_preset_folder(schema) / f"{name}.toml").read_text(encoding="utf-8")
    return _checked_layer(tomllib.loads(text), f"preset {name}", schema)


def _file_layer(path: Path, parsed: Mapping[str, Any] | None, schema: Schema[Any]) -> tuple[Layer, str | None]:
    values = read_toml(path) if parsed is None else dict(parsed)
    preset = values.pop("preset", None)
    if preset is not None and not isinstance(preset, str):
        raise SettingsError(f"preset in {path} must be a preset's name, got {preset!r}")
    return _checked_layer(values, str(path), schema), preset


def _environment_layer(environ: Mapping[str, str], schema: Schema[Any]) -> Layer:
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


def _command_line_layer(flags: Mapping[str, Any], assignments: list[str], schema: Schema[Any]) -> Layer:
    """Flags and --set in one: whichever way a person names a method, what they say of it beside is about that one."""
    spoken, assigned = _flag_layer(flags, schema), _assignment_layer(assignments, schema)
    both = {
        section: spoken.values.get(section, {}) | assigned.values.get(section, {})
        for section in spoken.values.keys() | assigned.values.keys()
    }
    return Layer(both, spoken.origin | assigned.origin)


def _flag_layer(flags: Mapping[str, Any], schema: Schema[Any]) -> Layer:
    names = {dotted: flag for flag, dotted in schema.flags.items()}
    values: Values = {}
    origin: dict[str, str] = {}
    for dotted, value in flags.items():
        if value is None:
            continue
        section, _, key = dotted.partition(".")
        values.setdefault(section, {})[key] = Word(value) if isinstance(value, str) else value
        origin[dotted] = names[dotted]
    return Layer(values, origin)


def _assignment_layer(assignments: list[str], schema: Schema[Any]) -> Layer:
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


def _merge(layers: list[Layer], schema: Schema[Any]) -> tuple[Values, dict[str, str]]:
    """Lay the layers over each other, lowest first.

    A layer that names another plugin keeps only what all plugins of that kind share: the mask ratio of DSdMAE's
    preset is no mask ratio for MAE.
    """
    values: Values = {section: {} for section in schema.sections}
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


def _validate(values: Values, origin: dict[str, str], schema: Schema[S]) -> Loaded[S]:
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


def section_class(
    section: str,
    values: Mapping[str, Any],
    origin: Mapping[str, str] | None = None,
    schema: Schema[Any] = PRETRAIN,
) -> type[BaseModel]:
    """The class that validates a section: its plugin's own, where a plugin is named.

    Raises:
        PluginError: the plugin is not there or is broken.
    """
    if section not in NAMED:
        own = schema.model.model_fields[section].annotation
        assert isinstance(own, type)
        return own
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


def resolve(settings: S) -> S:
    """Replace every "auto" that settings and specs alone decide; pure but for a folder's look at its images.

    The device, precision, compilation and micro-batch are left to the recipe, which knows the hardware.
    """
    of: Any = settings  # which sections there are depends on the command
    update: dict[str, BaseModel] = {"data": resolve_data(of.data, getattr(of, "method", None))}
    update["backbone"] = resolve_backbone(of.backbone, update["data"].image_size)  # type: ignore[attr-defined]
    if "optim" in type(settings).model_fields:
        update["optim"] = _resolve_optim(of.optim, of.train)
    update["train"] = _resolve_train(of.train)
    resolved = settings.model_copy(update=update)
    _check_together(resolved)
    return resolved


def resolve_data(data: DataSettings, method: MethodSettings | None = None) -> DataSettings:
    """The data section with "auto" replaced, for images that a method (None = none in particular) learns from."""
    spec = plugins.find("dataset", data.dataset).spec
    size = data.image_size
    if size == "auto":
        own = spec.image_size
        size = plugins.load(own)(data) if isinstance(own, str) else own
    if data.crop_from is not None and data.crop_from < size:
        raise SettingsError(f"data.crop_from = {data.crop_from} must be at least data.image_size = {size}")
    augment = {**spec.augment, **methods_augment(data, method)}
    auto = {key: augment[key] for key in ("crop_scale", "flip", "shift") if getattr(data, key) == "auto"}
    return data.model_copy(update={"image_size": size, **auto})


def methods_augment(data: DataSettings, method: MethodSettings | None) -> dict[str, Any]:
    """What a method rather than the dataset says that "auto" means for data.crop_scale, data.flip and data.shift.

    A dataset that has no crops or no mirror has a reason in its images: of a digit of 8x8 pixels a twelfth of the area
    says nothing, and the mirror image of a grating of 45 degrees is one of 135. No method can know that, so that there
    the dataset has the last word, and a method's wishes are for the other datasets.
    """
    if method is None:
        return {}
    own = plugins.find("dataset", data.dataset).spec.augment
    wanted = plugins.find("method", method.name).spec.augment
    return {key: value for key, value in wanted.items() if own[key] is not None and own[key] is not False}


def resolve_backbone(backbone: BackboneSettings, image_size: int) -> BackboneSettings:
    """The backbone section with "auto" replaced, for images of a size."""
    patch = backbone.patch_size
    if patch == "auto" and not plugins.find("backbone", backbone.name).spec.own_patch_size:
        patch = _auto_patch_size(image_size)
    return backbone.model_copy(update={"patch_size": patch})


def _resolve_optim(optim: OptimSettings, train: LoopSettings) -> OptimSettings:
    lr, warmup = optim.lr, optim.warmup_epochs
    share = 0.05 if isinstance(optim, FinetuneOptimSettings) else 0.04
    return optim.model_copy(
        update={
            "lr": optim.base_lr * train.batch_size / 256 if lr == "auto" else lr,
            "warmup_epochs": share * train.epochs if warmup == "auto" else warmup,
        }
    )


def _resolve_train(train: LoopSettings | ProbeTrainSettings) -> LoopSettings | ProbeTrainSettings:
    """Intervals by the length of the run; a warm-up, where it stands here."""
    epochs = train.epochs
    tenth = max(1, round(epochs / 10))
    auto = {
        "knn_every": tenth,
        "checkpoint_every": tenth,
        "score_every": 1 if epochs <= 50 else 2,
        "warmup_epochs": epochs / 9,
    }
    return train.model_copy(update={key: value for key, value in auto.items() if getattr(train, key, None) == "auto"})


def _auto_patch_size(image_size: int) -> int:
    """The divisor of the image's side that is nearest, by ratio, to the paper's choice.

    That is 16x16 patches up to 128 px (32/2, 96/6); beyond, the 16 px of ImageNet's ViTs.
    """
    wanted = image_size / 16 if image_size <= 128 else 16
    divisors = [n for n in range(1, image_size + 1) if image_size % n == 0]
    return min(divisors, key=lambda n: max(n / wanted, wanted / n))


def _check_together(settings: Any) -> None:
    """Rules between sections, in resolved settings."""
    if hasattr(settings, "optim"):
        _check_schedule(settings.optim, settings.train.epochs)
    if not hasattr(settings, "method"):
        return
    method = plugins.find("method", settings.method.name).spec
    backbone = plugins.find("backbone", settings.backbone.name).spec
    if method.needs_subset and not backbone.encodes_subset:
        raise SettingsError(
            f"method {settings.method.name!r} drops patches, and backbone {settings.backbone.name!r} cannot encode"
            " a subset of them; use a vit-* backbone, or a method that drops none (dsdmae)"
        )
    if method.needs_mask_token and not backbone.takes_mask_token:
        raise SettingsError(
            f"method {settings.method.name!r} replaces patches by a mask token, and backbone"
            f" {settings.backbone.name!r} cannot take one; use a vit-* backbone, or a method that masks none (dsdmae)"
        )


def _check_schedule(optim: OptimSettings, epochs: int) -> None:
    warmup, lr = optim.warmup_epochs, optim.lr
    if not isinstance(warmup, str) and warmup >= epochs:
        raise SettingsError(
            f"optim.warmup_epochs = {warmup:g} must be below train.epochs = {epochs}; lower it or train longer"
        )
    if not isinstance(lr, str) and optim.min_lr > lr:
        raise SettingsError(f"optim.min_lr = {optim.min_lr:g} must not exceed the peak rate {lr:g}")
