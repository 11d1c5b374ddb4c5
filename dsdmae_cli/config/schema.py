"""What settings a command takes: its sections and presets, and the class that validates each section. Its flags are
declared in config/flags.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from pydantic import BaseModel

from dsdmae_cli import plugins
from dsdmae_cli.config.flags import DEFAULT_PRESETS, TASK_PRESETS, flags_of
from dsdmae_cli.errors import PluginError
from dsdmae_cli.settings.judge import FinetuneSettings, ProbeSection, ProbeSettings
from dsdmae_cli.settings.models import BackboneSettings, DataSettings, MethodSettings, Settings

S = TypeVar("S", bound=BaseModel)
Values = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Schema(Generic[S]):
    """What settings a command takes.

    Attributes:
        command: its name, by which it has flags and a default preset.
        model: the class of all its sections.
        presets: folder of its presets below dsdmae_cli/presets; None = it has none.
    """

    command: str
    model: type[S]
    presets: str | None = None

    @property
    def sections(self) -> tuple[str, ...]:
        """Names of its sections, in order."""
        return tuple(self.model.model_fields)

    @property
    def flags(self) -> dict[str, str]:
        """What its flags set: {"--epochs": "train.epochs"}."""
        return {flag.name: flag.setting for flag in flags_of(self.command)}

    def default_preset(self, dataset_named: bool, task: str | None = None) -> str | None:
        """What stands lowest if no preset is named; a default about one dataset gives way where another is named.

        Args:
            task: finetune.task, where somebody says it.
        """
        if self.command == "finetune" and task in TASK_PRESETS:
            return TASK_PRESETS[task]
        return DEFAULT_PRESETS.get(self.command, (None, None))[dataset_named]


@dataclass(frozen=True)
class Loaded(Generic[S]):
    """Validated settings and, for every "section.key", where its value came from."""

    settings: S
    sources: dict[str, str] = field(compare=False)


PRETRAIN = Schema("pretrain", Settings, presets="pretrain")
TOKENIZER = Schema("tokenizer", Settings, presets="pretrain")
ABLATE = Schema("ablate", Settings, presets="pretrain")
FINETUNE = Schema("finetune", FinetuneSettings, presets="finetune")
PROBE = Schema("probe", ProbeSettings)
WORTH = Schema("worth", FinetuneSettings, presets="finetune")
# One for each kind of run; what is written down is told apart by its sections.
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
