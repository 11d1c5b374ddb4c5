"""What settings a command takes: its sections, flags and presets, and the class that validates each section."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from pydantic import BaseModel

from dsdmae_cli import plugins
from dsdmae_cli.config.flags import FINETUNE_FLAGS, FLAGS, PROBE_FLAGS
from dsdmae_cli.errors import PluginError
from dsdmae_cli.settings.judge import FinetuneSettings, ProbeSection, ProbeSettings
from dsdmae_cli.settings.models import BackboneSettings, DataSettings, MethodSettings, Settings

S = TypeVar("S", bound=BaseModel)
Values = dict[str, dict[str, Any]]


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


@dataclass(frozen=True)
class Loaded(Generic[S]):
    """Validated settings and, for every "section.key", where its value came from."""

    settings: S
    sources: dict[str, str] = field(compare=False)


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
    "probe": ("kind", "probe", ProbeSection),
}
ALL_SECTIONS = tuple(dict.fromkeys(section for schema in SCHEMAS.values() for section in schema.sections))


def schema_of(values: Mapping[str, Any]) -> Schema[Any]:
    """The schema of settings that were written down: a section that no other command has tells."""
    return FINETUNE if "finetune" in values else PROBE if "probe" in values else PRETRAIN


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
        raise PluginError(f"{dotted} = {name!r}{where(dotted, origin or {})}: {error}") from error


def where(dotted: str, origin: Mapping[str, str]) -> str:
    """Where a value came from, in brackets for a message; empty where that is not known."""
    return f" (from {origin[dotted]})" if dotted in origin else ""
