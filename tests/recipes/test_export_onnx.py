"""`dsdmae export` to ONNX: what onnxruntime makes of the files, held against the networks."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import listing
from small_runs import exported

from dsdmae_cli.artifacts import onnx as onnx_module
from dsdmae_cli.artifacts.denoiser import load_denoiser
from dsdmae_cli.artifacts.open import open_encoder
from dsdmae_cli.errors import RunFailed, SettingsError
from dsdmae_cli.pictures.onnx_network import open_onnx
from dsdmae_cli.recipes.export import summary


@pytest.mark.slow
def test_onnx(encoder_run: Path, tmp_path: Path, unchecked_shapes: None, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    out = tmp_path / "encoder.onnx"
    said = exported(encoder_run, "onnx", out, image_size=32)
    assert listing(tmp_path) == {"encoder.onnx"}
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    encoder = open_encoder(str(encoder_run), None, backbone=None, image_size=32, seed=0).encoder.eval()
    for batch in (1, 5):  # the example that was traced had two
        images = torch.rand(batch, 3, 32, 32) * 2 - 1
        features, tokens = session.run(["features", "tokens"], {"images": images.numpy()})
        with torch.no_grad():
            expected = encoder(images).numpy()
        np.testing.assert_allclose(tokens, expected, atol=1e-4)
        np.testing.assert_allclose(features, expected.mean(axis=1), atol=1e-4)
    difference = said["max_difference"]
    assert isinstance(difference, float)
    assert 0 < difference < 1e-4
    assert f"at most {difference:.1e} on 8 photographs" in summary(said)

    before = out.read_bytes()
    monkeypatch.setattr(onnx_module, "TOLERANCE", difference / 1e6)
    with pytest.raises(RunFailed, match="nothing was written"):
        exported(encoder_run, "onnx", out, force=True)
    assert out.read_bytes() == before
    assert listing(tmp_path) == {"encoder.onnx"}


def test_onnx_without_its_extra(encoder_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(SettingsError, match=r"pip install 'dsdmae\[onnx\]'"):
        exported(encoder_run, "onnx", tmp_path / "encoder.onnx")


def test_the_photographs_are_real_and_in_range() -> None:
    images = onnx_module.cut_photographs(48)
    assert images.shape == (8, 3, 48, 48)
    assert -1 <= images.min() < -0.9
    assert 0.9 < images.max() <= 1
    assert all(image.std() > 0.05 for image in images)


def test_weights_that_no_onnx_file_holds(encoder_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_module, "MOST_OF_ONNX", 2**12)
    monkeypatch.delattr(torch.onnx, "export")  # nothing is traced
    with pytest.raises(SettingsError, match=r"--to onnx: the weights of run have .* GiB .*; no other --to has"):
        exported(encoder_run, "onnx", tmp_path / "encoder.onnx")
    assert listing(tmp_path) == set()


@pytest.mark.slow
def test_onnx_of_a_classifier(tuned_run: Path, tmp_path: Path, unchecked_shapes: None) -> None:
    import onnxruntime

    said = exported(tuned_run, "onnx", tmp_path / "classifier.onnx")
    assert said["outputs"] == {"logits": [10]}
    session = onnxruntime.InferenceSession(tmp_path / "classifier.onnx", providers=["CPUExecutionProvider"])
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == said["classes"]
    opened = open_encoder(str(tuned_run), None, backbone=None, image_size=None, seed=0, head=True)
    assert opened.tuned is not None
    images = torch.rand(5, 3, 16, 16) * 2 - 1
    [logits] = session.run(["logits"], {"images": images.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(logits, opened.tuned.network.eval()(images).numpy(), atol=1e-4)
    assert logits.std() > 1e-3


@pytest.mark.slow
def test_a_denoiser_of_one_size_as_onnx(encoder_run: Path, tmp_path: Path, unchecked_shapes: None) -> None:
    """A transformer's: its positions belong to a size. tests/pictures/test_engines.py has the others."""
    said = exported(encoder_run, "denoiser-onnx", tmp_path / "denoiser.onnx")
    assert said["outputs"] == {"restored": [3, 16, 16]}
    assert "[batch, 3, 16, 16]" in summary(said)
    network = open_onnx(tmp_path / "denoiser.onnx", "it")
    assert (network.about.size_multiple, network.image_size) == (None, 16)
    images = np.random.default_rng(0).uniform(-1, 1, (5, 3, 16, 16)).astype(np.float32)
    with torch.no_grad():
        expected = load_denoiser(run=encoder_run)(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(network.predict(images), expected, atol=1e-4)
