"""Settings of the commands that use an encoder as it is (`dsdmae embed`, `dsdmae export`): which images, and which
architecture where the weights do not say.
"""

from __future__ import annotations

import os
from typing import Any

from pydantic import BaseModel, ConfigDict, SerializeAsAny

from dsdmae_cli.config.compose import compose
from dsdmae_cli.config.flags import FLAGS
from dsdmae_cli.config.schema import Loaded, Schema, Values
from dsdmae_cli.settings.models import BackboneSettings, DataSettings


class UseSettings(BaseModel):
    """The two sections that matter for a network that is not trained."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: SerializeAsAny[DataSettings]
    backbone: SerializeAsAny[BackboneSettings]


USE = Schema(UseSettings, {flag: FLAGS[flag] for flag in ("--dataset", "--data-dir", "--strict-data", "--backbone")})


# A whole recipe in the environment would name another dataset and backbone than those of the run in hand.
_ABOUT_TRAINING = ("DSDMAE_CONFIG", "DSDMAE_PRESET")


def passed_over() -> list[str]:
    """A remark on each variable that is set and does not count here."""
    there = [name for name in _ABOUT_TRAINING if os.environ.get(name)]
    return [f"{name}={os.environ[name]} is about training and does not count here" for name in there]


def given(
    flags: dict[str, Any], assignments: list[str] | None, data_below: tuple[Values, str] | None = None
) -> tuple[DataSettings | None, BackboneSettings | None]:
    """The sections that a person said anything about; None for one that was left alone.

    Args:
        flags: {"data.dataset": ...} from the command line.
        assignments: "section.key=value" texts.
        data_below: {"data": table} to stand below what was given, and where it comes from.

    Raises:
        SettingsError, PluginError: as in config.compose.compose.
    """
    environ = {k: v for k, v in os.environ.items() if k not in _ABOUT_TRAINING}
    loaded: Loaded[UseSettings] = compose(USE, flags=flags, assignments=assignments, environ=environ, base=data_below)
    said = {dotted.partition(".")[0] for dotted, source in loaded.sources.items() if source != "default"}
    data = loaded.settings.data if "data" in said else None
    return data, loaded.settings.backbone if "backbone" in said else None
