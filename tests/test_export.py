"""`dsdmae export`: what timm, the Hugging Face hub and onnxruntime make of the files, held against the encoder."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from helpers import cli, listing, one_line

from dsdmae_builtin.backbones import TimmSettings
from dsdmae_cli.errors import RunFailed, SettingsError
from dsdmae_cli.recipes import export as export_module
from dsdmae_cli.recipes.denoiser import load_denoiser
from dsdmae_cli.recipes.encoders import open_encoder
from dsdmae_cli.recipes.export import Form, Request, export, summary


def exported(subject: object, form: Form, out: Path, **more: object) -> dict[str, object]:
    return export(Request(str(subject), form, out, **more))  # type: ignore[arg-type]


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


# -- the model card


def test_the_model_card(encoder_run: Path, tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    run = shutil.copytree(encoder_run, tmp_path / "run")
    opened = open_encoder(str(run), None, backbone=None, image_size=None, seed=0)
    judged = {"kind": "probe", "dataset": "folder:/home/me/birds", "top1": 0.5, "top1_interval": [0.4, 0.6]}
    for name, sha in (("mine", opened.weights_sha256), ("others", "00")):
        (run / name).mkdir()
        result = {**judged, "protocol": f"protocol of {name}", "weights_sha256": sha}
        (run / name / "result.json").write_text(json.dumps(result))
    said = exported(run, "hf", tmp_path / "vit-of-digits", licence="cc-by-4.0")
    card = ModelCard.load(tmp_path / "vit-of-digits" / "README.md")
    assert (card.data.library_name, card.data.license) == ("timm", "cc-by-4.0")
    assert card.data.pipeline_tag == "image-feature-extraction"
    for words in (
        "# vit-of-digits", "`dsdmae`", "2 epochs, batch 8, seed 0", "| images seen | 80 |", opened.weights_sha256,
        f"{opened.flops:.3g} FLOP", "| probe | birds | 50.0% (40.0 to 60.0) | protocol of mine |",
        f"| k-NN | folder:digits | {opened.knn_accuracy:.1%} |", "doi:10.5815/ijigsp.2023.05.03",
    ):  # fmt: skip
        assert words in card.text, words
    assert "protocol of others" not in card.text
    assert "/home/me" not in card.text
    assert said["upload_with"] == f"hf upload YOUR-NAME/vit-of-digits {tmp_path / 'vit-of-digits'}"


def test_results_that_are_named(encoder_run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"kind": "finetune", "dataset": "x", "top1": 0.25, "weights_sha256": "00"}))
    said = exported(encoder_run, "hf", tmp_path / "out", results=(other,))
    assert "| finetune | x | 25.0% |" in (tmp_path / "out" / "README.md").read_text()
    notes = said["notes"]
    assert isinstance(notes, list)
    assert any("judged other weights" in note for note in notes)
    assert any("no --license" in note for note in notes)


def test_the_cards_code_runs(encoder_run: Path, tmp_path: Path) -> None:
    exported(encoder_run, "hf", tmp_path / "out", licence="mit")
    card = (tmp_path / "out" / "README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0].replace("THIS-FOLDER", str(tmp_path / "out"))
    names: dict[str, object] = {}
    exec(code, names)
    assert names["features"].shape == (1, 32)  # type: ignore[attr-defined]


def test_a_licence_that_is_none(encoder_run: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="is no licence identifier"):
        exported(encoder_run, "hf", tmp_path / "out", licence="My own: terms")
    assert not (tmp_path / "out").exists()


# -- ONNX


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
    monkeypatch.setattr(export_module, "TOLERANCE", difference / 1e6)
    with pytest.raises(RunFailed, match="nothing was written"):
        exported(encoder_run, "onnx", out, force=True)
    assert out.read_bytes() == before
    assert listing(tmp_path) == {"encoder.onnx"}


def test_onnx_without_its_extra(encoder_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(SettingsError, match=r"pip install 'dsdmae\[onnx\]'"):
        exported(encoder_run, "onnx", tmp_path / "encoder.onnx")


def test_the_photographs_are_real_and_in_range() -> None:
    images = export_module._photographs(48)
    assert images.shape == (8, 3, 48, 48)
    assert -1 <= images.min() < -0.9
    assert 0.9 < images.max() <= 1
    assert all(image.std() > 0.05 for image in images)


# -- the denoiser


def test_a_denoiser(encoder_run: Path, tmp_path: Path) -> None:
    exported(encoder_run, "denoiser", tmp_path / "denoiser.safetensors")
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        theirs = load_denoiser(weights=tmp_path / "denoiser.safetensors")(images)
        ours = load_denoiser(run=encoder_run)(images)
    torch.testing.assert_close(theirs, ours, rtol=0, atol=2e-2)  # stored in half precision


def test_a_denoiser_needs_a_run(encoder_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = encoder_run / "encoder.safetensors"
    code, _, err = cli(capfd, "export", file, "--to", "denoiser", "--out", tmp_path / "d.safetensors")
    assert code == 2
    assert "needs a run's directory" in one_line(err)


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


def test_foreign_weights_from_the_command_line(
    encoder_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import load_file, save_file

    save_file(load_file(encoder_run / "encoder.safetensors"), tmp_path / "foreign.safetensors")
    command = ["export", tmp_path / "foreign.safetensors", "--to", "hf", "--out", tmp_path / "out", "--image-size", 16]
    code, _, err = cli(capfd, *command)
    assert code == 2
    assert "name it with --backbone" in one_line(err)
    network = ["--backbone", "vit-tiny"]
    for setting in ("patch_size=4", "embed_dim=32", "depth=1", "num_heads=2"):
        network += ["--set", f"backbone.{setting}"]
    code, out, err = cli(capfd, *command, *network)
    assert code == 0, err
    assert "none of dsdmae's" in (tmp_path / "out" / "README.md").read_text()
    assert out.startswith("wrote ")
