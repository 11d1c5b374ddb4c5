"""Backbones that can drop no patches, and the way out to timm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from helpers import cli, digit_folder, one_line, records, settings, train
from reference import CONVNEXT, CPU, SWIN, images
from safetensors.torch import load_file
from torch import nn

from dsdmae_cli import checkpoint
from dsdmae_cli.artifacts.header import read_metadata
from dsdmae_cli.config.resolve import resolve
from dsdmae_cli.data.source import seeded
from dsdmae_cli.runs.build import build_method


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digit_folder(tmp_path_factory.mktemp("digits"), train=34, test=4)


def encoder_of(run: Path, *more: str) -> nn.Module:
    """The run's encoder as its newest checkpoint has it."""
    method = build_method(resolve(settings("digits", *more).settings))
    found, _ = checkpoint.load_newest(run / "checkpoints")
    assert found is not None
    checkpoint.load_into(method, found.model, str(run))
    return method.encoder().eval()


@torch.no_grad()
def assert_timm_agrees(result: dict[str, Any], encoder: nn.Module, prefix: int = 0) -> None:
    model = eval(result["load_with"], {"timm": timm}).eval()  # what the program tells people to type
    theirs = model.forward_features(images())
    if theirs.ndim == 4:
        channels_last = theirs.shape[-1] == encoder.width
        theirs = theirs.flatten(1, 2) if channels_last else theirs.flatten(2).transpose(1, 2)
    assert torch.equal(theirs[:, prefix:], encoder(images()))


@pytest.mark.parametrize("backbone", [SWIN, CONVNEXT], ids=["swin", "convnext"])
def test_dsdmae_trains_networks_that_can_drop_nothing(backbone: tuple[str, ...], digits: Path, tmp_path: Path) -> None:
    more = (*backbone, "train.epochs=12", "optim.lr=3e-3")
    result = train(digits, tmp_path / "run", *more)
    losses = [r["loss"] for r in records(tmp_path / "run")]
    assert len(losses) == 48
    assert sum(losses[-8:]) < 0.8 * sum(losses[:8])
    assert result["skipped_steps"] == 0
    assert_timm_agrees(result, encoder_of(tmp_path / "run", *more))


@pytest.mark.parametrize("backbone", [(), SWIN, CONVNEXT, ("backbone.name=timm:test_vit",)], ids=lambda b: str(b[:1]))
def test_all_that_is_trained_has_a_gradient(backbone: tuple[str, ...]) -> None:
    """A parameter that the features never meet would be waited for in vain by DistributedDataParallel."""
    side = 32 if "timm:test_vit" in str(backbone) else 16
    method = build_method(resolve(settings("digits", *backbone, f"data.image_size={side}").settings))
    clean = torch.rand(2, 3, side, side)
    method(clean, method.corrupt(clean, seeded(CPU, 0)))["loss"].backward()
    assert [name for name, p in method.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize("backbone", [SWIN, CONVNEXT], ids=["swin", "convnext"])
def test_mae_refuses_networks_that_can_drop_nothing(
    backbone: tuple[str, ...], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    name = backbone[0].split("=")[1]
    code, out, err = cli(capfd, "pretrain", "--method", "mae", "--backbone", name, "--out", tmp_path / "run")
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert f"method 'mae' drops patches, and backbone '{name}' cannot" in err
    assert "dsdmae" in err.split(";")[-1]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("options", ["{dims=[24]}", "{no_such_option=1}", "{depths='deep'}", "{dims=[16, 16, 24, -1]}"])
def test_options_that_timm_refuses_are_one_line(
    options: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    chosen = ("--set", f"backbone.options={options}", "--set", "data.image_size=32", "--out", tmp_path / "run")
    code, _, err = cli(capfd, "pretrain", "--dry-run", "--backbone", "timm:test_convnext", *chosen)
    assert code == 2, err
    assert "test_convnext" in one_line(err)


@pytest.mark.parametrize(
    "more", [(), ("backbone.class_token=true", "backbone.pos_embed=learn")], ids=["plain", "class"]
)
def test_timm_loads_the_encoder(more: tuple[str, ...], digits: Path, tmp_path: Path) -> None:
    result = train(digits, tmp_path / "run", *more, "train.epochs=1")
    assert_timm_agrees(result, encoder_of(tmp_path / "run", *more), prefix=len(more) // 2)
    weights = load_file(result["encoder"])
    assert not [name for name in weights if name.startswith(("student", "vit.", "teacher", "decoder"))]
    metadata = read_metadata(Path(result["encoder"]))
    assert metadata["timm_name"] == "vit_tiny_patch16_224"
    assert metadata["mean"] == "[0.5, 0.5, 0.5]"
