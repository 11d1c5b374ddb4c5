"""Packaged presets: which there are, of which kind, and the layers that several of them make. No torch here.

A preset is of one kind, the folder that it lies in: a whole recipe (quick, denoiser), a dataset, a size of the network
or a method. At most one of each kind is named, in any order: a dataset stands above a recipe, a size above a dataset, a
method above a size. What a preset says only beside another one stands in its tables [with.OTHER.SECTION], and what it
says of the dataset that it names alone in [with.DATASET.SECTION]: the side of digits is none for photographs.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

from dsdmae_cli.config.schema import PRETRAIN, Schema, Values
from dsdmae_cli.config.sources import Layer, checked_layer
from dsdmae_cli.errors import SettingsError, nearest

# From the lowest to the highest, by folder.
KINDS = {"recipes": "recipe", "datasets": "dataset", "sizes": "size", "methods": "method"}


def presets_by_kind(schema: Schema[Any] = PRETRAIN) -> dict[str, list[str]]:
    """A command's packaged presets, sorted, by kind; without kinds of which it has none."""
    if schema.presets is None:
        return {}
    folders = {kind: _folder(schema, kind) for kind in KINDS}
    return {
        kind: sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml"))
        for kind, folder in folders.items()
        if folder.is_dir()
    }


def split(presets: str | Sequence[str]) -> list[str]:
    """The names in what a person gave; one text may hold several between commas."""
    texts = [presets] if isinstance(presets, str) else presets
    return [name.strip(" ") for text in texts for name in text.split(",")]


def read_preset(schema: Schema[Any], kind: str, name: str) -> dict[str, Any]:
    """What a preset's file holds."""
    return tomllib.loads((_folder(schema, kind) / f"{name}.toml").read_text(encoding="utf-8"))


def preset_layers(
    presets: str | Sequence[str], origin: str, schema: Schema[Any], dataset: str | None = None
) -> list[Layer]:
    """A layer for each preset, the lowest first.

    Args:
        presets: their names.
        origin: who names them, for messages: "--preset".
        dataset: that is named above them; None = theirs is taken.

    Raises:
        SettingsError: there is no such preset, or two are of one kind.
    """
    by_kind = presets_by_kind(schema)
    known = [name for names in by_kind.values() for name in names]
    chosen: dict[str, str] = {}
    for name in dict.fromkeys(split(presets)):
        if name not in known:
            there = f"there is {', '.join(known)}" if known else "this command has none; leave it out"
            raise SettingsError(f"unknown preset {name!r} (from {origin}){nearest(name, known)}; {there}")
        kind = next(kind for kind, names in by_kind.items() if name in names)
        if kind in chosen:
            raise SettingsError(
                f"presets {chosen[kind]} and {name} (from {origin}) are both a {KINDS[kind]}; give one of them"
            )
        chosen[kind] = name
    if dataset is None and "datasets" in chosen:
        dataset = read_preset(schema, "datasets", chosen["datasets"]).get("data", {}).get("dataset")
    return [_layer(schema, kind, chosen[kind], set(chosen.values()), dataset) for kind in KINDS if kind in chosen]


def _layer(schema: Schema[Any], kind: str, name: str, beside: set[str], dataset: str | None) -> Layer:
    values: Values = read_preset(schema, kind, name)
    own = values.get("data", {}).get("dataset")
    if own is not None and dataset in (None, own):
        beside = {*beside, str(own)}
    for other, tables in values.pop("with", {}).items():
        for section, table in tables.items() if other in beside else ():
            values[section] = values.get(section, {}) | table
    return checked_layer(values, f"preset {name}", schema)


def _folder(schema: Schema[Any], kind: str) -> Traversable:
    return files("dsdmae_cli").joinpath("presets", schema.presets or "", kind)
