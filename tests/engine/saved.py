"""Checkpoints to save and to know again."""

from __future__ import annotations

from pathlib import Path

import torch

from dsdmae_cli import checkpoint
from dsdmae_cli.checkpoint import Checkpoint

FILES = ("manifest.json", "model.safetensors", "state.json", "training.safetensors")


def made(step: int) -> Checkpoint:
    """A checkpoint whose every part tells its step."""
    model = {"weight": torch.full((3, 5), float(step)), "count": torch.tensor(step)}
    training = {"optimizer/step/weight": torch.tensor(float(step)), "half": torch.ones(2, dtype=torch.bfloat16)}
    return Checkpoint(step, model, training, {"seconds": 1.5, "scaler": {}}, {"train": {"epochs": step}})


def save_two(folder: Path) -> Path:
    """The same folder, with the checkpoints of steps 1 and 2."""
    for step in (1, 2):
        checkpoint.save(folder, made(step), keep=2)
    return folder


def assert_is(found: Checkpoint | None, step: int) -> None:
    assert found is not None
    wanted = made(step)
    assert (found.step, found.state, found.settings) == (step, wanted.state, wanted.settings)
    for mine, theirs in ((found.model, wanted.model), (found.training, wanted.training)):
        assert mine.keys() == theirs.keys()
        for name, tensor in mine.items():
            assert tensor.dtype == theirs[name].dtype
            assert torch.equal(tensor, theirs[name])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
