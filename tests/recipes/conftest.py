"""What tests of commands share: a run that was never interrupted, and a denoiser that has learned nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers import Run, cli, masked_folder, train
from PIL import Image
from small_runs import PLACES, RANDOM, UNTAUGHT

from dsdmae_cli.artifacts.denoiser import save_denoiser
from dsdmae_cli.config.compose import load
from dsdmae_cli.config.resolve import resolve
from dsdmae_cli.runs.build import build_method


@pytest.fixture(scope="module")
def resident(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that was never interrupted; look at it, or copy it."""
    out = tmp_path_factory.mktemp("run")
    train(digits, out, *RANDOM, *PLACES["resident"])
    return out


@pytest.fixture(scope="session")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real digits with a mask each, 24 pictures to train and 6 to test; look at it, or copy it."""
    return masked_folder(tmp_path_factory.mktemp("masked") / "digits", train=24, test=6)


@pytest.fixture(scope="session")
def masked_run(masked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished pre-training run on squares of those pictures, their masks left alone; look at it, or copy it."""
    out = tmp_path_factory.mktemp("pretrained")
    train(masked, out, "train.knn_every=1")
    return out


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A denoiser of 16x16 pixels that has learned nothing: what it does to pixels is small and random."""
    settings = resolve(load(assignments=list(UNTAUGHT), environ={}).settings)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_denoiser(build_method(settings), settings, path)
    return path


@pytest.fixture
def denoise(weights: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    """`dsdmae denoise WORDS` by that denoiser, in this process."""
    return lambda *words: cli(capfd, "denoise", "--weights", weights, "--device", "cpu", *words)


@pytest.fixture
def photo() -> Image.Image:
    """Noise on a ramp from dark to light, 50 pixels wide and 37 high."""
    pixels = np.random.default_rng(0).normal(0, 20, (37, 50, 3)) + np.linspace(60, 200, 50)[:, None]
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
