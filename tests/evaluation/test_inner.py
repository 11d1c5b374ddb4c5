"""What a probe sees of an encoder: inner blocks, several side by side, slightly noisy images."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.layers import DropPath
from torch import Tensor

from dsdmae_cli.backbone import Pixels
from dsdmae_cli.config.compose import load
from dsdmae_cli.config.resolve import resolve
from dsdmae_cli.errors import SettingsError
from dsdmae_cli.evaluation.features import encoder_digest
from dsdmae_cli.evaluation.inner import Seen, candidates, tokens_of
from dsdmae_cli.runs.build import build_backbone

CONVNEXT = ("backbone.name=timm:test_convnext", "backbone.patch_size=1",
            "backbone.options={depths=[1, 1, 1, 1], dims=[16, 16, 24, 32]}")  # fmt: skip
SMALL = ("backbone.patch_size=4", "backbone.embed_dim=32", "backbone.depth=3", "backbone.num_heads=2")
NETWORKS = {
    "vit": SMALL,
    "vit with class token": (*SMALL, "backbone.class_token=true"),
    "beit": ("backbone.name=beit-tiny", *SMALL),
    "timm vit": ("backbone.name=timm:vit_tiny_patch16_224", "backbone.options={embed_dim=24, depth=3, num_heads=2}"),
    "timm convnext": CONVNEXT,
    "unet": ("backbone.name=unet", "backbone.patch_size=2", "backbone.widths=[8, 12]", "backbone.depths=[1, 1]"),
}


def network(name: str) -> Any:
    given = load(assignments=["data.dataset=digits", "data.image_size=32", *NETWORKS[name]], environ={}).settings
    return build_backbone(resolve(given).backbone, 32, 0).eval()


def images(count: int = 3, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("noise_std", [0.0, 0.2])
@pytest.mark.parametrize("name", list(NETWORKS))
def test_all_blocks_in_one_pass(name: str, noise_std: float) -> None:
    """What each gives by itself, and each module of the network works once."""
    net, x = network(name).requires_grad_(False), images()
    encoders = list(candidates(net, "all", noise_std).values())
    alone = [encoder.forward_tokens(x) for encoder in encoders]
    tokens_of(encoders, x)  # a timm network is asked, once, how it normalises
    calls: list[object] = []
    hooks = [
        module.register_forward_hook(lambda m, _i, _o: calls.append(m)) for module in net.modules() if module is not net
    ]
    together = tokens_of(encoders, x)
    for hook in hooks:
        hook.remove()
    assert calls
    assert len(calls) <= len(list(net.modules()))
    for (patches, token), (expected, expected_token) in zip(together, alone, strict=True):
        torch.testing.assert_close(patches, expected, rtol=0, atol=0)
        assert (token is None) == (expected_token is None)
        if token is not None:
            torch.testing.assert_close(token, expected_token, rtol=0, atol=0)


def test_networks_of_their_own_are_not_mixed_up() -> None:
    one, other, x = network("vit"), network("unet"), images()
    with torch.no_grad():
        found = tokens_of([Seen(one, (1,)), Seen(other, (1,)), one], x)
        for (patches, _), encoder in zip(found, (Seen(one, (1,)), Seen(other, (1,)), one), strict=True):
            torch.testing.assert_close(patches, encoder.forward_tokens(x)[0], rtol=0, atol=0)


@pytest.mark.parametrize("name", list(NETWORKS))
def test_blocks_are_what_passes_through_the_network(name: str) -> None:
    """Against hooks on the network's own modules, the last block against its final features."""
    net, x = network(name).requires_grad_(False), images()
    assert net.num_blocks > 1
    blocks = list(range(1, net.num_blocks + 1))
    found = net.forward_blocks(x, blocks)
    final, token = net.forward_tokens(x)
    torch.testing.assert_close(found[-1][0], final, rtol=0, atol=0)
    assert (token is None) == (found[-1][1] is None)
    modules = {
        "timm convnext": lambda: list(net.model.stages),
        "timm vit": lambda: list(net.model.blocks),
        "unet": lambda: [*net.encode, *reversed(net.decode)],
    }.get(name, lambda: list(net.vit.blocks))()
    seen: list[Tensor] = []
    hooks = [module.register_forward_hook(lambda _m, _i, out: seen.append(out)) for module in modules]
    net(x)
    for hook in hooks:
        hook.remove()
    for (patches, class_token), given in zip(found[:-1], seen, strict=False):
        as_tokens = given if given.ndim == 3 else given.flatten(2).transpose(1, 2)
        if as_tokens.shape[1] > patches.shape[1]:
            assert class_token is not None or name == "timm vit"
            if class_token is not None:
                torch.testing.assert_close(class_token, as_tokens[:, 0])
            as_tokens = as_tokens[:, -patches.shape[1] :]
        torch.testing.assert_close(patches, as_tokens)
    # Asked for in another order, and alone.
    torch.testing.assert_close(net.forward_blocks(x, [2, 1])[0][0], found[1][0])
    torch.testing.assert_close(net.forward_blocks(x, [1])[0][0], found[0][0])


