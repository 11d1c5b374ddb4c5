"""Weights that are not whole, or no numbers, are refused where they are opened, and not taken for others."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import layouts
import pytest
import torch
from layouts import State
from safetensors.torch import load_file, save_file

from dsdmae_cli.artifacts.beginning import open_beginning
from dsdmae_cli.artifacts.header import read_metadata
from dsdmae_cli.artifacts.open import open_encoder
from dsdmae_cli.artifacts.packaged import ALL
from dsdmae_cli.artifacts.subject import parse
from dsdmae_cli.errors import CheckpointError
from dsdmae_cli.settings.resolved import ResolvedSettings


def refusal(path: Path, teacher: bool = False) -> str:
    with pytest.raises(CheckpointError) as error:
        open_encoder(str(path), None, backbone=None, image_size=None, seed=0, teacher=teacher)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("kept", ["decoder", "nothing"])
def test_a_denoiser_without_its_encoder_is_no_encoder(kept: str, tmp_path: Path) -> None:
    """Its network was drawn at random, in silence."""
    shipped, file = Path(str(ALL[0].find())), tmp_path / "mine.safetensors"
    metadata = {key: value for key, value in read_metadata(shipped).items() if key != "tensors_sha256"}
    state = {name: tensor for name, tensor in load_file(shipped).items() if name.startswith(kept)}
    assert bool(state) == (kept == "decoder")
    save_file(state, file, metadata)
    assert "do not fit: missing " in refusal(file)
    settings = parse(str(file)).settings()
    assert isinstance(settings, ResolvedSettings)
    with pytest.raises(CheckpointError, match="do not fit: missing "):
        open_beginning(str(file), settings)


def test_an_encoder_that_diverged(encoder_run: Path, tmp_path: Path) -> None:
    whole, file = encoder_run / "encoder.safetensors", tmp_path / "mine.safetensors"
    state = {**load_file(whole), "norm.bias": torch.full((32,), torch.inf)}
    save_file(state, file, {key: value for key, value in read_metadata(whole).items() if key != "tensors_sha256"})
    assert "values in norm.bias that are not finite; its training had diverged" in refusal(file)


@pytest.mark.parametrize("teacher", [False, True])
def test_a_checkpoint_whose_encoder_diverged(
    teacher: bool, encoder_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = shutil.copytree(encoder_run, tmp_path / "run")
    (run / "encoder.safetensors").unlink()
    fill: Callable[..., None] = torch.nn.Module.load_state_dict  # type: ignore[assignment]

    def diverged(module: torch.nn.Module, state: State, *more: object, **how: object) -> None:
        fill(module, {name: tensor * torch.nan for name, tensor in state.items()}, *more, **how)

    monkeypatch.setattr(torch.nn.Module, "load_state_dict", diverged)
    assert "not finite; its training had diverged" in refusal(run, teacher)


@pytest.mark.parametrize(
    ("state", "name", "change", "words"),
    [
        (layouts.as_hugging_face(layouts.plain_vit(0)), "encoder.layer.0.attention.attention.key.weight",
         lambda t: t.flatten(), "contradict each other"),
        (layouts.plain_vit(0), "patch_embed.proj.weight", lambda t: t[:0], "contradict each other"),
        (layouts.beit_vit(0), "rel_pos_bias.relative_position_bias_table", lambda t: t[:2], "contradict each other"),
        (layouts.plain_vit(0), "blocks.0.mlp.fc2.weight", lambda t: t.flatten(), "contradict each other"),
        (layouts.plain_vit(0), "norm.bias", lambda t: t.to_sparse(), "norm.bias as a sparse tensor"),
        (layouts.plain_vit(0), "norm.bias", lambda t: t.to("meta"), "norm.bias as a meta tensor"),
    ],
)  # fmt: skip
def test_somebodys_weights_of_impossible_shapes_or_kinds_are_one_line(
    state: State, name: str, change: Callable[[torch.Tensor], torch.Tensor], words: str, tmp_path: Path
) -> None:
    torch.save({**state, name: change(state[name])}, tmp_path / "odd.pth")
    assert words in refusal(tmp_path / "odd.pth")
