"""What was written down before a setting existed means what was computed then."""

from __future__ import annotations

from typing import Any

import pytest

from dsdmae_cli.config.compose import compose, from_tables
from dsdmae_cli.config.schema import PRETRAIN


@pytest.mark.parametrize(
    ("tables", "correlation"),
    [
        ({"method": {"name": "dsdmae", "noise_std": "auto"}}, 0.0),
        ({"method": {"name": "dsdmae", "noise_correlation": "auto"}}, 0.95),
        ({"method": {"name": "dsdmae", "noise_correlation": 0.5}}, 0.5),
        ({}, 0.0),
    ],
    ids=str,
)
def test_noise_was_white_before_there_was_a_choice(tables: dict[str, Any], correlation: float) -> None:
    found: Any = from_tables(tables, "settings.toml").settings
    assert found.method.correlation == correlation


def test_images_were_rgb_before_there_was_a_choice() -> None:
    assert from_tables({"data": {"dataset": "digits"}}, "settings.toml").settings.data.channels == 3
    assert from_tables({"data": {"channels": "auto"}}, "settings.toml").settings.data.channels == "auto"


def test_what_is_said_today_has_todays_defaults() -> None:
    found: Any = compose(PRETRAIN, use_default_preset=False, environ={}).settings
    assert (found.method.noise_correlation, found.method.correlation, found.data.channels) == ("auto", 0.95, "auto")


@pytest.mark.parametrize(
    ("more", "correlation"), [({"noise_std": 1.0}, 0.0), ({"noise": "photograph"}, 0.0), ({"noise": "mix"}, 0.95)]
)
def test_the_correlation_goes_with_the_levels(more: dict[str, Any], correlation: float) -> None:
    tables = {"method": {"name": "dsdmae", "noise_correlation": "auto", **more}}
    found: Any = from_tables(tables, "settings.toml").settings
    assert found.method.correlation == correlation
