"""Gather settings from everywhere: defaults < preset < TOML file < environment < flags.

Nothing here imports torch. Every value remembers where it came from, so that a message can say so. What "auto" means
is decided later: by resolve.py where settings and specs suffice, by runtime.py where the hardware has a say.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from dsdmae_cli import plugins
from dsdmae_cli.config.describe import tables
from dsdmae_cli.config.schema import NAMED, PRETRAIN, Loaded, S, Schema, Values
from dsdmae_cli.config.sources import (
    Layer,
    checked_layer,
    command_line_layer,
    environment_layer,
    file_layer,
    preset_layer,
)
from dsdmae_cli.config.validate import validate
from dsdmae_cli.errors import PluginError
from dsdmae_cli.settings.models import Settings


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
    from_file, file_preset = file_layer(config, parsed, schema) if config else (Layer({}, {}), None)
    upper = [
        from_file,
        environment_layer(environ, schema),
        command_line_layer(flags or {}, assignments or [], schema),
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
    lower = [checked_layer(*base, schema)] if base else []
    lower += [preset_layer(*chosen, schema)] if chosen else []
    return validate(*_merge([*lower, *upper], schema), schema)


def from_tables(values: Values, origin: str) -> Loaded[Settings]:
    """Validate pre-training settings that were written down whole: a run's settings.toml, a checkpoint's metadata."""
    return written(PRETRAIN, values, origin)


def written(schema: Schema[S], values: Values, origin: str) -> Loaded[S]:
    """Validate a command's settings that were written down whole."""
    return validate(*_merge([checked_layer(values, origin, schema)], schema), schema)


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
