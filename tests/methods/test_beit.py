"""BEiT against its formulas in float64, one image at a time, and its backbone against timm and loops."""

from __future__ import annotations

import copy
import math

import pytest
import timm
import torch
from helpers import cli, one_line
from reference import blocks, cut, embed, images, layer_norm, linear, tiny
from torch import Tensor

from dsdmae_builtin.backbones import BEiTViTSettings
from dsdmae_builtin.beit_vit import BEiTViT
from dsdmae_builtin.methods.beit import BEiT
from dsdmae_cli.backbone import Backbone
from dsdmae_cli.data.source import seeded

CPU = torch.device("cpu")


def cross_entropy(logits: Tensor, words: Tensor) -> float:
    """-log softmax of the right word, mean over rows."""
    return float(sum(row.exp().sum().log() - row[word] for row, word in zip(logits, words, strict=True)) / len(words))


def reference(method: BEiT, clean: Tensor, ids_masked: Tensor) -> tuple[float, float]:
    w = {name: tensor.double() for name, tensor in method.state_dict().items()}
    words = method.tokenizer(clean)
    losses, right = [], []
    for image, ids, own in zip(clean.double(), ids_masked, words, strict=True):
        place = w["backbone.vit.pos_embed"][0]
        patches = embed(image, w, "backbone.vit") - place
        patches[ids] = w["mask_token"][0, 0]
        latents = blocks(patches + place, w, "backbone.vit", heads=2)[ids]
        logits = linear(latents, w, "head")
        losses.append(cross_entropy(logits, own[ids]))
        right.append((logits.argmax(dim=1) == own[ids]).double().mean().item())
    return sum(losses) / len(losses), sum(right) / len(right)


@pytest.mark.parametrize("more", [(), ("method.mask_ratio=0.7",), ("method.levels=[3,4]",)], ids=" ".join)
def test_beit_is_its_formulas(more: tuple[str, ...]) -> None:
    method = tiny(*more, name="beit")
    clean = images()
    corruption = method.corrupt(clean, seeded(CPU, 1))
    loss, right = reference(method, clean, corruption.ids_masked)
    exact = copy.deepcopy(method).double()
    exact.tokenizer = method.tokenizer  # the same words
    for losses, tolerance in ((_double(exact, method, clean, corruption), 1e-6), (method(clean, corruption), 2e-5)):
        assert losses.keys() == {"loss", "words", "accuracy"}
        assert losses["loss"].item() == pytest.approx(loss, rel=tolerance)
        assert losses["words"].item() == pytest.approx(loss, rel=tolerance)
        assert losses["accuracy"].item() == pytest.approx(right)
        assert losses["loss"].requires_grad
        assert not losses["words"].requires_grad


def _double(exact: BEiT, method: BEiT, clean: Tensor, corruption: object) -> dict[str, Tensor]:
    """The loss in float64 with the words that float32 gives: a rounding error could tip a word."""
    words = method.tokenizer(clean)
    exact.tokenizer.forward = lambda images: words  # type: ignore[method-assign]
    try:
        losses: dict[str, Tensor] = exact(clean.double(), corruption)
        return losses
    finally:
        del exact.tokenizer.forward


def test_the_first_loss_is_the_logarithm_of_the_vocabulary() -> None:
    from helpers import settings

    from dsdmae_cli.config.resolve import resolve
    from dsdmae_cli.runs.build import build_method

    method = build_method(resolve(settings("digits", method="beit").settings))
    clean = images()
    loss = method(clean, method.corrupt(clean, seeded(CPU, 0)))["loss"].item()
    assert loss == pytest.approx(math.log(1000), rel=0.02)


