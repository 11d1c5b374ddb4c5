"""Layouts of public code in which something tells what is easily taken for something else: the pixels that a network
wants, the average that lies beside what it is an average of, and parts that no plain ViT has.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import layouts
import pytest
import torch
from layouts import GRID, WIDTH, State
from safetensors.torch import save_file
from test_elsewhere import IMAGES, check_tokens, opened, under
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from dsdmae_cli import plugins
from dsdmae_cli.artifacts import elsewhere
from dsdmae_cli.artifacts.subject import parse
from dsdmae_cli.errors import CheckpointError

# -- pixels


def test_vitmae_of_hugging_face_has_maes_pixels(tmp_path: Path) -> None:
    """facebook/vit-mae-*: by ImageNet's mean and std; what Hugging Face calls ViTModel sees them in [-1, 1]."""
    state = layouts.plain_vit(5)
    torch.save(layouts.as_hugging_face_mae(state), tmp_path / "vitmae.pth")
    found = opened(tmp_path / "vitmae.pth")
    check_tokens(found, layouts.vit_tokens(state, layouts.normalised(IMAGES)))
    assert "named as in Hugging Face's ViTMAE" in found.notes[0]
    assert "pixels by ImageNet's mean and std (backbone.normalization changes it)" in found.notes[0]


def test_vitmae_without_its_decoder_is_known_by_its_positions(tmp_path: Path) -> None:
    """ViTMAEModel's file has the names of ViTModel's; its fixed table begins with a row of zeros."""
    state = layouts.plain_vit(5)
    state["pos_embed"][:, 0] = 0
    torch.save(layouts.as_hugging_face(state), tmp_path / "encoder.pth")
    found = opened(tmp_path / "encoder.pth")
    check_tokens(found, layouts.vit_tokens(state, layouts.normalised(IMAGES)))


@pytest.mark.parametrize(
    ("said", "imagenet"),
    [
        ({"image_mean": layouts.MEAN, "image_std": layouts.STD}, True),  # facebook/dino-vits16
        ({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}, False),
        ({"image_mean": layouts.MEAN, "image_std": layouts.STD, "do_normalize": False}, False),
        ({"image_mean": "none"}, False),
        ([], False),
    ],
)
def test_pixels_are_those_that_stand_beside_hugging_faces_weights(said: Any, imagenet: bool, tmp_path: Path) -> None:
    state = layouts.plain_vit(5)
    torch.save(layouts.as_hugging_face(state), tmp_path / "pytorch_model.bin")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    found = opened(tmp_path)
    check_tokens(found, layouts.vit_tokens(state, layouts.normalised(IMAGES) if imagenet else IMAGES))
    assert ("but normalization = imagenet by preprocessor_config.json" in found.notes[0]) == imagenet
    settings = plugins.find("backbone", "vit-tiny").spec.settings
    given = opened(tmp_path, settings(normalization="none"))
    assert given.mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("legacy", [False, True])
def test_pixels_are_those_of_timms_configuration_beside_its_weights(legacy: bool, tmp_path: Path) -> None:
    """As in timm's repositories on the hub: augreg's ViTs, under the names of MAE's, see [-1, 1]."""
    state, pixels = layouts.plain_vit(5), {"mean": [0.5] * 3, "std": [0.5] * 3}
    config = {"architecture": "vit_tiny_patch16_224", **(pixels if legacy else {"pretrained_cfg": pixels})}
    (tmp_path / "config.json").write_text(json.dumps(config))
    torch.save(state, tmp_path / "pytorch_model.bin")
    found = opened(tmp_path)
    check_tokens(found, layouts.vit_tokens(state, IMAGES))
    assert "but normalization = none by config.json" in found.notes[0]
    torch.save(state, tmp_path / "another.pth")  # which that file need not be about
    assert opened(tmp_path / "another.pth").mean == layouts.MEAN


@pytest.mark.parametrize(
    ("pixels", "mean", "words"),
    [
        ((0.5, 0.5), (0.5, 0.5, 0.5), "but normalization = none by config.json"),
        ((0.4815, 0.2686), layouts.MEAN, "config.json beside it wants mean (0.4815, 0.4815, 0.4815)"),
        ((0.485, 0.229), layouts.MEAN, ""),
    ],
)
def test_pixels_beside_a_network_of_timms(
    pixels: tuple[float, float], mean: tuple[float, ...], words: str, tmp_path: Path
) -> None:
    of_config = {"mean": [pixels[0]] * 3, "std": [pixels[1]] * 3}
    if not words:
        of_config = {"mean": list(layouts.MEAN), "std": list(layouts.STD)}
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": of_config}))
    torch.save(layouts.plain_vit(5, layer_scale=True, registers=2), tmp_path / "pytorch_model.bin")
    found = opened(tmp_path)
    assert found.backbone.name.startswith("timm:")
    assert found.mean == pytest.approx(mean)
    assert words in found.notes[0]
    assert ("config.json" in found.notes[0]) == bool(words)


