"""Published weights of anyone's plugin, and a folder with an encoder alone: probed, fine-tuned, embedded, exported."""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from helpers import cli, one_line
from small_runs import judge, tune

from dsdmae_cli import checkpoint
from dsdmae_cli.artifacts.open import open_encoder
from dsdmae_cli.artifacts.subject import allowed, completions, parse, taken_over
from dsdmae_cli.errors import PluginError
from dsdmae_cli.settings.models import BackboneSettings

SPECS = """
from pydantic import Field
from dsdmae_builtin.backbones import ViTSettings
from dsdmae_cli.plugins import BackboneSpec

class HubSettings(ViTSettings):
    embed_dim: int = 32
    depth: int = 1
    num_heads: int = 2
    pretrained: bool = Field(False, description="start from the published weights")

HUB = BackboneSpec(summary="a ViT with weights", build="hub_net:build", argument="NAME", settings=HubSettings,
                   image_size="hub_net:image_size")
LONE = BackboneSpec(summary="the same without an argument", build="hub_net:build", settings=HubSettings,
                    image_size="hub_net:image_size")
FORGOT = BackboneSpec(summary="without the setting", build="hub_net:build", image_size="hub_net:image_size")
"""
NET = """
import torch
from dsdmae_builtin.vit import ViT

def image_size(settings):
    return 16

def build(settings, side):
    if not settings.pretrained:
        return ViT(settings, side)
    net = ViT(settings, 16)  # the weights fit patches of a pixel, the program's choice for images of 16
    generator = torch.Generator().manual_seed(7)
    for parameter in net.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) / 8)
    net.set_image_size(side)
    return net
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A distribution with three backbones, as pip lays it out."""
    site = tmp_path / "site"
    info = site / "dsdmae_hub-2.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: dsdmae-hub\nVersion: 2.0\n")
    entries = "hub = hub_specs:HUB\nlone = hub_specs:LONE\nforgot = hub_specs:FORGOT\n"
    (info / "entry_points.txt").write_text(f"[dsdmae.backbones]\n{entries}")
    (site / "hub_specs.py").write_text(SPECS)
    (site / "hub_net.py").write_text(NET)
    monkeypatch.syspath_prepend(str(site))
    for module in ("hub_specs", "hub_net"):
        monkeypatch.delitem(sys.modules, module, raising=False)


@pytest.fixture
def digits(encoder_run: Path) -> str:
    return f"folder:{encoder_run.parent / 'digits'}"


@pytest.fixture
def weights(installed: None) -> str:
    """The name of the published weights, before any resampling."""
    return open_encoder("hub:small", None, backbone=None, image_size=None, seed=0).weights_sha256


@pytest.mark.usefixtures("installed")
def test_it_is_named_as_any_other() -> None:
    assert "published weights (hub:NAME, lone, timm:NAME)" in allowed()
    assert completions("") == ["scratch", "pixels", "hub:", "lone", "timm:", "hf:", "packaged", "packaged-white-noise"]
    assert (parse("hub:small").kind, parse("lone").kind) == ("published", "published")
    assert taken_over("lone")[0] == {"backbone": {"name": "lone", "pretrained": True, "patch_size": 1}}
    with pytest.raises(PluginError, match=r"'forgot' of dsdmae-hub 2.0 .* have no `pretrained`"):
        parse("forgot")


@pytest.mark.parametrize("subject", ["hub:small", "lone"])
def test_its_weights_are_loaded(weights: str, subject: str) -> None:
    found = open_encoder(subject, None, backbone=None, image_size=None, seed=0)
    assert (found.kind, found.name, found.encoder.image_size, found.notes) == ("published", subject, 16, ())
    assert (found.weights_sha256, found.encoder.grid) == (weights, (16, 16))
    larger = open_encoder(subject, None, backbone=None, image_size=32, seed=0)
    assert larger.encoder.grid == (32, 32)
    state = larger.encoder.timm_state()
    assert torch.equal(state["patch_embed.proj.weight"], found.encoder.timm_state()["patch_embed.proj.weight"])


def test_it_is_probed(weights: str, digits: str, tmp_path: Path) -> None:
    words = (f"data.dataset={digits}", "probe.kind=knn", "probe.k=1")
    result = judge("hub:small", tmp_path / "probed", *words)
    assert (result["subject"], result["backbone"], result["weights_sha256"]) == ("hub:small", "hub:small", weights)
    # Patches are those of the weights also where the images are larger than theirs.
    larger = judge("hub:small", tmp_path / "larger", *words, "data.image_size=32")
    assert larger["image_size"] == 32
    assert tomllib.loads((tmp_path / "larger" / "settings.toml").read_text())["backbone"]["patch_size"] == 1


