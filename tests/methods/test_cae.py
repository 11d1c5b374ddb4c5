"""CAE against its formulas in float64, one image at a time."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import cli, one_line
from reference import attend, blocks, embed, images, layer_norm, linear, positions, tiny
from test_beit import cross_entropy
from torch import Tensor

from dsdmae_builtin.methods.cae import CAE, BlockMask
from dsdmae_cli.data.source import seeded

CPU = torch.device("cpu")


def mlp(x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    hidden = linear(x, w, f"{name}.fc1")
    return linear(hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2, w, f"{name}.fc2")


def regress(visible: Tensor, keep: Tensor, masked: Tensor, w: dict[str, Tensor], depth: int) -> Tensor:
    place = positions(4, 32)
    x = w["regressor.mask_token"][0].repeat(len(masked), 1)
    for i in range(depth):
        at = f"regressor.blocks.{i}"
        context = torch.cat([visible, x])
        where = torch.cat([place[keep], place[masked]])
        q = linear(layer_norm(x + place[masked], w, f"{at}.norm_query"), w, f"{at}.query")
        k = layer_norm(context + where, w, f"{at}.norm_key") @ w[f"{at}.key.weight"].T
        v = linear(layer_norm(context, w, f"{at}.norm_value"), w, f"{at}.value")
        x = x + w[f"{at}.scale_attention.gamma"] * linear(attend(q, k, v, 1), w, f"{at}.project")
        x = layer_norm(x, w, f"{at}.norm")
        x = x + w[f"{at}.scale_mlp.gamma"] * mlp(x, w, f"{at}.mlp")
    return layer_norm(x, w, "regressor.norm")


def decode(x: Tensor, masked: Tensor, w: dict[str, Tensor], depth: int) -> Tensor:
    x = x + positions(4, 32)[masked]
    for i in range(depth):
        at = f"decoder.blocks.{i}"
        q, k, v = linear(layer_norm(x, w, f"{at}.norm1"), w, f"{at}.attn.qkv").chunk(3, dim=-1)
        x = x + w[f"{at}.ls1.gamma"] * linear(attend(q, k, v, 1), w, f"{at}.attn.proj")
        x = x + w[f"{at}.ls2.gamma"] * mlp(layer_norm(x, w, f"{at}.norm2"), w, f"{at}.mlp")
    return linear(layer_norm(x, w, "decoder.norm"), w, "decoder.project")


def reference(method: CAE, clean: Tensor, parted: BlockMask) -> dict[str, float]:
    w = {name: tensor.double() for name, tensor in method.state_dict().items()}
    s = method.settings
    all_words = method.tokenizer(clean)
    word, align, right = [], [], []
    for image, masked, keep, own in zip(clean.double(), parted.ids_masked, parted.ids_keep, all_words, strict=True):
        assert sorted([*masked.tolist(), *keep.tolist()]) == list(range(16))
        patches = embed(image, w, "backbone.vit")
        visible = blocks(patches[keep], w, "backbone.vit", heads=2)
        told = blocks(patches[masked], w, "backbone.vit", heads=2)
        guess = regress(visible, keep, masked, w, s.regressor_depth)
        logits = decode(guess, masked, w, s.decoder_depth)
        word.append(cross_entropy(logits, own[masked]))
        align.append((guess - told).pow(2).mean().item())
        right.append((logits.argmax(dim=1) == own[masked]).double().mean().item())
    mean = {"words": sum(word), "alignment": sum(align), "accuracy": sum(right)}
    mean = {name: value / len(clean) for name, value in mean.items()}
    return mean | {"loss": mean["words"] + s.alignment_weight * mean["alignment"]}


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("method.mask_ratio=0.3", "method.alignment_weight=0.5"),
        ("method.regressor_depth=2", "method.decoder_depth=3", "method.layer_scale=0.7"),
    ],
    ids=" ".join,
)
def test_cae_is_its_formulas(more: tuple[str, ...]) -> None:
    method = tiny(*more, name="cae")
    clean = images()
    parted = method.corrupt(clean, seeded(CPU, 1))
    expected = reference(method, clean, parted)
    losses = method(clean, parted)
    assert losses.keys() == expected.keys()
    for name, value in losses.items():
        assert value.item() == pytest.approx(expected[name], rel=3e-5), name
        assert value.requires_grad == (name == "loss")


def test_the_target_has_no_gradient() -> None:
    """What the encoder gets of the alignment comes through the visible patches alone."""
    method = tiny(name="cae")
    clean = images(2)
    parted = method.corrupt(clean, seeded(CPU, 1))
    words, logits_and_latents = method.tokenizer(clean).gather(1, parted.ids_masked), method._predict(clean, parted)
    target = method.backbone.forward_subset(clean, parted.ids_masked).detach()
    own = torch.nn.functional.cross_entropy(logits_and_latents[0].flatten(0, 1), words.flatten())
    own = own + 2 * torch.nn.functional.mse_loss(logits_and_latents[1], target)
    weights = [p for p in method.backbone.parameters() if p.requires_grad]
    expected = torch.autograd.grad(own, weights)
    for found, right in zip(torch.autograd.grad(method(clean, parted)["loss"], weights), expected, strict=True):
        torch.testing.assert_close(found, right)


def test_masked_pixels_reach_targets_alone() -> None:
    method = tiny(name="cae")
    clean = images(1)
    parted = method.corrupt(clean, seeded(CPU, 1))
    other = clean.clone()
    for token in parted.ids_masked[0].tolist():
        y, x = 4 * (token // 4), 4 * (token % 4)
        other[:, :, y : y + 4, x : x + 4] *= -1
    for before, after in zip(method._predict(clean, parted), method._predict(other, parted), strict=True):
        assert torch.equal(before, after)
    assert method(clean, parted)["alignment"] != method(other, parted)["alignment"]


def test_networks_that_cannot_drop_patches_are_refused(capfd: pytest.CaptureFixture[str]) -> None:
    code, _, err = cli(capfd, "pretrain", "--method", "cae", "--backbone", "beit-tiny", "--dry-run")
    assert code == 2
    assert "cannot encode a subset" in one_line(err)
