from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def folder(encoder_run: Path, tmp_path: Path) -> Path:
    """A folder with the encoder of a run and nothing else."""
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(encoder_run / "encoder.safetensors", alone)
    return alone