def test_it_is_fine_tuned_and_what_comes_of_it_is_opened(weights: str, digits: str, tmp_path: Path) -> None:
    result = tune("hub:small", tmp_path / "tuned", f"data.dataset={digits}", "train.epochs=1")
    assert (result["subject"], result["weights_sha256"]) == ("hub:small", weights)
    tuned = open_encoder(str(tmp_path / "tuned"), None, backbone=None, image_size=None, seed=0)
    assert tuned.backbone.model_dump()["pretrained"] is False  # nothing is fetched for weights that are in the file
    assert tuned.weights_sha256 != weights


def test_it_is_embedded_and_exported(
    weights: str, digits: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, out, err = cli(capfd, "embed", "hub:small", "--dataset", digits, "--split", "test", "--device", "cpu",
                         "--precision", "fp32", "--json", "--out", tmp_path / "f.npz")  # fmt: skip
    assert code == 0, err
    assert (json.loads(out)["weights_sha256"], json.loads(out)["images"]) == (weights, 10)
    code, out, err = cli(capfd, "export", "hub:small", "--to", "timm", "--json", "--out", tmp_path / "out")
    assert code == 0, err
    assert json.loads(out)["weights_sha256"] == weights
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    assert checkpoint.weights_sha256(model.state_dict()) == weights


@pytest.mark.usefixtures("installed")
def test_random_weights_are_not_fetched_in_secret(weights: str) -> None:
    settings = BackboneSettings.model_validate({"name": "vit-tiny"})
    assert settings.without_weights() is settings
    found = open_encoder("hub:small", None, backbone=_given(pretrained=False), image_size=None, seed=0)
    assert found.weights_sha256 != weights
    assert "random weights: pretrained = false" in found.notes[0]


def _given(**values: object) -> BackboneSettings:
    from hub_specs import HubSettings  # type: ignore[import-not-found]

    given = HubSettings(name="hub:small", **values)
    assert isinstance(given, BackboneSettings)
    return given


# -- a folder with an encoder alone


def test_a_folder_alone_is_judged_as_its_run(encoder_run: Path, encoder_alone: Path, tmp_path: Path) -> None:
    same = ("top1", "confusion", "weights_sha256", "method", "pretrain_epochs", "pretrain_flops")
    quick = ("probe.kind=knn", "probe.k=1")
    ran, alone = (judge(s, tmp_path / f"probed-{s.name}", *quick) for s in (encoder_run, encoder_alone))
    assert {key: ran[key] for key in same} == {key: alone[key] for key in same}
    ran, alone = (tune(s, tmp_path / f"tuned-{s.name}", "train.epochs=1") for s in (encoder_run, encoder_alone))
    assert ran["classifier_sha256"] == alone["classifier_sha256"]


def test_a_folder_alone_is_embedded_and_exported(
    encoder_run: Path, encoder_alone: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, subject in (("run", encoder_run), ("folder", encoder_alone)):
        words = ("--split", "test", "--device", "cpu", "--precision", "fp32", "--no-cache")
        code, _, err = cli(capfd, "embed", subject, *words, "--out", tmp_path / f"{name}.npz")
        assert code == 0, err
        code, _, err = cli(capfd, "export", subject, "--to", "timm", "--out", tmp_path / f"{name}-timm")
        assert code == 0, err
    with np.load(tmp_path / "run.npz") as ran, np.load(tmp_path / "folder.npz") as alone:
        np.testing.assert_array_equal(ran["features"], alone["features"])
    ran_file, alone_file = (tmp_path / f"{name}-timm" / "model.safetensors" for name in ("run", "folder"))
    assert ran_file.read_bytes() == alone_file.read_bytes()


def test_a_fine_tuned_run_is_embedded_on_its_own_images(
    tuned_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, out, err = cli(capfd, "embed", tuned_run, "--split", "test", "--json", "--out", tmp_path / "f.npz")
    assert code == 0, err
    assert json.loads(out)["images"] == 10


def test_a_probe_leaves_no_weights(encoder_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    judge(encoder_run, tmp_path / "probed", "probe.kind=knn", "probe.k=1")
    code, _, err = cli(capfd, "export", tmp_path / "probed", "--to", "timm", "--out", tmp_path / "out")
    assert code == 2
    assert f"leaves no weights; name what it judged: {encoder_run}" in one_line(err)