def test_pixels_beside_weights_that_no_setting_says(tmp_path: Path) -> None:
    torch.save(layouts.as_hugging_face(layouts.plain_vit(5)), tmp_path / "pytorch_model.bin")
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0, 0, 0], "image_std": [1, 1, 1]}')
    assert "wants mean (0.0, 0.0, 0.0) and std (1.0, 1.0, 1.0), which backbone.norm" in opened(tmp_path).notes[0]


@pytest.mark.parametrize("shared", [True, False])
def test_simmims_pixels_are_not_beits(shared: bool, tmp_path: Path) -> None:
    state = layouts.beit_vit(3, shared)
    torch.save({"model": layouts.as_simmim(state), "epoch": 799}, tmp_path / "simmim.pth")
    found = opened(tmp_path / "simmim.pth")
    check_tokens(found, layouts.beit_tokens(state, layouts.normalised(IMAGES)))
    assert found.backbone.name == ("beit-tiny" if shared else "timm:beitv2_base_patch16_224")
    assert "named as in SimMIM" in found.notes[0]


def test_pixels_of_beit_v2(tmp_path: Path) -> None:
    """Pre-trained with --imagenet_default_mean_and_std; what tells it are the blocks for its class token."""
    state = layouts.beit_vit(3)
    torch.save({"model": {**state, "cls_pt_layers.0.norm1.weight": torch.ones(WIDTH)}}, tmp_path / "beit2.pth")
    found = opened(tmp_path / "beit2.pth")
    check_tokens(found, layouts.beit_tokens(state, layouts.normalised(IMAGES)))
    assert "no part of the backbone: cls_pt_layers" in found.notes[0]


# -- averages


@pytest.mark.parametrize(
    ("average", "other"),
    [
        ("teacher_backbone.", "student_backbone."),
        ("ema_model.module.", "model.module."),
        ("target_network.", "online_network."),
        ("teacher.backbone.", "student.backbone."),
    ],
)
def test_the_average_is_taken_before_what_it_is_an_average_of(average: str, other: str, tmp_path: Path) -> None:
    state, learner = layouts.plain_vit(1), layouts.plain_vit(9)
    torch.save({"state_dict": {**under(other, learner), **under(average, state)}}, tmp_path / "both.ckpt")
    found = opened(tmp_path / "both.ckpt")
    check_tokens(found, layouts.vit_tokens(state, layouts.normalised(IMAGES)))
    assert f"{average.rstrip('.')}, {other.rstrip('.')}: {average.rstrip('.')} is taken" in found.notes[0]


@pytest.mark.parametrize(
    ("online", "copy"),
    [
        ("backbone.", "backbone_momentum."),  # lightly: Classifier(model.backbone)
        ("backbone.", "momentum_backbone."),  # solo-learn: main_linear.py
        ("encoder.", "momentum_encoder."),  # and before 2022
        ("module.base_encoder.", "module.momentum_encoder."),  # MoCo v3: main_lincls.py
    ],
)
def test_a_momentum_copy_is_left_out_as_its_authors_do(online: str, copy: str, tmp_path: Path) -> None:
    state, average = layouts.plain_vit(1), layouts.plain_vit(9)
    torch.save({"state_dict": {**under(copy, average), **under(online, state)}}, tmp_path / "both.ckpt")
    found = opened(tmp_path / "both.ckpt")
    check_tokens(found, layouts.vit_tokens(state, layouts.normalised(IMAGES)))
    taken = online.rstrip(".")
    said = f"it holds {taken}, {copy.rstrip('.')}: {taken} is taken, and not its momentum copy, as MoCo, solo-learn"
    assert said in found.notes[0]
    torch.save({"encoder": state, "momentum_encoder": average}, tmp_path / "keys.pth")
    found = opened(tmp_path / "keys.pth")
    check_tokens(found, layouts.vit_tokens(state, layouts.normalised(IMAGES)))
    assert "it holds encoder, momentum_encoder: encoder is taken, and not its momentum copy" in found.notes[0]
    torch.save({"state_dict": under(copy, average)}, tmp_path / "alone.ckpt")
    check_tokens(opened(tmp_path / "alone.ckpt"), layouts.vit_tokens(average, layouts.normalised(IMAGES)))