def test_masked_pixels_are_seen_by_the_tokenizer_alone() -> None:
    method = tiny(name="beit")
    clean = images(1)
    corruption = method.corrupt(clean, seeded(CPU, 1))
    other = clean.clone()
    for token in corruption.ids_masked[0].tolist():
        y, x = 4 * (token // 4), 4 * (token % 4)
        other[:, :, y : y + 4, x : x + 4] *= -1
    assert torch.equal(method._predict(clean, corruption)[0], method._predict(other, corruption)[0])
    assert not torch.equal(method.tokenizer(clean), method.tokenizer(other))


def test_networks_without_a_mask_token_are_refused(capfd: pytest.CaptureFixture[str]) -> None:
    code, _, err = cli(capfd, "pretrain", "--method", "beit", "--backbone", "timm:resnet18", "--dry-run")
    assert code == 2
    assert "cannot take one" in one_line(err)


@torch.no_grad()
def test_its_pictures() -> None:
    method = tiny(name="beit")
    clean = images(2)
    corruption = method.corrupt(clean, seeded(CPU, 1))
    shown = method.show(clean, corruption)
    assert list(shown) == ["given", "predicted", "true words"]
    torch.testing.assert_close(shown["true words"], method.tokenizer.decode(method.tokenizer(clean)))
    assert (shown["given"] == 0).all(dim=1).sum() == 2 * len(corruption.ids_masked[0]) * 16


# -- its backbone


def network(**more: object) -> BEiTViT:
    given = {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, **more}
    net = BEiTViT(BEiTViTSettings.model_validate(given), 16)
    generator = seeded(CPU, 0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return net.eval()


def biases(table: Tensor, grid: int, heads: int) -> Tensor:
    """[heads, 1+T, 1+T]: an entry of the table for every pair of tokens, by distance; three for the class token."""
    found = torch.zeros(heads, 1 + grid * grid, 1 + grid * grid, dtype=torch.float64)
    side = 2 * grid - 1
    for a in range(grid * grid):
        for b in range(grid * grid):
            down, across = a // grid - b // grid, a % grid - b % grid
            found[:, 1 + a, 1 + b] = table[(down + grid - 1) * side + across + grid - 1]
    found[:, 0, 1:] = table[side * side].unsqueeze(1)
    found[:, 1:, 0] = table[side * side + 1].unsqueeze(1)
    found[:, 0, 0] = table[side * side + 2]
    return found


def encode(net: BEiTViT, patches: Tensor) -> Tensor:
    w = {name: tensor.double() for name, tensor in net.vit.state_dict().items()}
    bias = biases(w["rel_pos_bias.relative_position_bias_table"], 4, 2)
    x = torch.cat([w["cls_token"][0], patches])
    for i in range(2):
        at = f"blocks.{i}"
        zero = torch.zeros_like(w[f"{at}.attn.q_bias"])
        offset = torch.cat([w[f"{at}.attn.q_bias"], zero, w[f"{at}.attn.v_bias"]])
        q, k, v = (layer_norm(x, w, f"{at}.norm1") @ w[f"{at}.attn.qkv.weight"].T + offset).chunk(3, dim=-1)
        mixed = []
        for h in range(2):
            part = slice(8 * h, 8 * h + 8)
            scores = (q[:, part] @ k[:, part].T / math.sqrt(8) + bias[h]).exp()
            mixed.append(scores / scores.sum(dim=1, keepdim=True) @ v[:, part])
        x = x + w[f"{at}.gamma_1"] * linear(torch.cat(mixed, dim=1), w, f"{at}.attn.proj")
        hidden = linear(layer_norm(x, w, f"{at}.norm2"), w, f"{at}.mlp.fc1")
        gelu = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
        x = x + w[f"{at}.gamma_2"] * linear(gelu, w, f"{at}.mlp.fc2")
    return layer_norm(x, w, "norm")


@torch.no_grad()
def test_the_backbone_is_its_formulas() -> None:
    net = network()
    clean, token = images(2), torch.randn(1, 1, 16, generator=seeded(CPU, 3))
    masked = torch.rand(2, 16, generator=seeded(CPU, 4)) < 0.4
    kernel = net.vit.patch_embed.proj.weight.double().permute(0, 2, 3, 1).flatten(1)
    for image, hidden, whole, some in zip(
        clean, masked, net(clean), net.forward_masked(clean, masked, token), strict=True
    ):
        patches = cut(image.double()) @ kernel.T + net.vit.patch_embed.proj.bias.double()
        torch.testing.assert_close(whole.double(), encode(net, patches)[1:], rtol=1e-4, atol=1e-5)
        patches[hidden] = token[0, 0].double()
        torch.testing.assert_close(some.double(), encode(net, patches)[1:], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_timm_builds_the_same_network_at_any_size() -> None:
    net: Backbone = network()
    for size in (16, 24):
        net.set_image_size(size)
        theirs = timm.create_model(net.timm_name, **net.timm_kwargs).eval()
        theirs.load_state_dict(net.timm_state())
        clean = torch.rand(2, 3, size, size, generator=seeded(CPU, 5)) * 2 - 1
        tokens, first = net.forward_tokens(clean)
        expected = theirs.forward_features(clean)
        torch.testing.assert_close(tokens, expected[:, 1:])
        torch.testing.assert_close(first, expected[:, 0])
        assert tokens.shape[1] == net.num_tokens == (size // 4) ** 2


def test_layer_scale_reaches_timm() -> None:
    method = tiny("backbone.layer_scale=0.1", name="mae")
    encoder = method.encoder()
    theirs = timm.create_model(encoder.timm_name, **encoder.timm_kwargs)
    theirs.load_state_dict(encoder.timm_state())
    assert any("ls1.gamma" in name for name in theirs.state_dict())
