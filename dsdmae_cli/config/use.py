"""Settings of the commands that use an encoder as it is (`dsdmae embed`, `dsdmae export`): which images, and which
architecture where the weights do not say.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, SerializeAsAny

from dsdmae_cli.config.compose import compose
from dsdmae_cli.config.schema import Loaded, Schema, Values
from dsdmae_cli.settings.models import DEVICE, PRECISION, BackboneSettings, DataSettings, Precision, Section


class UseSettings(BaseModel):
    """The two sections that matter for a network that is not trained."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: SerializeAsAny[DataSettings]
    backbone: SerializeAsAny[BackboneSettings]


class HardwareSection(Section):
    """The part of [train] that is about where a network runs."""

    device: str = DEVICE
    precision: Precision = PRECISION


class HardwareSettings(BaseModel):
    """Where a network that is not trained runs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    train: HardwareSection


USE = Schema("embed", UseSettings)
_HARDWARE = Schema("embed", HardwareSettings)
# A whole recipe in the environment would name another dataset and backbone than those of the run in hand.
_ABOUT_TRAINING = ("DSDMAE_CONFIG", "DSDMAE_PRESET")


def passed_over() -> list[str]:
    """A remark on each variable that is set and does not count here."""
    there = [name for name in _ABOUT_TRAINING if os.environ.get(name)]
    return [f"{name}={os.environ[name]} is about training and does not count here" for name in there]


def hardware(flags: Mapping[str, Any]) -> HardwareSection:
    """Device and precision as flags say; [train] of the environment is about training.

    Raises:
        SettingsError: a value that is not allowed.
    """
    given = {dotted: value for dotted, value in flags.items() if dotted.startswith("train.")}
    return compose(_HARDWARE, flags=given, environ={}).settings.train


def given(
    flags: Mapping[str, Any], assignments: Sequence[str] | None, data_below: tuple[Values, str] | None = None
) -> tuple[DataSettings | None, BackboneSettings | None]:
    """The sections that a person said anything about; None for one that was left alone.

    Args:
        flags: {"data.dataset": ...} from the command line; those of other sections do not count here.
        assignments: "section.key=value" texts.
        data_below: {"data": table} to stand below what was given, and where it comes from.

    Raises:
        SettingsError, PluginError: as in config.compose.compose.
    """
    environ = {k: v for k, v in os.environ.items() if k not in _ABOUT_TRAINING}
    about = {dotted: value for dotted, value in flags.items() if dotted.partition(".")[0] in USE.sections}
    loaded: Loaded[UseSettings] = compose(USE, flags=about, assignments=assignments, environ=environ, base=data_below)
    said = {dotted.partition(".")[0] for dotted, source in loaded.sources.items() if source != "default"}
    data = loaded.settings.data if "data" in said else None
    return data, loaded.settings.backbone if "backbone" in said else None
