"""Backbones at other sizes than they were built for, rectangles too, held against timm's own interpolation."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed
from timm.models.beit import checkpoint_filter_fn
from torch import Tensor

from dsdmae_cli import plugins
from dsdmae_cli.backbone import Backbone, at_size, grid_of, sincos_positions
from dsdmae_cli.errors import SettingsError
from dsdmae_cli.settings.size import Size, as_sides, height_width, nearest_whole, size_of

_VIT = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
_UNET = {"patch_size": 2, "widths": (8, 16), "depths": (1, 1)}
_ALL = {
    "vit": ("vit-tiny", {**_VIT, "class_token": True, "pos_embed": "learn"}),
    "vit-sincos": ("vit-tiny", _VIT),
    "beit": ("beit-tiny", _VIT),
    "unet": ("unet", _UNET),
    "timm-vit": ("timm:vit_tiny_patch16_224", {"options": {"depth": 2, "patch_size": 8}}),
    "timm-convnext": ("timm:convnext_atto", {"options": {"depths": [1, 1, 1, 1]}}),
    "timm-resnet": ("timm:resnet10t", {}),
}


def built(kind: str, image_size: Size) -> Backbone:
    name, options = _ALL[kind]
    spec = plugins.find("backbone", name).spec
    torch.manual_seed(0)
    with torch.enable_grad():
        net = plugins.made_by(spec.build, Backbone, spec.settings(name=name, **options), image_size).eval()
    with torch.no_grad():
        for parameter in net.parameters():  # tables of biases begin at zero, where any interpolation is right
            parameter.add_(0.02 * torch.randn_like(parameter))
    return net


def images(size: Size, count: int = 2) -> Tensor:
    return torch.rand(count, 3, *height_width(size), generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("size", [(96, 64), (64, 160), 96])
@pytest.mark.parametrize("kind", _ALL)
@torch.no_grad()
def test_patches_lie_as_in_the_images(kind: str, size: Size) -> None:
    net = built(kind, 64)
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    height, width = height_width(size)
    rows, columns = height // net.patch_shape[0], width // net.patch_shape[1]
    grid = net.forward_grid(images(size))
    assert grid.shape == (2, rows, columns, net.width)
    assert grid.isfinite().all()
    assert net.image_size == 64
    assert all(torch.equal(before[key], tensor) for key, tensor in net.state_dict().items())
    other = at_size(net, size)
    assert (other.image_size, other.grid, other.patch_shape) == (size, (rows, columns), net.patch_shape)
    assert torch.equal(other(images(size)).unflatten(1, other.grid), grid)
    own = net.forward_grid(images(64))
    assert torch.equal(own.flatten(1, 2), net(images(64)))


@pytest.mark.parametrize("size", [(96, 64), (64, 160), 96, (32, 128)])
@pytest.mark.parametrize("kind", ["vit", "vit-sincos", "timm-vit"])
@torch.no_grad()
def test_positions_are_interpolated_as_timm_does(kind: str, size: Size) -> None:
    """timm's own network that interpolates as it goes, of the same weights. (32, 128) has as many tokens as 64."""
    net = built(kind, 64)
    timms: Any = timm.create_model(net.timm_name, **{**net.timm_kwargs, "dynamic_img_size": True}).eval()
    timms.load_state_dict(net.timm_state(), strict=False)
    prefix = timms.num_prefix_tokens
    want = timms.forward_features(net.normalize(images(size)))[:, prefix:]
    torch.testing.assert_close(net.forward_grid(images(size)).flatten(1, 2), want, rtol=1e-4, atol=1e-4)
    table = resample_abs_pos_embed(timms.pos_embed, at_size(net, size).grid, (8, 8), num_prefix_tokens=prefix)
    assert torch.equal(at_size(net, size).timm_state()["pos_embed"], table)


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")  # timm's own
@pytest.mark.parametrize("size", [(96, 64), 96])
@torch.no_grad()
def test_biases_over_distances_are_interpolated_as_timm_does(size: Size) -> None:
    net = built("beit", 64)
    kwargs = {**net.timm_kwargs, "img_size": height_width(size)}
    timms: Any = timm.create_model(net.timm_name, **kwargs).eval()
    timms.load_state_dict(checkpoint_filter_fn(net.timm_state(), timms))
    want = timms.forward_features(images(size))[:, 1:]
    torch.testing.assert_close(net.forward_grid(images(size)).flatten(1, 2), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", _ALL)
def test_what_is_trained_at_another_size_is_the_backbone(kind: str) -> None:
    net = built(kind, 64)
    net.forward_grid(images((96, 64))).square().sum().backward()
    size_bound = ("pos_embed", "relative_position_bias_table", "cls")
    for name, parameter in net.named_parameters():
        if parameter.requires_grad and not any(word in name for word in size_bound):
            assert parameter.grad is not None, name


@torch.no_grad()
def test_inner_blocks_of_hierarchical_networks_lie_as_in_the_images() -> None:
    net = built("timm-convnext", 64)
    found = [net.forward_grid(images((96, 64)), block).shape for block in range(1, net.num_blocks + 1)]
    assert found == [(2, 24, 16, 40), (2, 12, 8, 80), (2, 6, 4, 160), (2, 3, 2, 320)]
    scale = built("unet", 64)
    assert [scale.forward_grid(images((96, 64)), block).shape[1:3] for block in (1, 2, 3)] == [
        (48, 32), (24, 16), (48, 32),
    ]  # fmt: skip


@pytest.mark.parametrize("kind", _ALL)
@torch.no_grad()
def test_built_for_rectangles(kind: str) -> None:
    net = built(kind, (96, 64))
    assert net.image_size == (96, 64)
    assert net.grid == (96 // net.patch_shape[0], 64 // net.patch_shape[1])
    assert net.forward_grid(images((96, 64))).shape == (2, *net.grid, net.width)


@torch.no_grad()
def test_fixed_positions_of_a_rectangle_are_by_row_and_column() -> None:
    table = sincos_positions((3, 5), 16).double().reshape(3, 5, 16)
    for row in range(3):
        for column in range(5):
            for i in range(4):
                omega = 10000 ** (-i / 4)
                want = [f(torch.tensor(place * omega, dtype=torch.float64))
                        for place in (column, row) for f in (torch.sin, torch.cos)]  # fmt: skip
                got = table[row, column, i::4]
                torch.testing.assert_close(got, torch.stack(want), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "size", "words"),
    [
        ("vit", (60, 45), r"an image size of 60,45 px is no whole number of patches of 8 px .*; 56,40 and 64,48 would"),
        ("beit", (64, 60), r"64,60 px is no whole number of patches of 8 px .*; 64,56 and 64 would be"),
        ("unet", (64, 62), r"data.image_size = 64,62 must be a multiple of 4"),
        ("timm-vit", (60, 45), r"timm:vit_tiny_patch16_224"),
    ],
)
def test_a_size_that_is_no_whole_number_of_patches_is_refused(kind: str, size: Size, words: str) -> None:
    with pytest.raises(SettingsError, match=words) as caught:
        built(kind, 64).forward_grid(images(size))
    assert "\n" not in str(caught.value)


def test_a_rectangle_that_patches_do_not_fill_is_refused_when_a_network_is_built() -> None:
    with pytest.raises(SettingsError, match=r"8 does not divide data.image_size = 60,45; it may be one of 1, 3, 5, 15"):
        built("vit", (60, 45))


def test_words_for_sizes() -> None:
    assert as_sides("240, 180") == (240, 180)
    assert as_sides("[64,64]") == as_sides([64, 64]) == 64
    assert as_sides("auto") == "auto"
    assert (size_of("224"), size_of("192,256")) == (224, (192, 256))
    with pytest.raises(ValueError, match="HEIGHT,WIDTH"):
        size_of("192x256")
    assert nearest_whole((240, 180), (16, 16)) == ((240, 176), (240, 192))
    assert grid_of(24, (96, 64)) == (6, 4)
    assert grid_of(24, (64, 96)) == (4, 6)
