"""What tests of settings share: settings gathered as a command gathers them, and the line that refuses them."""

from __future__ import annotations

from typing import Any

import pytest
from helpers import preset_names

from dsdmae_cli.config.compose import load
from dsdmae_cli.config.resolve import resolve
from dsdmae_cli.config.schema import Loaded
from dsdmae_cli.errors import DsdmaeError
from dsdmae_cli.settings.models import Settings

# Every preset alone, and one of each kind together.
PRESETS = [*preset_names(), "dsdmae,cifar10,vit-tiny", "cae,imagenet,vit-base"]


def loaded(*assignments: str, **places: Any) -> Loaded:
    """Settings from --set alone, unless other places are named; never from the tester's environment."""
    return load(assignments=list(assignments), **{"environ": {}, **places})


def resolved(*assignments: str, **places: Any) -> Settings:
    return resolve(loaded(*assignments, **places).settings)


def refusal(*assignments: str, **places: Any) -> str:
    """The message that settings are refused with, which must be one line."""
    with pytest.raises(DsdmaeError) as caught:
        resolved(*assignments, **places)
    assert caught.value.exit_code == 2
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message
