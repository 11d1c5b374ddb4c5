"""What is exported of weights that this program did not pre-train is the same network when it is read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import layouts
import pytest
import torch
from helpers import settings
from layouts import SIZE
from safetensors.torch import load_file, save_file
from small_runs import exported

from dsdmae_cli import plugins
from dsdmae_cli.artifacts.beginning import open_beginning
from dsdmae_cli.artifacts.format import save_encoder
from dsdmae_cli.artifacts.header import read_metadata
from dsdmae_cli.artifacts.open import open_encoder
from dsdmae_cli.artifacts.opened import Opened
from dsdmae_cli.artifacts.subject import parse
from dsdmae_cli.config.describe import tables
from dsdmae_cli.config.resolve import resolve
from dsdmae_cli.errors import CheckpointError, PluginError
from dsdmae_cli.runs.build import build_backbone
from dsdmae_cli.settings.models import BackboneSettings
from dsdmae_cli.settings.size import Size

IMAGES = 2 * torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) - 1


def opened(path: Path, backbone: BackboneSettings | None = None) -> Opened:
    found = open_encoder(str(path), None, backbone=backbone, image_size=None, seed=0)
    found.encoder.eval()
    return found


def tiny(**said: Any) -> BackboneSettings:
    spec = plugins.find("backbone", "vit-tiny").spec
    made: BackboneSettings = spec.settings(name="vit-tiny", **said)
    return made


@pytest.mark.parametrize("said", [{"num_heads": 4}, {"normalization": "none"}])
def test_what_was_said_of_somebodys_weights_is_in_their_export(said: dict[str, Any], tmp_path: Path) -> None:
    torch.save(layouts.plain_vit(0), tmp_path / "theirs.pth")
    backbone = tiny(**said)
    exported(tmp_path / "theirs.pth", "timm", tmp_path / "ours", backbone=backbone)
    before, after = opened(tmp_path / "theirs.pth", backbone), opened(tmp_path / "ours")
    torch.testing.assert_close(after.encoder(IMAGES), before.encoder(IMAGES), rtol=0, atol=0)
    # The shapes alone tell another network.
    assert (opened(tmp_path / "theirs.pth").encoder(IMAGES) - before.encoder(IMAGES)).abs().max() > 0.01
    assert after.mean == before.mean
    assert "read as vit-tiny: as the file says" in after.notes[0]
    values, _ = parse(str(tmp_path / "ours")).taken_over()  # what pretrain --from and probe begin with
    assert values["backbone"].items() >= said.items()
    assert values["data"] == {"image_size": SIZE, "channels": 3}


def test_pixels_of_hugging_faces_weights_are_kept(tmp_path: Path) -> None:
    torch.save(layouts.as_hugging_face(layouts.plain_vit(0)), tmp_path / "theirs.pth")
    exported(tmp_path / "theirs.pth", "timm", tmp_path / "ours")
    assert opened(tmp_path / "ours").mean == opened(tmp_path / "theirs.pth").mean == (0.5, 0.5, 0.5)


def test_an_encoder_that_was_fine_tuned_is_the_same_without_its_head(tuned_run: Path, tmp_path: Path) -> None:
    exported(tuned_run, "timm", tmp_path / "ours", head=False)
    before, after = opened(tuned_run), opened(tmp_path / "ours")
    images = torch.rand(2, 3, *[before.encoder.image_size] * 2)  # type: ignore[list-item]
    torch.testing.assert_close(after.encoder(images), before.encoder(images), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("{", "is damaged"),
        ("[]", "no table with a name"),
        ('{"name": "vit-tiny", "depth": "two"}', "is damaged"),
        ('{"name": "gone"}', "'gone' is not installed"),
    ],
)
def test_a_backbone_that_is_damaged_is_one_line(table: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "theirs.safetensors"
    save_file(layouts.plain_vit(0), path, {"backbone": table})
    with pytest.raises((CheckpointError, PluginError)) as error:
        opened(path)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_an_encoder_begins_a_run_where_what_its_method_needed_is_gone(digits: Path, tmp_path: Path) -> None:
    """Nothing but the encoder is in its file, and the method is not built."""
    written = resolve(settings(digits, f"method.tokenizer={tmp_path / 'gone'}", method="beit").settings)
    encoder = build_backbone(written.backbone, written.data.image_size, 0)
    save_encoder(encoder, tables(written), 1, tmp_path / "theirs.safetensors")
    begun = open_beginning(str(tmp_path / "theirs.safetensors"), written)
    for name, tensor in encoder.timm_state().items():
        assert torch.equal(begun.encoder.timm_state()[name], tensor), name


@pytest.mark.parametrize(("size", "taken"), [(32, 32), ((16, 32), [16, 32])])
def test_an_export_for_other_images_is_judged_with_those(
    size: Size, taken: object, encoder_run: Path, tuned_run: Path, tmp_path: Path
) -> None:
    """probe brought it back to the images that it learned from, and embed did not."""
    for name, run in (("encoder", encoder_run), ("classifier", tuned_run)):
        exported(run, "timm", tmp_path / name, image_size=size)
        values, _ = parse(str(tmp_path / name)).taken_over()
        assert values["data"]["image_size"] == taken
    assert parse(str(encoder_run)).taken_over()[0]["data"]["image_size"] == 16


def test_weights_of_ours_say_their_backbone_in_their_settings_alone(encoder_run: Path, tmp_path: Path) -> None:
    exported(encoder_run, "timm", tmp_path / "ours")
    metadata = read_metadata(tmp_path / "ours" / "model.safetensors")
    assert "backbone" not in metadata
    assert json.loads(metadata["settings"])["backbone"]["name"] == opened(encoder_run).backbone.name
    assert load_file(tmp_path / "ours" / "model.safetensors").keys() == opened(encoder_run).encoder.timm_state().keys()
