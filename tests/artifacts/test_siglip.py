"""SigLIP's weights under the names of OpenCLIP, timm and Hugging Face; and tables of positions that are no squares."""

from __future__ import annotations

from pathlib import Path

import layouts
import pytest
import timm
import torch
from layouts import SIZE, WIDTH, State
from safetensors.torch import save_file

from dsdmae_cli.artifacts.open import open_encoder
from dsdmae_cli.errors import CheckpointError

IMAGES = 2 * torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) - 1


def _under(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize("whose", ["OpenCLIP", "timm", "Hugging Face", "Hugging Face, vision alone"])
def test_siglip(whose: str, tmp_path: Path) -> None:
    """Its tokens before the pooling, from pixels in [-1, 1]; tanh's GELU where the code has it."""
    state = layouts.siglip(8)
    theirs = whose.startswith("Hugging Face")
    if theirs:
        saved = _under("vision_model.", layouts.as_hugging_face_siglip(state))
        if whose == "Hugging Face":
            saved |= {"text_model.embeddings.position_embedding.weight": torch.zeros(4, WIDTH)}
            saved |= {"text_model.head.weight": torch.zeros(WIDTH, WIDTH), "logit_bias": torch.zeros(1)}
        else:  # as PaliGemma has it, without its pooling
            saved = {name: tensor for name, tensor in saved.items() if ".head." not in name}
    else:
        saved = _under("visual.trunk." if whose == "OpenCLIP" else "", state)
        if whose == "OpenCLIP":
            saved |= {"text.positional_embedding": torch.zeros(4, WIDTH), "logit_scale": torch.ones(())}
    save_file(saved, tmp_path / "model.safetensors")
    found = open_encoder(str(tmp_path / "model.safetensors"), None, backbone=None, image_size=None, seed=0)
    found.encoder.eval()
    assert found.backbone.name == "timm:vit_base_patch16_siglip_gap_224"
    assert found.mean == (0.5, 0.5, 0.5)
    expected = layouts.vit_tokens(state, IMAGES, "tanh")
    with torch.no_grad():
        torch.testing.assert_close(found.encoder(IMAGES), expected, rtol=1e-5, atol=1e-5)
    [note] = found.notes
    assert ("named as in Hugging Face's SigLIP" in note) == theirs
    assert "no class token, images of 16 px, GELU by tanh" in note
    assert ("attn_pool (5)" in note) == (not theirs)


@pytest.mark.parametrize(
    ("width", "depth", "patch", "side", "tanh"),
    [(768, 12, 16, 224, False), (768, 12, 32, 256, True), (1024, 24, 16, 512, True), (1152, 27, 14, 384, False),
     (1152, 27, 16, 384, True), (1536, 40, 16, 256, True)],
)  # fmt: skip
def test_siglips_gelu_is_that_of_timms_model(width: int, depth: int, patch: int, side: int, tanh: bool) -> None:
    """Held to timm's own registered models, built without weights."""
    from dsdmae_builtin.recognition import timm as recognise

    size = {768: "base", 1024: "large", 1152: "so400m", 1536: "giantopt"}[width]
    with torch.device("meta"):
        model = timm.create_model(f"vit_{size}_patch{patch}_siglip_{side}")
    assert ("tanh" in repr(model.blocks[0].mlp.act).lower()) == tanh
    found = recognise({name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}, "")
    assert found is not None
    options = found.settings.options  # type: ignore[attr-defined]
    assert (options.get("act_layer") == "gelu_tanh") == tanh
    assert options["num_heads"] == model.blocks[0].attn.num_heads
    assert found.image_size == (378 if side == 384 and patch == 14 else side)


def test_positions_of_rectangles(tmp_path: Path) -> None:
    """Only a person knows which rectangle it is; said, the features are right."""
    state = layouts.plain_vit(1)
    table = 0.15 * torch.randn(1, 1 + 3 * 6, WIDTH, generator=torch.Generator().manual_seed(3))
    torch.save({**state, "pos_embed": table}, tmp_path / "wide.pth")
    with pytest.raises(CheckpointError) as error:
        open_encoder(str(tmp_path / "wide.pth"), None, backbone=None, image_size=None, seed=0)
    said = str(error.value)
    assert "has positions for 18 patches of 4x4 px, which are no square; say what" in said
    assert said.endswith("with --image-size HEIGHT,WIDTH (12,24 or 24,12, for example)")
    found = open_encoder(str(tmp_path / "wide.pth"), None, backbone=None, image_size=(12, 24), seed=0)
    images = IMAGES[:, :, :12].repeat(1, 1, 1, 2)[..., :24]
    expected = layouts.vit_tokens({**state, "pos_embed": table}, layouts.normalised(images))
    with torch.no_grad():
        torch.testing.assert_close(found.encoder.eval()(images), expected[:, 1:], rtol=1e-5, atol=1e-5)
