"""`dsdmae export`: what timm makes of the files, held against the encoder; the denoiser; where it writes.

Model cards are in test_export_card.py, ONNX in test_export_onnx.py.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from helpers import cli, listing, one_line
from PIL import Image
from small_runs import exported

from dsdmae_builtin.backbones import BEiTViTSettings, TimmSettings
from dsdmae_cli.artifacts.classifier import timm_arguments
from dsdmae_cli.artifacts.denoiser import load_denoiser
from dsdmae_cli.artifacts.header import read_metadata
from dsdmae_cli.artifacts.open import open_encoder
from dsdmae_cli.errors import CheckpointError, SettingsError
from dsdmae_cli.recipes.export import summary
from dsdmae_cli.runs.build import build_backbone
from dsdmae_cli.tasks.classifier import Network


@pytest.mark.parametrize("image_size", [None, 32])
def test_timm_loads_the_folder(encoder_run: Path, tmp_path: Path, image_size: int | None) -> None:
    said = exported(encoder_run, "timm", tmp_path / "out", image_size=image_size)
    assert listing(tmp_path / "out") == {"model.safetensors", "config.json"}
    assert said["load_with"] == f"timm.create_model('local-dir:{tmp_path / 'out'}', pretrained=True)"
    model = eval(str(said["load_with"]), {"timm": timm}).eval()
    encoder = open_encoder(str(encoder_run), None, backbone=None, image_size=image_size, seed=0).encoder.eval()
    config = timm.data.resolve_model_data_config(model)
    side = image_size or 16
    assert config["input_size"] == (3, side, side)
    assert list(config["mean"]) == list(config["std"]) == [0.5] * 3
    images = torch.rand(4, 3, side, side) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(model(images), encoder(images).mean(dim=1), rtol=1e-5, atol=1e-5)


def test_timm_adds_a_classifier(encoder_run: Path, tmp_path: Path) -> None:
    exported(encoder_run, "timm", tmp_path / "out")
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True, num_classes=10)
    assert model(torch.zeros(1, 3, 16, 16)).shape == (1, 10)
    encoder = open_encoder(str(encoder_run), None, backbone=None, image_size=None, seed=0).encoder
    assert torch.equal(model.blocks[0].mlp.fc1.weight, encoder.timm_state()["blocks.0.mlp.fc1.weight"])


def test_a_backbone_of_timms_own(tmp_path: Path) -> None:
    backbone = TimmSettings(name="timm:convnext_atto", pretrained=False, normalization="timm")
    said = exported("timm:convnext_atto", "timm", tmp_path / "out", backbone=backbone, image_size=64)
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    found = open_encoder("timm:convnext_atto", None, backbone=backbone, image_size=64, seed=0)
    assert said["mean"] == found.mean == tuple(timm.data.resolve_model_data_config(model)["mean"])
    pixels = torch.rand(2, 3, 64, 64)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (found.mean, found.std))
    with torch.no_grad():
        theirs = model.forward_features((pixels - mean) / std).mean(dim=(2, 3))
        ours = found.encoder.eval()(pixels * 2 - 1).mean(dim=1)
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)


def test_an_exported_folder_is_an_encoder_again(encoder_run: Path, tmp_path: Path) -> None:
    exported(encoder_run, "timm", tmp_path / "small")
    before = open_encoder(str(encoder_run), None, backbone=None, image_size=None, seed=0)
    again = open_encoder(str(tmp_path / "small"), None, backbone=None, image_size=None, seed=0)
    assert (again.weights_sha256, again.name, again.flops) == (before.weights_sha256, "small", before.flops)
    exported(encoder_run, "timm", tmp_path / "large", image_size=32)
    large = open_encoder(str(tmp_path / "large"), None, backbone=None, image_size=None, seed=0)
    assert (large.encoder.image_size, large.images_seen) == (32, 80)


def test_no_path_of_the_authors_machine_is_exported(encoder_run: Path, tmp_path: Path) -> None:
    exported(encoder_run, "hf", tmp_path / "out", licence="mit")
    for file in (tmp_path / "out").iterdir():
        assert str(encoder_run.parent).encode() not in file.read_bytes(), file.name
    assert "folder:digits" in (tmp_path / "out" / "README.md").read_text()


# -- a fine-tuned network


def test_timm_loads_the_classifier_and_scores_as_the_run_did(
    encoder_run: Path, tuned_run: Path, tmp_path: Path
) -> None:
    said = exported(tuned_run, "timm", tmp_path / "out")
    result = json.loads((tuned_run / "result.json").read_text())
    assert said["classes"] == [str(digit) for digit in range(10)]
    assert said["classifier_sha256"] == result["classifier_sha256"]
    assert f"classes        10: {', '.join('0123456789')}\n" in summary(said)
    model = eval(str(said["load_with"]), {"timm": timm}).eval()
    assert model.pretrained_cfg["label_names"] == said["classes"]
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    right = []
    for file in sorted((encoder_run.parent / "digits" / "test").rglob("*.png")):
        answer = model(transform(Image.open(file).convert("RGB")).unsqueeze(0)).argmax()
        right.append(model.pretrained_cfg["label_names"][answer] == file.parent.name)
    assert len(right) == result["num_images"]
    assert np.mean(right) == pytest.approx(result["top1"])


def test_a_classifier_for_larger_images(tuned_run: Path, tmp_path: Path) -> None:
    said = exported(tuned_run, "timm", tmp_path / "large", image_size=32)
    opened = open_encoder(str(tuned_run), None, backbone=None, image_size=32, seed=0, head=True)
    again = open_encoder(str(tmp_path / "large"), None, backbone=None, image_size=None, seed=0, head=True)
    assert opened.tuned is not None
    assert again.tuned is not None
    assert said["classifier_sha256"] == opened.tuned.sha256 != again.tuned.sha256
    images = torch.rand(3, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        expected = opened.tuned.network.eval()(images)
        torch.testing.assert_close(again.tuned.network.eval()(images), expected)
        model = timm.create_model(f"local-dir:{tmp_path / 'large'}", pretrained=True).eval()
        torch.testing.assert_close(model(images), expected, rtol=1e-5, atol=1e-5)


def test_the_encoder_of_a_fine_tuned_network_alone(tuned_run: Path, tmp_path: Path) -> None:
    said = exported(tuned_run, "timm", tmp_path / "out", head=False)
    assert "classes" not in said
    notes = said["notes"]
    assert isinstance(notes, list)
    assert "its head (head.bias, head.weight) is left out" in notes[0]
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    assert model.num_classes == 0


def test_a_head_that_does_not_fit_is_told(tuned_run: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = tuned_run / "classifier.safetensors"
    metadata, state = read_metadata(file), load_file(file)
    save_file(state, tmp_path / "fewer.safetensors", metadata | {"classes": '["a", "b"]'})
    with pytest.raises(CheckpointError, match=r"do not fit: head.weight is \(10, 32\), not \(2, 32\)"):
        exported(tmp_path / "fewer.safetensors", "timm", tmp_path / "out")
    save_file(state, tmp_path / "none.safetensors", metadata | {"classes": "["})
    with pytest.raises(CheckpointError, match=r"names of the classes in .* are damaged"):
        exported(tmp_path / "none.safetensors", "timm", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "pool", "pooling"),
    [
        ("vit_tiny_patch16_224", "mean", {"global_pool": "avg", "fc_norm": False}),
        ("vit_tiny_patch16_224", "cls", {"global_pool": "token"}),
        ("test_convnext", "mean", None),  # a norm between pooling and classifier
    ],
)
def test_timm_is_told_to_pool_as_we_do(name: str, pool: str, pooling: dict[str, Any] | None) -> None:
    options = {"depth": 1} if name.startswith("vit") else {}
    backbone = TimmSettings(name=f"timm:{name}", pretrained=False, normalization="timm", options=options)
    network = Network(build_backbone(backbone, 64, 0), 5, pool, std=1.0)
    arguments = timm_arguments(network)
    if pooling is None:
        assert arguments is None
    else:
        assert arguments is not None
        assert arguments == network.backbone.timm_kwargs | pooling | {"num_classes": 5}
    assert network.training


def test_a_head_that_has_learned_next_to_nothing_is_no_proof() -> None:
    """Its logits are alike however features are pooled: timm's BEiT takes the class token's."""
    settings = BEiTViTSettings(patch_size=8, embed_dim=48, depth=1, num_heads=2)
    backbone = build_backbone(settings, 32, 0)
    for pool, pooling in (("mean", None), ("cls", "token")):
        network = Network(backbone, 5, pool, std=1e-7)  # type: ignore[arg-type]
        network.head.bias.data.fill_(1e-3)
        found = timm_arguments(network)
        assert (found or {}).get("global_pool") == pooling


def test_timm_would_answer_otherwise(encoder_run: Path, tmp_path: Path) -> None:
    from small_runs import tune

    data = (f"data.dataset=folder:{encoder_run.parent / 'digits'}", "data.image_size=64")
    tune("scratch", tmp_path / "run", *data, "backbone.name=timm:test_convnext", "train.epochs=1")
    with pytest.raises(SettingsError, match=r"pools its features in another way than run was .* --no-head"):
        exported(tmp_path / "run", "timm", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# -- the denoiser


def test_a_denoiser(encoder_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "my denoiser.safetensors"
    said = exported(encoder_run, "denoiser", out)
    assert said["weights_sha256"] == load_denoiser(weights=out).sha256, "as dsdmae denoise --json has it"
    assert said["load_with"] == f"dsdmae denoise --weights '{out}' PICTURE", "as a shell takes it"
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        theirs = load_denoiser(weights=out)(images)
        ours = load_denoiser(run=encoder_run)(images)
    torch.testing.assert_close(theirs, ours, rtol=0, atol=2e-2)  # stored in half precision


def test_a_denoiser_needs_a_run(
    encoder_run: Path, tuned_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = encoder_run / "encoder.safetensors"
    for subject, form, said in (
        (file, "denoiser", "needs a run's directory"),
        ("packaged", "denoiser", "needs a run's directory with its checkpoints, and packaged is none"),
        (file, "denoiser-onnx", "holds an encoder alone"),
        ("pixels", "denoiser-onnx", "or the word packaged or packaged-white-noise, and pixels is none"),
        (tuned_run, "denoiser-onnx", "fine-tuned a classifier"),
    ):
        out = tmp_path / ("d.onnx" if form == "denoiser-onnx" else "d.safetensors")
        code, _, err = cli(capfd, "export", subject, "--to", form, "--out", out)
        assert code == 2
        assert said in one_line(err)
    assert listing(tmp_path) == set()


# -- where it writes


def test_what_is_there_is_kept(encoder_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "taken"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    command = ["export", encoder_run, "--to", "timm", "--out", folder]
    code, out, err = cli(capfd, *command)
    assert (code, out) == (2, "")
    assert "is not empty" in one_line(err)
    code, out, err = cli(capfd, *command, "--force", "--json")
    assert code == 0
    assert json.loads(out)["files"] == ["model.safetensors", "config.json"]
    assert listing(folder) == {"notes.txt", "model.safetensors", "config.json"}


@pytest.mark.parametrize(
    ("form", "name", "says"),
    [
        ("onnx", "encoder.pt", "must end in .onnx"),
        ("denoiser", "denoiser.pt", "must end in .safetensors"),
        ("denoiser-onnx", "denoiser.safetensors", "must end in .onnx"),
        ("onnx", "there.onnx", "exists; choose another path"),
        ("timm", "there.onnx", "is a file"),
        ("hf", "run", "is a run's directory"),
    ],
)
def test_refused_paths(
    encoder_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], form: str, name: str, says: str
) -> None:
    (tmp_path / "there.onnx").write_text("")
    shutil.copytree(encoder_run, tmp_path / "run", ignore=lambda *_: ["checkpoints", "figures"])
    before = listing(tmp_path)
    code, _, err = cli(capfd, "export", encoder_run, "--to", form, "--out", tmp_path / name)
    assert code == 2
    assert says in one_line(err)
    assert listing(tmp_path) == before


def test_a_recipe_in_the_environment_is_passed_over_aloud(
    encoder_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DSDMAE_PRESET", "cifar10,vit-small")
    monkeypatch.setenv("DSDMAE_CONFIG", str(tmp_path / "none.toml"))
    code, _, err = cli(capfd, "export", encoder_run, "--to", "timm", "--out", tmp_path / "out")
    assert code == 0
    for line in (f"DSDMAE_CONFIG={tmp_path / 'none.toml'}", "DSDMAE_PRESET=cifar10,vit-small"):
        assert f"{line} is about training and does not count here" in err.replace("\n", "")


def test_foreign_weights_from_the_command_line(
    encoder_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import load_file, save_file

    save_file(load_file(encoder_run / "encoder.safetensors"), tmp_path / "foreign.safetensors")
    command = ["export", tmp_path / "foreign.safetensors", "--to", "hf", "--out", tmp_path / "out", "--image-size", 16]
    network = ["--backbone", "vit-tiny"]
    for setting in ("patch_size=4", "embed_dim=32", "depth=1", "num_heads=2"):
        network += ["--set", f"backbone.{setting}"]
    code, out, err = cli(capfd, *command, *network)
    assert code == 0, err
    assert "none of dsdmae's" in (tmp_path / "out" / "README.md").read_text()
    assert out.startswith("wrote ")
