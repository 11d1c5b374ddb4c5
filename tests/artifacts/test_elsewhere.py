"""Weights from elsewhere: the layouts of public code give the features that its equations give; bad files one line."""

from __future__ import annotations

import argparse
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import layouts
import numpy as np
import pytest
import timm
import torch
import torchvision
from layouts import GRID, PATCH, SIZE, WIDTH, State
from safetensors.torch import save_file
from torch import Tensor

from dsdmae_builtin import recognition
from dsdmae_builtin.recognition import RESNET_TWINS
from dsdmae_cli import plugins
from dsdmae_cli.artifacts.open import open_encoder
from dsdmae_cli.artifacts.opened import Opened
from dsdmae_cli.artifacts.subject import parse
from dsdmae_cli.errors import CheckpointError, DsdmaeError, SettingsError
from dsdmae_cli.settings.models import BackboneSettings

IMAGES = 2 * torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) - 1


def under(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def opened(path: Path, backbone: BackboneSettings | None = None) -> Opened:
    found = open_encoder(str(path), None, backbone=backbone, image_size=None, seed=0)
    found.encoder.eval()
    return found


def refusal(path: Path, kind: type[DsdmaeError] = CheckpointError, backbone: BackboneSettings | None = None) -> str:
    with pytest.raises(kind) as error:
        opened(path, backbone)
    assert "\n" not in str(error.value)
    return str(error.value)


@torch.no_grad()
def check_tokens(found: Opened, tokens: Tensor) -> None:
    """The encoder's class token and patches are those of the reference, whose registers lie between them."""
    patches, first = found.encoder.forward_tokens(IMAGES)
    assert first is not None
    torch.testing.assert_close(patches, tokens[:, -(GRID**2) :], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(first, tokens[:, 0], rtol=1e-5, atol=1e-5)


# -- layouts of public code


def mae(state: State) -> Any:
    beside = {"mask_token": torch.zeros(1, 1, 8), "decoder_embed.weight": torch.zeros(8, WIDTH)}
    beside |= {"decoder_blocks.0.norm1.weight": torch.zeros(8), "decoder_pos_embed": torch.zeros(1, GRID**2 + 1, 8)}
    options = argparse.Namespace(lr=1.5e-4, output_dir=Path("out"), score=np.float64(0.5))
    return {"model": {**state, **beside}, "optimizer": {"state": {}}, "epoch": 799, "args": options}


def dino(state: State) -> Any:
    student = under("module.backbone.", layouts.plain_vit(9)) | {"module.head.mlp.0.weight": torch.zeros(4, WIDTH)}
    teacher = under("backbone.", state) | {"head.mlp.0.weight": torch.zeros(4, WIDTH)}
    return {"student": student, "teacher": teacher, "dino_loss": {"center": torch.zeros(1, 4)}, "epoch": 100}


def mocov3(state: State) -> Any:
    average = under("module.momentum_encoder.", layouts.plain_vit(9))
    head = {"module.base_encoder.head.0.weight": torch.zeros(8, WIDTH), "module.predictor.0.weight": torch.zeros(8, 8)}
    return {"epoch": 300, "arch": "vit_base", "state_dict": under("module.base_encoder.", state) | average | head}


@pytest.mark.parametrize(
    ("wrap", "name", "says"),
    [
        (mae, "mae.pth", ["weights under model", "decoder_blocks", "mask_token"]),
        (dino, "dino.ckpt", ["it holds teacher, student: teacher is taken", "left out head"]),
        (mocov3, "moco.pth.tar", ["names without 'module.base_encoder.'", "module.momentum_encoder (30)"]),
        (lambda state: state, "bare.pt", []),
        (lambda state: {"state_dict": under("_orig_mod.", state)}, "compiled.bin", ["names without '_orig_mod.'"]),
        (
            lambda state: under("visual.trunk.", state) | {"logit_scale": torch.ones(())},
            "open_clip.pt",
            ["logit_scale"],
        ),
    ],
)
def test_plain_vits(wrap: Callable[[State], Any], name: str, says: list[str], tmp_path: Path) -> None:
    state = layouts.plain_vit(1)
    torch.save(wrap(state), tmp_path / name)
    found = opened(tmp_path / name)
    check_tokens(found, layouts.vit_tokens(state, layouts.normalised(IMAGES)))
    assert found.backbone.name == "vit-tiny"
    assert found.name == name.partition(".")[0]
    [note] = found.notes
    assert all(words in note for words in says)
    assert "2 blocks of width 128, 2 heads (guessed: 64 features a head; backbone.num_heads changes it)" in note
    assert "patches of 4 px, MLP ratio 4, a class token, images of 16 px" in note


def test_files_of_other_formats_hold_the_same(tmp_path: Path) -> None:
    state = layouts.plain_vit(1)
    save_file(under("module.", state), tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "b.pth", _use_new_zipfile_serialization=False)
    torch.save({name: tensor.double() for name, tensor in state.items()}, tmp_path / "c.pth")
    assert len({opened(tmp_path / name).weights_sha256 for name in ("a.safetensors", "b.pth", "c.pth")}) == 1


@pytest.mark.parametrize("registers", [0, 3])
@pytest.mark.parametrize("chunked", [False, True])
def test_dinov2(registers: int, chunked: bool, tmp_path: Path) -> None:
    state = layouts.plain_vit(2, layer_scale=True, registers=registers)
    names = {name: name.replace("blocks.1.", "blocks.1.1.").replace("blocks.0.", "blocks.0.0.") for name in state}
    saved = {names[name] if chunked else name: tensor for name, tensor in state.items()}
    torch.save(
        {"teacher": under("backbone.", saved) | {"backbone.mask_token": torch.zeros(1, WIDTH)}}, tmp_path / "d.pth"
    )
    found = opened(tmp_path / "d.pth")
    check_tokens(found, layouts.vit_tokens(state, layouts.normalised(IMAGES)))
    assert found.backbone.name == ("timm:vit_base_patch14_dinov2" if registers else "vit-tiny")


@pytest.mark.parametrize("shared", [True, False])
def test_beit(shared: bool, tmp_path: Path) -> None:
    state = layouts.beit_vit(3, shared)
    computed = "rel_pos_bias.relative_position_index" if shared else "blocks.0.attn.relative_position_index"
    beside = {
        computed: layouts.relative_index(),
        "mask_token": torch.zeros(1, 1, WIDTH),
        "lm_head.weight": torch.zeros(9, 9),
    }
    torch.save({"model": {**state, **beside}}, tmp_path / "beit.pth")
    found = opened(tmp_path / "beit.pth")
    check_tokens(found, layouts.beit_tokens(state, IMAGES))
    assert found.backbone.name == ("beit-tiny" if shared else "timm:beit_base_patch16_224")


def test_clip(tmp_path: Path) -> None:
    state = layouts.as_clip(4)
    words = {"transformer.resblocks.0.ln_1.weight": torch.ones(8), "token_embedding.weight": torch.zeros(9, 8)}
    torch.save(under("visual.", state) | words | {"logit_scale": torch.ones(())}, tmp_path / "clip.pt")
    found = opened(tmp_path / "clip.pt")
    mean, std = (
        torch.tensor(v).view(3, 1, 1)
        for v in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    )
    check_tokens(found, layouts.clip_tokens(state, ((IMAGES + 1) / 2 - mean) / std))
    assert "named as in OpenAI's CLIP" in found.notes[0]
    assert "no part of the backbone: proj" in found.notes[0]


@pytest.mark.parametrize("prefix", ["", "vit."])
def test_hugging_face(prefix: str, tmp_path: Path) -> None:
    """Alone as the encoder of a classifier, whose pixels are in [-1, 1]."""
    state = layouts.plain_vit(5)
    saved = under(prefix, layouts.as_hugging_face(state)) | {"classifier.weight": torch.zeros(3, WIDTH)}
    torch.save(saved, tmp_path / "pytorch_model.bin")
    check_tokens(opened(tmp_path), layouts.vit_tokens(state, IMAGES))


@pytest.mark.parametrize("shared", [True, False])
def test_beit_of_hugging_face(shared: bool, tmp_path: Path) -> None:
    """As BeitForMaskedImageModeling saves it."""
    state = layouts.beit_vit(3, shared)
    beside = {"beit.embeddings.mask_token": torch.zeros(1, 1, WIDTH), "lm_head.weight": torch.zeros(9, WIDTH)}
    torch.save(under("beit.", layouts.as_hugging_face_beit(state)) | beside, tmp_path / "beit.bin")
    found = opened(tmp_path / "beit.bin")
    check_tokens(found, layouts.beit_tokens(state, IMAGES))
    assert found.backbone.name == ("beit-tiny" if shared else "timm:beit_base_patch16_224")


@pytest.mark.parametrize("whole", [True, False])
def test_clip_of_hugging_face(whole: bool, tmp_path: Path) -> None:
    """CLIPVisionModel's file, and the whole CLIPModel's with its half for text."""
    state = layouts.as_clip(4)
    saved = under("vision_model.", layouts.as_hugging_face_clip(state))
    if whole:
        saved |= {"text_model.encoder.layers.0.layer_norm1.weight": torch.ones(8), "logit_scale": torch.ones(())}
        saved |= {"visual_projection.weight": torch.zeros(8, WIDTH)}
    save_file(saved, tmp_path / "model.safetensors")
    found = opened(tmp_path / "model.safetensors")
    mean, std = (
        torch.tensor(v).view(3, 1, 1)
        for v in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    )
    check_tokens(found, layouts.clip_tokens(state, ((IMAGES + 1) / 2 - mean) / std))
    assert "named as in Hugging Face's CLIP" in found.notes[0]


def test_dinov3(tmp_path: Path) -> None:
    sizes = {"embed_dim": WIDTH, "depth": 2, "num_heads": 2, "patch_size": PATCH}
    model = timm.create_model("vit_small_patch16_dinov3_qkvb", num_classes=0, img_size=SIZE, **sizes).eval()
    own = layouts.drawn(6, {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()})
    model.load_state_dict(own)
    torch.save(layouts.as_dinov3(own), tmp_path / "dinov3.pth")
    with torch.no_grad():
        tokens = model.forward_features(layouts.normalised(IMAGES))
    found = open_encoder(str(tmp_path / "dinov3.pth"), None, backbone=None, image_size=SIZE, seed=0)
    found.encoder.eval()
    check_tokens(found, tokens)


def test_torchvisions_vit(tmp_path: Path) -> None:
    model = torchvision.models.VisionTransformer(SIZE, PATCH, 2, 2, WIDTH, 4 * WIDTH, num_classes=3).eval()
    model.load_state_dict(layouts.drawn(7, {name: tuple(t.shape) for name, t in model.state_dict().items()}))
    torch.save(model.state_dict(), tmp_path / "vit.pth")
    with torch.no_grad():
        x = model._process_input(layouts.normalised(IMAGES))
        tokens = model.encoder(torch.cat([model.class_token.expand(2, -1, -1), x], 1))
    check_tokens(opened(tmp_path / "vit.pth"), tokens)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_resnets(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = getattr(torchvision.models, name)(num_classes=4).eval()
    state = model.state_dict()
    if name == "resnet50":  # as MoCo v3 saves it, its projector in place of the classifier
        kept = {k: v for k, v in state.items() if not k.startswith("fc.")}
        state = under(
            "module.base_encoder.", kept | {"fc.0.weight": torch.zeros(4, 2048), "fc.1.running_mean": torch.zeros(4)}
        )
    torch.save({"state_dict": state}, tmp_path / "net.pth")
    found = open_encoder(str(tmp_path / "net.pth"), None, backbone=None, image_size=64, seed=0)
    assert found.backbone.name == f"timm:{name}"
    assert all(f"--backbone timm:{twin}" in found.notes[0] for twin in RESNET_TWINS[name])
    images = 2 * torch.rand(2, 3, 64, 64, dtype=torch.float64) - 1
    trunk = torch.nn.Sequential(*list(model.children())[:-2]).double()
    with torch.no_grad():
        ours, theirs = (
            found.encoder.eval().double()(images),
            trunk(layouts.normalised(images)).flatten(2).transpose(1, 2),
        )
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_networks_that_no_weight_tells_apart_are_named() -> None:
    """All of timm's with the very names and shapes of a ResNet that we read from its shapes."""

    def shapes(name: str) -> dict[str, torch.Size]:
        with torch.device("meta"):
            return {key: value.shape for key, value in timm.create_model(name, num_classes=0).state_dict().items()}

    families = ("resnet", "wide_resnet", "resnext", "ecaresnet", "seresnet", "legacy", "gluon", "tv_")
    all_of_timm = {name: shapes(name) for name in timm.list_models() if name.startswith(families)}
    for ours in sorted(set(recognition._RESNETS.values())):
        twins = tuple(name for name, other in all_of_timm.items() if name != ours and other == all_of_timm[ours])
        assert twins == RESNET_TWINS.get(ours, ())


def test_what_a_person_says_wins(tmp_path: Path) -> None:
    state = layouts.plain_vit(1)
    torch.save(state, tmp_path / "mine.pth")
    settings = plugins.find("backbone", "vit-tiny").spec.settings
    found = opened(tmp_path / "mine.pth", settings(num_heads=4, normalization="none"))
    assert "but normalization = none, num_heads = 4 as given" in found.notes[0]
    assert found.encoder.body.blocks[0].attn.num_heads == 4
    assert found.mean == (0.5, 0.5, 0.5)
    other = plugins.find("backbone", "vit-small").spec.settings(name="vit-small", patch_size=PATCH)
    assert "without --backbone the network is read off its shapes" in refusal(tmp_path / "mine.pth", backbone=other)


def test_heads_of_networks_that_are_known_to_differ() -> None:
    from dsdmae_builtin.recognition import vit

    def heads(width: int, depth: int, **more: tuple[int, ...]) -> int:
        shapes = {
            name: tuple(tensor.shape) for name, tensor in layouts.plain_vit(0).items() if not name.startswith("blocks")
        }
        shapes |= {name.replace("__", "."): shape for name, shape in more.items()}
        for n in range(depth):
            shapes[f"blocks.{n}.norm1.weight"] = (width,)
        shapes |= {"blocks.0.mlp.fc1.weight": (4 * width, width), "blocks.0.mlp.fc2.weight": (width, 4 * width)}
        shapes |= {"patch_embed.proj.weight": (width, 3, 16, 16), "blocks.0.attn.qkv.bias": (3 * width,)}
        found = vit(shapes, "")
        assert found is not None
        return found.settings.num_heads  # type: ignore[attr-defined,no-any-return]

    assert [heads(192, 12), heads(384, 12), heads(768, 12), heads(1024, 24), heads(1280, 32)] == [3, 6, 12, 16, 16]
    assert heads(384, 12, head__1__running_mean=(4096,)) == 12  # MoCo v3's ViT-S


@pytest.mark.parametrize(
    "name",
    [
        "vit_giant_patch14_dinov2", "vit_giant_patch14_reg4_dinov2",  # of the size of SigLIP's giant, and not its heads
        "vit_huge_plus_patch16_dinov3", "vit_7b_patch16_dinov3",  # the first of the size of ViT-H
        "vit_giantopt_patch16_siglip_256", "vit_huge_patch14_224",
    ],
)  # fmt: skip
def test_heads_are_those_of_timms_networks_of_that_size(name: str) -> None:
    from dsdmae_builtin.recognition import timm as of_timm
    from dsdmae_builtin.recognition import vit

    with torch.device("meta"):
        model = timm.create_model(name)
    shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    found = vit(shapes, "") or of_timm(shapes, "")
    assert found is not None
    said = getattr(found.settings, "options", None) or found.settings.model_dump()
    assert said["num_heads"] == model.blocks[0].attn.num_heads


def test_what_has_the_shapes_of_another_is_not_taken_for_it(tmp_path: Path) -> None:
    """Perception Encoder has rotary positions beside CLIP's shapes, and a hybrid's patches are of features."""
    sizes = {"embed_dim": 64, "depth": 1, "num_heads": 2, "img_size": 64}
    model = timm.create_model("vit_pe_core_base_patch16_224", **sizes)
    torch.save(model.state_dict(), tmp_path / "pe.pth")
    assert "no vision backbone that can be told from its names" in refusal(tmp_path / "pe.pth", SettingsError)
    hybrid = {**layouts.plain_vit(0), "patch_embed.proj.weight": torch.zeros(WIDTH, 1024, 1, 1)}
    torch.save(hybrid, tmp_path / "hybrid.pth")
    assert "no vision backbone that can be told from its names" in refusal(tmp_path / "hybrid.pth", SettingsError)


def test_a_pooled_norm_without_bias_is_one_line(tmp_path: Path) -> None:
    state = layouts.plain_vit(0)
    del state["norm.bias"]
    state["fc_norm.weight"] = state.pop("norm.weight")
    torch.save(state, tmp_path / "odd.pth")
    assert "missing norm.bias" in refusal(tmp_path / "odd.pth")


# -- files that are none


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("harmed"),))


def test_nothing_in_a_file_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": layouts.plain_vit(1), "more": Evil()}, "evil.pth")
    Path("plain.pth").write_bytes(pickle.dumps(Evil(), protocol=2))
    Path("newer.pth").write_bytes(pickle.dumps(Evil()))  # a protocol that torch.save does not use
    assert "damaged, or was not written by torch.save" in refusal(Path("newer.pth"))
    for name in ("evil.pth", "plain.pth"):
        words = refusal(Path(name))
        assert f"{name} holds more than weights" in words
        assert "write its weights alone: torch.save(" in words
    assert not Path("harmed").exists()


LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 22883\n"


def test_damaged_files_and_others(tmp_path: Path) -> None:
    whole = tmp_path / "whole.pth"
    torch.save(layouts.plain_vit(1), whole)
    content = whole.read_bytes()
    for name, bytes_ in (
        ("torn", content[:-200]),
        ("half", content[: len(content) // 2]),
        ("empty", b""),
        ("text", b"hello\n"),
    ):
        (tmp_path / f"{name}.pth").write_bytes(bytes_)
        assert f"{name}.pth is no readable file of weights: it is damaged, or was not written" in refusal(
            tmp_path / f"{name}.pth"
        )
    for suffix in ("pth", "safetensors"):
        for content, said in ((LFS_POINTER, "`git lfs pull`"), (b"\n<!DOCTYPE html>\n<p>404", "it is a web page")):
            (tmp_path / f"other.{suffix}").write_bytes(content)
            assert said in refusal(tmp_path / f"other.{suffix}")
    with zipfile.ZipFile(
        tmp_path / "program.pt", "w"
    ) as archive:  # what torch.jit.save adds, scripting being deprecated
        archive.writestr("program/constants.pkl", b"")
    assert "is a TorchScript program" in refusal(tmp_path / "program.pt")
    for content_, says in (
        ([torch.zeros(2)], "holds no weights by name but a list"),
        ({}, "but an empty table"),
        ({"epoch": 3, "lr": 0.1}, "but a table of epoch, lr"),
    ):
        torch.save(content_, tmp_path / "other.pth")
        assert says in refusal(tmp_path / "other.pth")


def test_what_is_no_vision_backbone(tmp_path: Path) -> None:
    words = {"model.embed_tokens.weight": torch.zeros(9, 8), "model.layers.0.mlp.up_proj.weight": torch.zeros(8, 8)}
    save_file(words, tmp_path / "words.safetensors")
    said = refusal(tmp_path / "words.safetensors", SettingsError)
    assert (
        "no vision backbone that can be told from its names (embed_tokens.weight, layers.0.mlp.up_proj.weight" in said
    )
    assert "name it with --backbone" in said
    assert parse(str(tmp_path / "words.safetensors")).taken_over()[0] == {}


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("blocks.1.norm1.weight", lambda t: t[:-1], "blocks.1.norm1.weight is (127,), not (128,)"),
        ("blocks.1.attn.qkv.weight", lambda t: t[:, :-1], "by its other shapes it is vit-tiny"),
        ("norm.bias", lambda t: t * torch.nan, "values in norm.bias that are not finite"),
        ("blocks.0.mlp.fc1.weight", lambda t: (t * 100).to(torch.int8), "as int8: quantised weights"),
        ("norm.weight", lambda t: t.to(torch.complex64), "as complex64: here it is float32; give others"),
    ],
)
def test_weights_that_cannot_be(name: str, change: Callable[[Tensor], Tensor], says: str, tmp_path: Path) -> None:
    state = layouts.plain_vit(1)
    torch.save({**state, name: change(state[name]).clone()}, tmp_path / "bad.pth")
    assert says in refusal(tmp_path / "bad.pth")
