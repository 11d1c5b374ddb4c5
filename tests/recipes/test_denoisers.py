"""Files of a denoiser's weights: what one holds, what makes one, and what is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import Run, digit_folder, train, undigested
from PIL import Image
from safetensors.torch import load_file
from small_runs import UNTAUGHT

from dsdmae_cli.artifacts.denoiser import load_denoiser, save_denoiser
from dsdmae_cli.config.compose import load
from dsdmae_cli.config.resolve import resolve
from dsdmae_cli.errors import CheckpointError, SettingsError
from dsdmae_cli.runs.build import build_method


def test_a_file_holds_what_denoising_needs(weights: Path, tmp_path: Path) -> None:
    state = load_file(weights)
    assert {name.split(".")[0] for name in state} == {"student", "decoder"}
    assert {tensor.dtype for tensor in state.values()} == {torch.float16}
    denoiser = load_denoiser(weights=weights)
    assert denoiser.settings.data.dataset == "folder:pictures"  # no folder of the machine it was trained on
    assert denoiser.image_size == 16
    save_denoiser(denoiser.network, denoiser.settings, tmp_path / "again.safetensors")
    assert load_denoiser(weights=tmp_path / "again.safetensors").sha256 == denoiser.sha256
    assert (tmp_path / "again.safetensors").read_bytes() == weights.read_bytes()


def test_a_run_is_a_denoiser(denoise: Run, weights: Path, photo: Image.Image, tmp_path: Path) -> None:
    digits = digit_folder(tmp_path / "digits")
    train(digits, tmp_path / "run", "method.residual=true", "train.epochs=1")
    denoiser = load_denoiser(run=tmp_path / "run")
    save_denoiser(denoiser.network, denoiser.settings, tmp_path / "w.safetensors", dtype=torch.float32)
    images = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(load_denoiser(weights=tmp_path / "w.safetensors")(images), denoiser(images))
    with pytest.raises(CheckpointError, match="holds an encoder alone"):
        load_denoiser(weights=tmp_path / "run" / "encoder.safetensors")


def test_weights_that_are_none(weights: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    metadata, state = undigested(weights), load_file(weights)
    state["student.vit.norm.bias"] = torch.zeros(7)
    save_file(state, tmp_path / "shape.safetensors", metadata)
    with pytest.raises(CheckpointError, match=r"do not fit: student.vit.norm.bias is \(7,\), not \(32,\)"):
        load_denoiser(weights=tmp_path / "shape.safetensors")
    (tmp_path / "text.safetensors").write_text("no tensors at all")
    for name in ("text.safetensors", "gone.safetensors"):
        with pytest.raises(CheckpointError, match=name):
            load_denoiser(weights=tmp_path / name)
    save_file({"x": torch.zeros(1)}, tmp_path / "bare.safetensors")
    with pytest.raises(CheckpointError, match="no denoiser of dsdmae"):
        load_denoiser(weights=tmp_path / "bare.safetensors")


def test_a_method_without_pixels_cannot_denoise(tmp_path: Path) -> None:
    settings = resolve(load(assignments=[*UNTAUGHT, "method.lambda=0"], environ={}).settings)
    with pytest.raises(SettingsError, match="cannot denoise"):
        save_denoiser(build_method(settings), settings, tmp_path / "w.safetensors")
