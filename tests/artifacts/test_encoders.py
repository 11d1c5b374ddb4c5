"""Encoders opened from runs, files, timm and from nothing: the same weights, the right pixels, one line when not."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from helpers import settings
from safetensors.torch import load_file, save_file
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from dsdmae_builtin import timm_weights
from dsdmae_builtin.backbones import TimmSettings, ViTSettings
from dsdmae_cli import checkpoint
from dsdmae_cli.artifacts.denoiser import load_denoiser
from dsdmae_cli.artifacts.header import read_metadata
from dsdmae_cli.artifacts.open import open_encoder
from dsdmae_cli.artifacts.opened import Opened
from dsdmae_cli.artifacts.packaged import ALL, Packaged
from dsdmae_cli.config.resolve import resolve
from dsdmae_cli.errors import CheckpointError, DsdmaeError, PluginError, SettingsError
from dsdmae_cli.runs.build import build_method
from dsdmae_cli.settings.models import BackboneSettings, DataSettings
from dsdmae_cli.work import measure_work

TINY = ViTSettings(patch_size=4, embed_dim=32, depth=1, num_heads=2, pos_embed="sincos", normalization="none")


def opened(
    subject: object,
    backbone: BackboneSettings | None = None,
    image_size: int | None = None,
    data: DataSettings | None = None,
    seed: int = 0,
) -> Opened:
    return open_encoder(str(subject), data, backbone=backbone, image_size=image_size, seed=seed)


def refusal(subject: object, kind: type[DsdmaeError], **arguments: object) -> str:
    with pytest.raises(kind) as error:
        opened(subject, **arguments)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
    return str(error.value)


@torch.no_grad()
def features(encoder: torch.nn.Module, images: Tensor) -> Tensor:
    return encoder.eval()(images)


@pytest.fixture
def unfinished(encoder_run: Path, tmp_path: Path) -> Path:
    """What the run was after its first epoch."""
    run = shutil.copytree(encoder_run, tmp_path / "unfinished")
    for name in ("encoder.safetensors", "result.json"):
        (run / name).unlink()
    shutil.rmtree(run / "checkpoints" / "step-00000010")
    return run


# -- runs and their files


def test_a_run(encoder_run: Path) -> None:
    found = opened(encoder_run)
    result = json.loads((encoder_run / "result.json").read_text())
    assert (found.kind, found.name, found.method, found.backbone.name) == ("run", "run", "dsdmae", "vit-tiny")
    assert (found.epochs, found.images_seen, found.notes) == (2, 80, ())
    assert (found.seconds, found.knn_accuracy) == (result["seconds"], result["knn_accuracy"])
    state = load_file(encoder_run / "encoder.safetensors")
    assert state.keys() == found.encoder.timm_state().keys()
    for name, tensor in found.encoder.timm_state().items():
        assert torch.equal(tensor, state[name])


def test_the_compute_of_a_run(encoder_run: Path) -> None:
    found = opened(encoder_run, image_size=32)  # asked for at another size, trained at its own
    folder = str(encoder_run.parent / "digits")
    work, _ = measure_work(build_method(resolve(settings(Path(folder)).settings)))
    assert found.flops == 80 * work


def test_a_file_is_its_run(encoder_run: Path, tmp_path: Path) -> None:
    run, file = opened(encoder_run), opened(encoder_run / "encoder.safetensors")
    assert (file.kind, file.name, file.weights_sha256) == ("weights", "run", run.weights_sha256)
    alone = tmp_path / "mine.safetensors"
    shutil.copy(encoder_run / "encoder.safetensors", alone)
    copied = opened(alone)
    assert (copied.name, copied.weights_sha256, copied.flops) == ("mine", run.weights_sha256, run.flops)
    assert (copied.seconds, copied.knn_accuracy) == (None, None)  # nothing stands beside it that would say so


@pytest.mark.parametrize("packaged", ALL, ids=lambda packaged: packaged.word)
def test_the_encoder_of_a_denoiser(packaged: Packaged, tmp_path: Path) -> None:
    """By the word for one that ships, and as a file of anybody's."""
    whole = load_denoiser(packaged=packaged).network.encoder()
    file = shutil.copy(str(packaged.find()), tmp_path / "mine.safetensors")
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    whole.set_image_size(32)
    for subject in (packaged.word, file):
        found = opened(subject, image_size=32)
        assert (found.name, found.backbone.name) == (packaged.word if subject == packaged.word else "mine", "unet")
        assert found.settings is not None
        assert found.settings["method"]["name"] == "dsdmae"
        torch.testing.assert_close(features(found.encoder, images), features(whole, images), rtol=0, atol=0)