@pytest.mark.parametrize(
    ("name", "options", "final"),
    [
        ("vit_tiny_patch16_224", "{embed_dim=24, depth=3, num_heads=2, global_pool='avg', fc_norm=true}", "by timm"),
        ("vit_base_patch14_reg4_dinov2", "{embed_dim=24, depth=3, num_heads=2}", "by its norm"),
        ("eva02_tiny_patch14_224", "{embed_dim=16, depth=3, num_heads=2}", "by timm"),
        ("beit_base_patch16_224", "{embed_dim=16, depth=3, num_heads=2, global_pool='token'}", "by its norm"),
        ("swin_tiny_patch4_window7_224", "{embed_dim=8, depths=[1, 1], num_heads=[1, 2]}", "by timm"),
        ("test_efficientnet", "{}", "by timm"),
        ("samvit_base_patch16", "{embed_dim=16, depth=3, num_heads=2}", "apart"),
    ],
)
def test_timm_networks_give_final_and_inner_features_of_one_draw(name: str, options: str, final: str) -> None:
    """In training, where blocks are dropped at random: what stands side by side is of one pass."""
    flags = (f"backbone.name=timm:{name}", f"backbone.options={options}", "backbone.patch_size=auto")
    given = load(assignments=["data.dataset=digits", "data.image_size=112", *flags], environ={}).settings
    net: Any = build_backbone(resolve(given).backbone, 112, 0).requires_grad_(False).eval()
    assert net._final == final
    x, count = torch.rand(2, 3, 112, 112, generator=torch.Generator().manual_seed(0)) * 2 - 1, net.num_blocks
    together = net.forward_blocks(x, [count, 1])
    for found, expected in zip(together, (net.forward_tokens(x), net.forward_blocks(x, [1])[0]), strict=True):
        torch.testing.assert_close(found[0], expected[0], rtol=0, atol=0)
        assert (found[1] is None) == (expected[1] is None)
        if found[1] is not None:
            torch.testing.assert_close(found[1], expected[1], rtol=0, atol=0)
    if name != "vit_base_patch14_reg4_dinov2":
        return
    for block in net.model.blocks:
        block.drop_path1, block.drop_path2 = DropPath(0.5), DropPath(0.5)
    net.train()
    seen: list[Tensor] = []
    net.model.blocks[-1].register_forward_pre_hook(lambda _m, given: seen.append(given[0]))
    net.model.norm.register_forward_pre_hook(lambda _m, given: seen.append(given[0]))
    (inner, _), (last, _) = net.forward_blocks(x, [count - 1, count])
    before, patches, _ = seen
    torch.testing.assert_close(inner, before[:, -inner.shape[1] :])
    torch.testing.assert_close(last, torch.nn.functional.layer_norm(patches, (24,), eps=1e-6))


