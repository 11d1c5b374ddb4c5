"""What every backbone promises."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dsdmae_cli.testing.material import check_spec, digit_images, small

if TYPE_CHECKING:
    from torch import Tensor

    from dsdmae_cli.backbone import Backbone


def check_backbone(name: str, *assignments: str) -> None:
    """See that an installed backbone keeps what backbones promise.

    Args:
        name: as --backbone takes it.
        assignments: settings that make it small, as --set takes them ("backbone.depth=1").

    Raises:
        AssertionError: a promise is not kept.
    """
    import torch

    from dsdmae_cli.config.resolve import resolve
    from dsdmae_cli.runs.build import build_backbone

    spec = check_spec("backbone", name)
    settings = resolve(small(*assignments, backbone=name).settings)
    side = settings.data.image_size
    assert isinstance(side, int)  # `small` has squares
    net, twin = (build_backbone(settings.backbone.without_weights(), side, seed) for seed in (0, 0))
    other = build_backbone(settings.backbone.without_weights(), side, 1)
    with torch.random.fork_rng():
        _weights_follow_the_seed(net, twin, other)
        _tokens_are_a_grid(net, side)
        _timm_state_is_its_own(net)
        if spec.any_channels:
            five = settings.backbone.without_weights().model_copy(update={"in_chans": 5})
            _channels_are_seen(build_backbone(five, side, 0), side)
        if spec.encodes_subset:
            _subsets_are_parts(net, side)
        if spec.takes_mask_token:
            _masks_are_seen(net, side)
        if spec.rectangles:
            _rectangles_are_seen(net, build_backbone(settings.backbone.without_weights(), (side, 2 * side), 0))
        _every_weight_learns(net, side)


def _weights_follow_the_seed(net: Backbone, twin: Backbone, other: Backbone) -> None:
    import torch

    mine, same, others = (part.state_dict() for part in (net, twin, other))
    assert all(torch.equal(mine[key], same[key]) for key in mine), "one seed gives two sets of weights"
    assert not all(torch.equal(mine[key], others[key]) for key in mine), "two seeds give the same weights"


def _tokens_are_a_grid(net: Backbone, side: int) -> None:
    import torch

    images = digit_images(2, side)
    with torch.no_grad():
        tokens = net.eval()(images)
        again, class_token = net.forward_tokens(images)
    assert net.image_size == side, f"image_size says {net.image_size} of images of {side} px"
    want = (2, net.grid[0] * net.grid[1], net.width)
    assert tuple(tokens.shape) == want, f"forward gives {tuple(tokens.shape)}; grid and width say {want}"
    assert tokens.isfinite().all(), "features are not finite"
    assert torch.equal(tokens, again), "forward_tokens gives other tokens than forward"
    assert (class_token is not None) == net.has_class_token, "has_class_token and forward_tokens disagree"
    assert len(net.mean) == len(net.std) == 3, "mean and std are of three channels"
    _blocks_end_in_the_features(net, images, tokens)


def _channels_are_seen(net: Backbone, side: int) -> None:
    """Every one of five channels changes the features."""
    import torch

    assert net.in_chans == len(net.mean) == len(net.std) == 5, "in_chans, mean and std are not of backbone.in_chans"
    images = torch.rand(1, 5, side, side) * 2 - 1
    with torch.no_grad():
        tokens = net.eval()(images)
        for channel in range(5):
            changed = images.clone()
            changed[:, channel] = -changed[:, channel]
            assert not torch.equal(net(changed), tokens), f"channel {channel + 1} of 5 is not seen"


def _rectangles_are_seen(net: Backbone, wide: Backbone) -> None:
    """One built for images twice as wide has twice the columns; one built for squares takes them by forward_grid."""
    import torch

    assert isinstance(net.image_size, int)
    (rows, columns), patch, own = net.grid, net.patch_shape, net.image_size
    assert wide.grid == (rows, 2 * columns), (
        f"the grid of images twice as wide is {wide.grid}, not {(rows, 2 * columns)}"
    )
    images = digit_images(2, own).repeat(1, 1, 1, 2)
    with torch.no_grad():
        lying = net.eval().forward_grid(images)
        assert tuple(wide.eval()(images).shape) == (2, 2 * rows * columns, wide.width), "not the tokens that grid says"
    assert tuple(lying.shape) == (2, rows, 2 * columns, net.width), f"set_image_size gives {tuple(lying.shape)}"
    assert (net.image_size, net.grid, net.patch_shape) == (own, (rows, columns), patch), (
        "a copy's size is the original's"
    )


def _blocks_end_in_the_features(net: Backbone, images: Tensor, tokens: Tensor) -> None:
    import torch

    count = net.num_blocks
    with torch.no_grad():
        found = net.forward_blocks(images, [count, 1])
    assert len(found) == 2, f"forward_blocks gives {len(found)} results for 2 blocks"
    assert torch.equal(found[0][0], tokens), "forward_blocks gives other tokens of the last block than forward"
    assert all(patches.ndim == 3 and len(patches) == 2 for patches, _ in found), "forward_blocks gives no [b, t, d]"


def _timm_state_is_its_own(net: Backbone) -> None:
    state = net.timm_state()
    assert state, "timm_state is empty: nothing of the encoder could be saved"
    own = {tensor.data_ptr() for tensor in net.state_dict().values()}
    copies = [key for key, tensor in state.items() if tensor.numel() and tensor.data_ptr() not in own]
    assert not copies, f"timm_state gives a copy of {copies[0]}: what is loaded into it would be lost"


def _subsets_are_parts(net: Backbone, side: int) -> None:
    import torch

    images, number = digit_images(2, side), net.num_tokens
    every = torch.arange(number).expand(2, -1)
    with torch.no_grad():
        torch.testing.assert_close(net.forward_subset(images, every), net(images), rtol=1e-4, atol=1e-4)
        some = net.forward_subset(images, every[:, : number // 2])
        again, class_token = net.forward_subset_tokens(images, every[:, : number // 2])
    assert torch.equal(some, again), "forward_subset_tokens gives other tokens than forward_subset"
    assert class_token is None or net.has_class_token, "has_class_token and forward_subset_tokens disagree"
    assert tuple(some.shape) == (2, number // 2, net.width), f"forward_subset gives {tuple(some.shape)}"


def _masks_are_seen(net: Backbone, side: int) -> None:
    import torch

    images, token = digit_images(2, side), torch.randn(1, 1, net.width)
    nothing = torch.zeros(2, net.num_tokens, dtype=torch.bool)
    one = nothing.clone()
    one[:, 0] = True
    with torch.no_grad():
        torch.testing.assert_close(net.forward_masked(images, nothing, token), net(images), rtol=1e-4, atol=1e-4)
        masked = net.forward_masked(images, one, token)
        changed = images.clone()
        height, width = net.patch_shape
        changed[:, :, :height, :width] = 1 - changed[:, :, :height, :width]
        torch.testing.assert_close(net.forward_masked(changed, one, token), masked, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(masked, net(images)), "a masked patch changes nothing"


def _every_weight_learns(net: Backbone, side: int) -> None:
    import torch

    tokens = net.train()(digit_images(2, side))
    (tokens * torch.randn_like(tokens)).sum().backward()
    idle = [key for key, p in net.named_parameters() if p.requires_grad and p.grad is None]
    # A class token's own weights are trained by what reads it.
    idle = [key for key in idle if not (net.has_class_token and "cls" in key)]
    assert not idle, f"{idle[0]} has no gradient; give it none by requires_grad_(False), or use it"
