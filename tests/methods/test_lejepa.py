"""LeJEPA against its formula in float64 and torchvision's MLP, and what its settings promise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_spreading import epps_pulley
from torch import Tensor
from torch.nn import BatchNorm1d
from torchvision.ops import MLP

from dsdmae_builtin.methods.lejepa import LeJEPA, Views
from dsdmae_cli.data.source import seeded
from dsdmae_cli.errors import SettingsError
from dsdmae_cli.testing.methods import build

CPU = torch.device("cpu")


def views_of(method: LeJEPA, count: int = 6) -> Tensor:
    return torch.rand(count, method.num_views, 3, 16, 16, generator=seeded(CPU, 0)) * 2 - 1


def made(*more: str) -> Any:
    return build("lejepa", "method.hidden_dim=32", "method.out_dim=5", *more)


def test_the_loss_is_the_papers() -> None:
    method = made("method.views=3", "method.sigreg_weight=0.1").train()
    images = views_of(method)
    corruption = method.corrupt(images, seeded(CPU, 1))
    losses = method(images, corruption)
    # The public code's projector with our weights, on [images x views] at once.
    peer = MLP(method.backbone.width, [32, 32, 5], norm_layer=BatchNorm1d).double().train()
    ours = list(method.projector.parameters())
    with torch.no_grad():
        for theirs, mine in zip(peer.parameters(), ours, strict=True):
            theirs.copy_(mine)
    pooled = method.backbone(corruption.views.flatten(0, 1)).mean(dim=1).double()
    z = peer(pooled).detach().unflatten(0, (6, 3))
    distance = sum(float((z[i, v] - z[i].mean(0)).square().sum()) for i in range(6) for v in range(3)) / z.numel()
    along = corruption.directions.double().numpy()
    gaussian = sum(epps_pulley(z[:, v].numpy(), along) for v in range(3)) / 3
    assert losses["invariance"].item() == pytest.approx(distance, rel=1e-4)
    assert losses["sigreg"].item() == pytest.approx(gaussian, rel=1e-4)
    assert losses["loss"].item() == pytest.approx(0.9 * distance + 0.1 * gaussian, rel=1e-4)


def test_every_view_has_a_draw_of_its_own() -> None:
    method = made()
    assert (method.num_views, method.whole_batch) == (4, True)
    images = method.as_views(torch.rand(2, 3, 16, 16, generator=seeded(CPU, 0)) * 2 - 1)
    views = method.corrupt(images, seeded(CPU, 1)).views
    assert views.shape == images.shape
    assert all(not torch.equal(views[:, 0], views[:, v]) for v in range(1, 4))


def test_what_all_images_share_is_no_way_out() -> None:
    """A projector that gives every image the same has no distance between views, and a loss far above a Gaussian's."""
    method = made().eval()
    images = views_of(method, 32)
    corruption = method.corrupt(images, seeded(CPU, 1))
    with torch.no_grad():
        for parameter in method.projector.parameters():
            parameter.zero_()
        losses = method(images, corruption)
    assert losses["invariance"].item() == 0
    assert losses["sigreg"].item() > 10


def test_it_shows_two_views() -> None:
    method = made()
    images = views_of(method, 2)
    corruption: Views = method.corrupt(images, seeded(CPU, 1))
    shown = method.show(images, corruption)
    assert list(shown) == ["a view", "another"]
    assert torch.equal(shown["another"], corruption.views[:, 1])


def test_one_view_is_refused() -> None:
    with pytest.raises(SettingsError, match="views"):
        made("method.views=1")