@torch.no_grad()
def test_blocks_side_by_side() -> None:
    net, x = network("vit with class token"), images()
    seen = candidates(net, "last:2", 0.0)["last:2"]
    inner, last = net.forward_blocks(x, [2, 3])
    patches, token = seen.forward_tokens(x)
    assert seen.width == 2 * net.width
    assert torch.equal(patches, torch.cat([inner[0], last[0]], dim=2))
    assert torch.equal(token, torch.cat([inner[1], last[1]], dim=1))
    assert list(candidates(net, "all", 0.0)) == ["1", "2", "3"]
    assert candidates(net, "last", 0.0)["last"] is net


@torch.no_grad()
def test_noise_is_an_images_own() -> None:
    net, x = network("vit"), images(40)
    seen = candidates(net, "last", 0.2)["last"]
    together, alone = seen(x), torch.cat([seen(image[None]) for image in x])
    torch.testing.assert_close(together, alone)
    added: list[Tensor] = []
    forward = net.forward_blocks

    def overheard(given: Tensor, blocks: Any) -> Any:
        added.append(given)
        return forward(given, blocks)

    net.forward_blocks = overheard
    seen(x)
    noise = (added[0] - x).flatten(1)
    assert noise.std().item() == pytest.approx(0.2, rel=0.02)
    assert len({tuple(row[:5].tolist()) for row in noise}) > 15  # of 64 fields, 40 images meet about 30


@torch.no_grad()
def test_which_noise_a_large_image_gets_is_an_exact_sum() -> None:
    """Beyond 2^24, where a float32 knows no odd numbers, an image is one level of one pixel brighter than another."""
    given = load(assignments=["data.dataset=digits", "data.image_size=320", *NETWORKS["vit"]], environ={}).settings
    net = build_backbone(resolve(given).backbone.model_copy(update={"patch_size": 160}), 320, 0).eval()
    seen = candidates(net, "last", 0.2)["last"]
    assert isinstance(seen, Seen)
    levels = torch.full((5, 3, 320, 320), 200, dtype=torch.uint8)
    for brighter in range(5):
        levels[brighter, 0, 0, :brighter] += 1
    assert int(levels[0].long().sum()) > 2**24
    x = levels.float() / 127.5 - 1
    expected = levels.numpy().astype("int64").sum(axis=(1, 2, 3)) % 64
    assert len(set(expected.tolist())) == 5
    torch.testing.assert_close(seen.noisy(x), x + 0.2 * seen.fields[torch.from_numpy(expected)], rtol=0, atol=0)


def test_blocks_and_noise_of_images_with_five_bands() -> None:
    given = load(assignments=["data.dataset=digits", "data.image_size=32", *NETWORKS["vit"]], environ={}).settings
    net = build_backbone(resolve(given).backbone.model_copy(update={"in_chans": 5}), 32, 0).eval()
    five = torch.rand(3, 5, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for name, encoder in candidates(net, "all", 0.1).items():
        assert encoder.in_chans == 5
        assert encoder(five).shape == (3, net.num_tokens, 32), name


def test_features_of_other_blocks_and_noise_are_kept_apart() -> None:
    net = network("vit")
    seen = [net, Seen(net, (1,)), Seen(net, (2,)), Seen(net, (1,), 0.1), Seen(net, (1,), 0.2)]
    assert len({encoder_digest(encoder) for encoder in seen}) == len(seen)


@pytest.mark.parametrize(
    ("name", "blocks", "said"),
    [
        ("vit", "4", "there is no block 4; this encoder has blocks 1 to 3"),
        ("vit", "last:5", "last:5 of 3 blocks, which this encoder has; take last:3 or fewer"),
        ("unet", "last:2", "have grids of 64, 256 tokens and cannot be put side by side"),
        ("pixels", "1", None),
        ("pixels", "2", "offers its final features alone"),
        ("pixels", "all", "offers its final features alone"),
    ],
)
def test_blocks_that_are_not_there(name: str, blocks: str, said: str | None) -> None:
    net = Pixels(32) if name == "pixels" else network(name)
    if said is None:
        assert list(candidates(net, blocks, 0.0)) == [blocks]
        return
    with pytest.raises(SettingsError, match=said):
        candidates(net, blocks, 0.0)
