"""What is known of an encoder that was opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dsdmae_cli.artifacts import trained
from dsdmae_cli.artifacts.open import open_encoder
from dsdmae_cli.runs.build import build_method


def test_the_work_of_pre_training_is_counted_where_somebody_asks(
    encoder_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole method is built for that: in 30 times the time that the encoder takes."""
    built: list[object] = []

    def build(*given: Any) -> Any:
        built.append(given)
        return build_method(*given)

    monkeypatch.setattr(trained, "build_method", build)
    found = open_encoder(str(encoder_run), None, backbone=None, image_size=None, seed=0)
    assert not built
    before = torch.get_rng_state()
    assert found.flops == found.flops is not None
    assert len(built) == 1
    assert torch.equal(torch.get_rng_state(), before)