@pytest.mark.parametrize("keys", [("teacher_state_dict", "model"), ("ema_weights", "weights"), ("target_net", "net")])
def test_an_average_under_a_key_of_its_own(keys: tuple[str, str], tmp_path: Path) -> None:
    state = layouts.plain_vit(1)
    content: dict[str, Any] = {keys[1]: layouts.plain_vit(9), keys[0]: state}
    content["momentum_buffer"] = {"a": torch.zeros(2)}  # of an optimiser
    torch.save(content, tmp_path / "both.pth")
    found = opened(tmp_path / "both.pth")
    check_tokens(found, layouts.vit_tokens(state, layouts.normalised(IMAGES)))
    assert f"it holds {keys[0]}, {keys[1]}: {keys[0]} is taken" in found.notes[0]


# -- parts that a plain ViT has not


def test_distilled_deit(tmp_path: Path) -> None:
    state = layouts.distilled_vit(1)
    torch.save({"model": state}, tmp_path / "deit.pth")
    found = opened(tmp_path / "deit.pth")
    check_tokens(found, layouts.vit_tokens(state, layouts.normalised(IMAGES)))
    assert (found.backbone.name, found.encoder.image_size) == ("timm:deit_base_distilled_patch16_224", 16)
    assert "left out, as no part of the backbone: head, head_dist" in found.notes[0]


@pytest.mark.parametrize("layer_scale", [True, False])
def test_mmpretrain(layer_scale: bool, tmp_path: Path) -> None:
    state = layouts.plain_vit(1, layer_scale)
    torch.save({"meta": {}, "state_dict": layouts.as_mmpretrain(state)}, tmp_path / "mm.pth")
    found = opened(tmp_path / "mm.pth")
    check_tokens(found, layouts.vit_tokens(state, layouts.normalised(IMAGES)))
    assert found.backbone.name == "vit-tiny"
    assert "backbone.normalization changes it to none, as the ViTs from Google's weights" in found.notes[0]


@pytest.mark.parametrize(
    "more",
    [{"masked_embed": (1, WIDTH)}, {"pre_logits.fc.weight": (WIDTH, WIDTH), "pre_logits.fc.bias": (WIDTH,)}],
    ids=["ibot", "timm-in21k"],
)
def test_what_no_feature_comes_from_is_left_out(more: dict[str, tuple[int, ...]], tmp_path: Path) -> None:
    state = layouts.plain_vit(1)
    torch.save({"teacher": {**state, **layouts.drawn(2, more)}}, tmp_path / "more.pth")
    found = opened(tmp_path / "more.pth")
    check_tokens(found, layouts.vit_tokens(state, layouts.normalised(IMAGES)))
    assert f"no part of the backbone: {next(iter(more)).partition('.')[0]}" in found.notes[0]


@pytest.mark.parametrize("tables", ["shared", "none"])
def test_beit_with_absolute_positions(tables: str, tmp_path: Path) -> None:
    """data2vec's and CAE's ways to place patches."""
    state: State = layouts.beit_vit(4, shared=True) | layouts.drawn(5, {"pos_embed": (1, GRID**2 + 1, WIDTH)})
    if tables == "none":
        del state["rel_pos_bias.relative_position_bias_table"]
    torch.save({"model": state}, tmp_path / "beit.pth")
    found = opened(tmp_path / "beit.pth")
    check_tokens(found, layouts.beit_tokens(state, IMAGES))
    assert "absolute positions" in found.notes[0]


def test_imagenets_mean_and_deviation_are_timms() -> None:
    assert elsewhere._NORMALIZATIONS["imagenet"] == (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)


@pytest.mark.parametrize("suffix", [".PTH", ".SafeTensors"])
def test_suffixes_in_any_case(suffix: str, tmp_path: Path) -> None:
    state, path = layouts.plain_vit(1), tmp_path / f"weights{suffix}"
    if suffix == ".PTH":
        torch.save(state, path)
    else:
        save_file(state, path)
    assert parse(str(path)).kind == "weights"
    check_tokens(opened(path), layouts.vit_tokens(state, layouts.normalised(IMAGES)))


def test_half_a_file_is_called_damaged(tmp_path: Path) -> None:
    """What is too short to be mapped was an invalid argument."""
    torch.save(layouts.plain_vit(1), tmp_path / "whole.pth")
    for size in (0, 100, 5000):
        (tmp_path / "half.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:size])
        with pytest.raises(CheckpointError, match=r"half\.pth is no readable file of weights: it is damaged"):
            opened(tmp_path / "half.pth")