def test_a_denoiser_whose_weights_are_others(tmp_path: Path) -> None:
    file = tmp_path / "mine.safetensors"
    state, metadata = load_file(str(ALL[0].find())), read_metadata(Path(str(ALL[0].find())))
    name = next(name for name in state if name.startswith("student.shrink"))
    save_file({**state, name: state[name][:-1]}, file, metadata)
    assert name in refusal(file, CheckpointError)


def test_a_run_that_has_not_ended(encoder_run: Path, unfinished: Path) -> None:
    found = opened(unfinished)
    saved = checkpoint.load(unfinished / "checkpoints" / "step-00000005").model
    state = found.encoder.timm_state()
    matching = {name: [k for k in saved if k.endswith(f".{name}") and "teacher" not in k] for name in state}
    for name, keys in matching.items():
        assert any(torch.equal(saved[key], state[name]) for key in keys), name
    assert (found.kind, found.epochs, found.images_seen) == ("run", 1, 40)
    assert found.seconds is not None
    [note] = found.notes
    assert "step 5, epoch 1 of 2" in note
    assert found.flops == (opened(encoder_run).flops or 0) / 2


def test_a_damaged_checkpoint_is_passed_over(encoder_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(encoder_run, tmp_path / "damaged")
    (run / "encoder.safetensors").unlink()
    weights = run / "checkpoints" / "step-00000010" / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    found = opened(run)
    assert "does not match its checksum" in found.notes[0]
    assert "step 5" in found.notes[1]


def test_a_run_without_anything(unfinished: Path) -> None:
    shutil.rmtree(unfinished / "checkpoints")
    assert "it has no checkpoint yet" in refusal(unfinished, CheckpointError)


def test_what_is_no_encoder(tmp_path: Path, encoder_run: Path) -> None:
    assert "holds no run" in refusal(tmp_path, CheckpointError)
    assert "there is no nothing" in refusal("nothing", CheckpointError)
    pickled = tmp_path / "model.pth"
    torch.save({"weight": torch.zeros(1)}, pickled)
    assert "holds no vision backbone that can be told from its names (weight, ...)" in refusal(pickled, SettingsError)
    assert "there is no" in refusal(tmp_path / "gone.safetensors", CheckpointError)
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes((encoder_run / "encoder.safetensors").read_bytes()[:-100])
    assert "no readable safetensors file" in refusal(torn, CheckpointError)


def test_settings_that_contradict_a_run(encoder_run: Path) -> None:
    refused = refusal(encoder_run, SettingsError, backbone=ViTSettings(depth=6))
    assert "was trained with backbone.depth = 1, not 6" in refused
    assert "backbone.name = 'vit-tiny', not 'timm:resnet18'" in refusal(
        encoder_run, SettingsError, backbone=TimmSettings(name="timm:resnet18")
    )
    found = opened(encoder_run, ViTSettings(patch_size="auto", drop_path=0.4))
    assert found.backbone.drop_path == 0.4
    assert found.weights_sha256 == opened(encoder_run).weights_sha256


# -- the name of weights


def test_the_same_weights_have_one_name(encoder_run: Path, tmp_path: Path) -> None:
    path = encoder_run / "encoder.safetensors"
    state, found = load_file(path), opened(encoder_run)
    assert checkpoint.weights_sha256(dict(reversed(state.items()))) == found.weights_sha256
    model = timm.create_model(found.encoder.timm_name, **found.encoder.timm_kwargs, checkpoint_path=path)
    assert checkpoint.weights_sha256(model.state_dict()) == found.weights_sha256
    transposed = {name: tensor.t().contiguous().t() if tensor.ndim == 2 else tensor for name, tensor in state.items()}
    assert checkpoint.weights_sha256(transposed) == found.weights_sha256


@pytest.mark.parametrize("change", ["value", "name", "dtype", "shape"])
def test_other_weights_have_another_name(change: str) -> None:
    weights = {"a": torch.arange(4.0), "b": torch.zeros(2)}
    other = dict(weights)
    match change:
        case "value":
            other["a"] = torch.tensor([0.0, 1.0, 2.0, 3.0000002])
        case "name":
            other = {"a": weights["a"], "c": weights["b"]}
        case "dtype":
            other["b"] = torch.zeros(2, dtype=torch.int32)  # the same bytes
        case "shape":
            other["a"] = weights["a"].view(2, 2)
    assert checkpoint.weights_sha256(other) != checkpoint.weights_sha256(weights)


# -- other image sizes


@pytest.mark.parametrize("class_token", [False, True])
def test_positions_are_resampled_as_timm_does(encoder_run: Path, tmp_path: Path, class_token: bool) -> None:
    before = opened("scratch", TINY.model_copy(update={"class_token": class_token}), 16)
    path = tmp_path / "weights.safetensors"
    save_file(before.encoder.timm_state(), path)
    after = opened(path, TINY.model_copy(update={"class_token": class_token}), 24)
    expected = resample_abs_pos_embed(
        before.encoder.timm_state()["pos_embed"], new_size=[6, 6], num_prefix_tokens=int(class_token)
    )
    assert torch.equal(after.encoder.timm_state()["pos_embed"], expected)
    assert after.weights_sha256 == before.weights_sha256
    assert after.notes[1:] == ("position embeddings resampled for images of 24x24 px, from 16x16 px",)
    assert after.encoder.grid == (6, 6)
    assert not after.encoder.get_parameter("vit.pos_embed").requires_grad  # fixed ones stay fixed

    model = timm.create_model(after.encoder.timm_name, **after.encoder.timm_kwargs)
    model.load_state_dict(after.encoder.timm_state())
    images = torch.rand(2, 3, 24, 24) * 2 - 1
    tokens = features(after.encoder, images)
    with torch.no_grad():
        expected = model.eval().forward_features(images)[:, int(class_token) :]
    torch.testing.assert_close(tokens, expected, rtol=1e-5, atol=1e-5)


def test_sizes_that_do_not_divide(encoder_run: Path) -> None:
    assert "30 px is no whole number of patches of 4 px" in refusal(encoder_run, SettingsError, image_size=30)
    assert "8 and 12 would be" in refusal(encoder_run, SettingsError, image_size=4)


@pytest.mark.parametrize("name", ["timm:test_convnext", "timm:test_vit"])
def test_timm_models_at_another_size(name: str) -> None:
    plain = TimmSettings(name=name, pretrained=False)
    small, large = opened(name, plain, 64), opened(name, plain, 96)
    large.encoder.set_image_size(64)
    assert large.encoder.grid == small.encoder.grid
    assert large.encoder.timm_kwargs.get("img_size") == small.encoder.timm_kwargs.get("img_size")
    images = torch.rand(2, 3, 64, 64)
    assert features(large.encoder, images).shape == features(small.encoder, images).shape


def test_a_timm_model_that_refuses_a_size() -> None:
    encoder = opened("timm:test_vit", TimmSettings(name="timm:test_vit", pretrained=False), 64).encoder
    with pytest.raises(SettingsError, match=r"data.image_size = 65 is no whole number; 64 or 80 would be"):
        encoder.set_image_size(65)


# -- somebody else's weights


@pytest.fixture
def foreign(encoder_run: Path, tmp_path: Path) -> Path:
    path = tmp_path / "foreign.safetensors"
    save_file(load_file(encoder_run / "encoder.safetensors"), path)
    return path


def test_foreign_weights(foreign: Path, encoder_run: Path) -> None:
    found = opened(foreign, TINY)
    assert (found.name, found.settings, found.epochs) == ("foreign", None, None)
    assert found.weights_sha256 == opened(encoder_run).weights_sha256
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(features(found.encoder, images), features(opened(encoder_run).encoder, images))


def test_foreign_weights_that_do_not_fit(foreign: Path) -> None:
    wrong = refusal(foreign, CheckpointError, backbone=TINY.model_copy(update={"depth": 2}), image_size=16)
    assert "missing blocks.1." in wrong
    wider = TINY.model_copy(update={"embed_dim": 64})
    assert "is (32,), not (64,)" in refusal(foreign, CheckpointError, backbone=wider, image_size=16)
    state = load_file(foreign)
    save_file({**state, "strange.weight": torch.zeros(2)}, foreign)
    assert "unexpected strange.weight" in refusal(foreign, CheckpointError, backbone=TINY, image_size=16)


def test_the_classifier_of_foreign_weights_is_left_out(foreign: Path) -> None:
    state = load_file(foreign)
    save_file({**state, "head.weight": torch.zeros(10, 32), "head.bias": torch.zeros(10)}, foreign)
    found = opened(foreign, TINY, 16)
    [note] = found.notes
    assert "left out, as no part of the backbone: head (2)" in note


# -- timm's own


def test_pixels_are_normalised_as_the_model_was_trained() -> None:
    name = "timm:convnext_atto"  # a small one with ImageNet's mean and std
    plain = opened(name, TimmSettings(name=name, pretrained=False), 64)
    own = opened(name, TimmSettings(name=name, pretrained=False, normalization="timm"), 64)
    assert own.mean == timm.get_pretrained_cfg("convnext_atto").mean != plain.mean
    assert own.weights_sha256 == plain.weights_sha256
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 64, 64)).astype(np.float64)
    mean, std = (np.array(values).reshape(1, 3, 1, 1) for values in (own.mean, own.std))
    normalised = torch.from_numpy((pixels / 255 - mean) / std).float()
    ours = torch.from_numpy(pixels / 127.5 - 1).float()
    torch.testing.assert_close(features(own.encoder, ours), features(plain.encoder, normalised), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(features(plain.encoder, ours), features(own.encoder, ours), atol=1e-3)


def test_what_published_weights_see() -> None:
    fetched = TimmSettings(name="timm:test_vit", pretrained=True)
    assert fetched.normalized
    offline = fetched.without_weights()
    assert (offline.pretrained, offline.normalized) == (False, True)
    assert not TimmSettings(name="timm:test_vit").without_weights().normalized


def test_published_weights_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    timm_weights._absence.cache_clear()
    assert "cannot fetch timm's weights for test_vit" in refusal("timm:test_vit", PluginError)


def test_a_hub_that_is_away_is_asked_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """It was asked twelve times in 46 seconds, each of them a line; and weights that had been fetched were, too."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        away = f"http://127.0.0.1:{nobody.getsockname()[1]}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", away)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    timm_weights._absence.cache_clear()
    said = refusal("timm:test_vit", PluginError)
    assert f"cannot fetch timm's weights for test_vit: {away} cannot be reached (" in said
    assert f"and they are not in {tmp_path}; with no network, use a machine that has one" in said

    kept = tmp_path / "models--timm--test_vit.r160_in1k"
    (kept / "snapshots/abc").mkdir(parents=True)
    (kept / "refs").mkdir()
    (kept / "refs/main").write_text("abc")
    state = timm.create_model("test_vit").state_dict()
    save_file(state, kept / "snapshots/abc/model.safetensors")
    found = opened("timm:test_vit").encoder.timm_state()
    assert found
    assert all(torch.equal(tensor, state[name]) for name, tensor in found.items())
    assert capfd.readouterr().err == ""
    timm_weights._absence.cache_clear()


def test_tables_of_relative_positions_are_resampled_in_silence(capfd: pytest.CaptureFixture[str]) -> None:
    options = {"depth": 1, "embed_dim": 48, "num_heads": 3}
    name = "timm:beit_base_patch16_224"
    found = opened(name, TimmSettings(name=name, options=options, pretrained=False), 64)
    found.encoder.set_image_size(96)
    assert found.encoder.grid == (6, 6)
    assert capfd.readouterr().err == ""


def test_random_weights_instead_of_published_ones() -> None:
    found = opened("timm:test_vit.r160_in1k", TimmSettings(name="timm:test_vit.r160_in1k", pretrained=False))
    assert (found.kind, found.name) == ("published", "timm:test_vit.r160_in1k")
    assert found.encoder.image_size == timm.get_pretrained_cfg("test_vit").input_size[-1] == 160
    assert "random weights" in found.notes[0]


def test_published_weights_that_are_not() -> None:
    assert "did you mean test_vit" in refusal("timm:test_vitt", SettingsError)
    assert "contradicts timm:test_vit" in refusal("timm:test_vit", SettingsError, backbone=TINY)
    assert "needs an argument" in refusal("timm:", PluginError)
    assert "there is no hub:thing; give " in refusal("hub:thing", CheckpointError)
    assert "vit-tiny has no published weights" in refusal("vit-tiny", SettingsError)


# -- from nothing


def test_scratch() -> None:
    data = DataSettings(image_size=16)
    first, again, other = (opened("scratch", TINY, data=data, seed=seed) for seed in (0, 0, 1))
    assert first.weights_sha256 == again.weights_sha256 != other.weights_sha256
    assert (first.kind, first.method, first.epochs) == ("scratch", None, None)
    assert opened("scratch", TINY.model_copy(update={"patch_size": "auto"}), 32).encoder.grid == (16, 16)


def test_scratch_draws_what_pretraining_starts_from(encoder_run: Path) -> None:
    run = settings(encoder_run.parent / "digits").settings
    method = build_method(resolve(run))
    scratch = opened("scratch", resolve(run).backbone, 16, seed=run.train.seed)
    assert scratch.weights_sha256 == checkpoint.weights_sha256(method.encoder().timm_state())


def test_scratch_that_says_too_little_or_too_much() -> None:
    assert "needs the side of its images" in refusal("scratch", SettingsError, backbone=TINY)
    fetched = TimmSettings(name="timm:test_vit", pretrained=True)
    assert "scratch means random weights" in refusal("scratch", SettingsError, backbone=fetched, image_size=64)
