"""Gather settings from everywhere: defaults < presets < TOML file < environment < flags.

Nothing here imports torch. Every value remembers where it came from, so that a message can say so. What "auto" means
is decided later: by resolve.py where settings and specs suffice, by runtime.py where the hardware has a say.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from dsdmae_cli import plugins
from dsdmae_cli.config.describe import key_of, tables
from dsdmae_cli.config.presets import preset_layers
from dsdmae_cli.config.schema import NAMED, PRETRAIN, Loaded, S, Schema, Values, section_class
from dsdmae_cli.config.sources import (
    Layer,
    checked_layer,
    command_line_layer,
    environment_layer,
    file_layer,
)
from dsdmae_cli.config.validate import validate
from dsdmae_cli.errors import PluginError
from dsdmae_cli.settings.models import Section, Settings


def load(
    *,
    preset: str | Sequence[str] | None = None,
    config: Path | None = None,
    flags: Mapping[str, Any] | None = None,
    assignments: Sequence[str] | None = None,
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
    preset: str | Sequence[str] | None = None,
    config: Path | None = None,
    parsed: Mapping[str, Any] | None = None,
    flags: Mapping[str, Any] | None = None,
    assignments: Sequence[str] | None = None,
    origins: Mapping[str, str] | None = None,
    environ: Mapping[str, str] | None = None,
    base: tuple[Values, str] | None = None,
    start: Callable[[str, bool], tuple[Values, str]] | None = None,
    use_default_preset: bool = True,
) -> Loaded[S]:
    """Compose and validate the settings of a command.

    Args:
        preset: names of packaged presets, at most one of each kind, in any order; one text may hold several between
            commas. By default those of DSDMAE_PRESET, then of the config file's `preset` key, then the command's own
            (schema.default_preset).
        config: a TOML file; by default DSDMAE_CONFIG.
        parsed: what `config` holds, where it was read already (a pipe can be read once).
        flags: {"section.key": value} from the command line; None values are ignored.
        assignments: "section.key=value" texts from --set; they stand above flags.
        origins: where values of `flags` come from that no flag gave: {"method.mask_ratio": "--sweep mask-ratio"}.
        environ: the environment; os.environ by default.
        base: values to stand below all others, and where they come from: those of a run that resumes or is judged.
        start: of the weights that train.start names, and of whether the images are named, the values to stand above
            presets and below all that a person says, and where they come from; it is asked where there are such.
        use_default_preset: whether the command's default preset stands in where none is named.

    Raises:
        SettingsError: an unknown key, a value that is not allowed, a file that is not TOML.
        PluginError: a plugin that is not there.
    """
    environ = os.environ if environ is None else environ
    config = config or (Path(environ["DSDMAE_CONFIG"]) if environ.get("DSDMAE_CONFIG") else None)
    from_file, file_preset = file_layer(config, parsed, schema) if config else (Layer({}, {}), None)
    upper = [
        from_file,
        environment_layer(environ, schema),
        command_line_layer(flags or {}, assignments or (), {**_names(schema), **(origins or {})}, schema),
    ]

    datasets = _said(upper, "data", "dataset")
    begin = _begin(upper) if start is not None else None
    names = [
        (preset, "--preset"),
        (environ.get("DSDMAE_PRESET") or None, "DSDMAE_PRESET"),
        (file_preset, f"preset in {config}"),
        (_default_preset(schema, upper, begin) if use_default_preset else None, "default"),
    ]
    named = next(((preset, origin) for preset, origin in names if preset is not None), None)
    lower = [checked_layer(*base, schema)] if base else []
    if named is not None:
        lower += preset_layers(*named, schema, datasets[-1] if datasets else None)
    if start is not None and begin is not None:
        has_dataset = bool(datasets or _said(lower, "data", "dataset"))
        lower.append(checked_layer(*start(begin, has_dataset), schema))
    return validate(*_merge([*lower, *upper], schema), schema)


def _begin(layers: Sequence[Layer]) -> str | None:
    """The weights that the layers say to begin with."""
    said = _said(layers, "train", "start")
    return said[-1] if said and said[-1] not in ("none", "None") else None


def _default_preset(schema: Schema[Any], layers: Sequence[Layer], begin: str | None) -> str | None:
    """What stands in where no preset is named; it depends on what else is said."""
    tasks = _said(layers, "finetune", "task")
    has_images = bool(_said(layers, "data", "dataset") or begin)
    return schema.default_preset(has_images, tasks[-1] if tasks else None)


def _said(layers: Sequence[Layer], section: str, key: str) -> list[str]:
    """What the layers say of one setting, lowest first."""
    tables = [layer.values.get(section, {}) for layer in layers]
    return [str(table[key]) for table in tables if key in table]


def _names(schema: Schema[Any]) -> dict[str, str]:
    return {dotted: flag for flag, dotted in schema.flags.items()}


def from_tables(values: Values, origin: str) -> Loaded[Settings]:
    """Validate pre-training settings that were written down whole: a run's settings.toml, a checkpoint's metadata."""
    return written(PRETRAIN, values, origin)


def written(schema: Schema[S], values: Values, origin: str) -> Loaded[S]:
    """Validate a command's settings that were written down whole."""
    merged, origins = _merge([checked_layer(values, origin, schema)], schema)
    for section, table in merged.items():
        model = section_class(section, table, origins, schema)
        if issubclass(model, Section):
            merged[section] = {**model.written_before, **table}
    return validate(merged, origins, schema)


def _merge(layers: list[Layer], schema: Schema[Any]) -> tuple[Values, dict[str, str]]:
    """Lay the layers over each other, lowest first.

    A layer that names another plugin keeps only what all plugins of that kind share: the mask ratio of DSdMAE's
    preset is no mask ratio for MAE. What was said before any plugin was named is about none in particular, and stays
    where the plugin has such a setting: the layer scale of preset `cae` is one for whichever ViT.
    """
    values: Values = {section: {} for section in schema.sections}
    origin: dict[str, str] = {}
    for layer in layers:
        for section, table in _spelled_out(layer).items():
            if section in NAMED and NAMED[section][0] in table:
                values[section] = _kept(section, values[section], str(table[NAMED[section][0]]))
            values[section].update(table)
        origin.update(layer.origin)
    return values, origin


def _spelled_out(layer: Layer) -> Values:
    """A layer's values with the whole name of every plugin: wherever a dataset is named a path may stand."""
    spelled = dict(layer.values)
    for section, (key, kind, _) in NAMED.items():
        text = layer.values.get(section, {}).get(key)
        if isinstance(text, str) and (whole := plugins.spelled_out(kind, text)) != text:
            spelled[section] = layer.values[section] | {key: whole}
    return spelled


def _kept(section: str, values: dict[str, Any], name: str) -> dict[str, Any]:
    """What remains of a section when a layer names the plugin `name`."""
    key, kind, shared = NAMED[section]
    default = str(shared.model_fields[key].default)
    if name == str(values.get(key, default)):
        return values
    try:
        spec = plugins.find(kind, name).spec
        dropped = _keys(plugins.find(kind, default).spec.settings) - _keys(spec.settings)
    except PluginError:
        return values  # validation will say so, and from where the name came
    if key in values:
        dropped = values.keys() - _keys(shared)
    # A preset's patch size is a ViT's; a convolutional stem would refuse it or shrink by it.
    if getattr(spec, "own_patch_size", False):
        dropped = {*dropped, "patch_size"}
    return {k: v for k, v in values.items() if k not in dropped}


def _keys(model: type[BaseModel]) -> set[str]:
    return {key_of(name, field) for name, field in model.model_fields.items()}
