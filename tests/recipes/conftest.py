from __future__ import annotations

import pytest


@pytest.fixture
def drawn() -> None:
    """Asked for by tests that look at the figures of probe and finetune."""


@pytest.fixture(autouse=True)
def _undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All others do without: drawing takes most of a small run's time."""
    if "drawn" not in request.fixturenames:
        for place in ("probe.draw", "probe.draw_choice", "finetune.draw"):
            monkeypatch.setattr(f"dsdmae_cli.recipes.{place}", lambda *given: None)
