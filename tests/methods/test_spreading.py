"""The regularisers of pooled features against their formulas in float64, and in every method that takes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.integrate import quad
from torch import Tensor
from torch.utils._pytree import tree_leaves

from dsdmae_cli.data.source import seeded
from dsdmae_cli.methods.spreading import DIRECTIONS, draw_directions, sigreg, uniformity
from dsdmae_cli.plugins import BrokenPlugin, discover
from dsdmae_cli.settings.models import SpreadSettings
from dsdmae_cli.testing import methods as testing
from dsdmae_cli.testing.material import digit_images

Array = NDArray[np.float64]
CPU = torch.device("cpu")
BOTH = ("method.uniformity_weight=0.5", "method.sigreg_weight=0.1")


def taking() -> list[str]:
    specs = [plugin for plugin in discover("method") if not isinstance(plugin, BrokenPlugin)]
    return [plugin.name for plugin in specs if issubclass(plugin.spec.settings, SpreadSettings)]


def features(b: int = 12, d: int = 6, seed: int = 0) -> Tensor:
    return 0.7 * torch.randn(b, d, generator=seeded(CPU, seed)) + 0.4


def mean_squared_cosine(x: Array) -> float:
    cosines = [np.dot(a, b) / np.sqrt(np.dot(a, a) * np.dot(b, b)) for a in x for b in x]
    return float(np.mean(np.square(cosines)))


def epps_pulley(x: Array, directions: Array) -> float:
    """Direction by direction, point by point, by the trapezoidal rule on both sides of 0."""
    points = np.linspace(-3, 3, 33)
    total = 0.0
    for direction in directions.T:
        along = x @ direction
        gap = [abs(np.mean(np.exp(1j * t * along)) - np.exp(-(t**2) / 2)) ** 2 * np.exp(-(t**2) / 2) for t in points]
        total += len(x) * np.trapezoid(gap, points)
    return total / directions.shape[1]


def slope(of: Any, x: Array, index: tuple[int, int], step: float = 1e-5) -> float:
    shift = np.zeros_like(x)
    shift[index] = step
    return float((of(x + shift) - of(x - shift)) / (2 * step))


def test_uniformity_is_the_mean_squared_cosine_and_so_is_its_gradient() -> None:
    x = features().requires_grad_()
    value = uniformity(x)
    value.backward()
    exact = x.detach().double().numpy()
    assert value.item() == pytest.approx(mean_squared_cosine(exact), rel=1e-5)
    assert x.grad is not None
    for index in [(0, 0), (5, 3), (11, 5)]:
        assert x.grad[index].item() == pytest.approx(slope(mean_squared_cosine, exact, index), rel=1e-3, abs=1e-6)
    assert uniformity(torch.ones(8, 4)).item() == pytest.approx(1)
    assert uniformity(torch.eye(8)).item() == pytest.approx(1 / 8)


def test_sigreg_is_the_statistic_along_each_direction_and_so_is_its_gradient() -> None:
    x, directions = features().requires_grad_(), draw_directions(6, seeded(CPU, 1))
    assert directions.shape == (6, DIRECTIONS)
    torch.testing.assert_close(directions.norm(dim=0), torch.ones(DIRECTIONS))
    value = sigreg(x, directions)
    value.backward()
    exact, along = x.detach().double().numpy(), directions.double().numpy()
    assert value.item() == pytest.approx(epps_pulley(exact, along), rel=1e-4)
    assert x.grad is not None
    for index in [(0, 0), (5, 3), (11, 5)]:
        expected = slope(lambda moved: epps_pulley(moved, along), exact, index)
        assert x.grad[index].item() == pytest.approx(expected, rel=2e-3, abs=1e-5)


def test_the_quadrature_is_near_the_integral() -> None:
    x, directions = features(), draw_directions(6, seeded(CPU, 1))[:, :1]
    along = (x @ directions).double().numpy()[:, 0]

    def gap(t: float) -> float:
        return float(abs(np.mean(np.exp(1j * t * along)) - np.exp(-(t**2) / 2)) ** 2 * np.exp(-(t**2) / 2))

    assert sigreg(x, directions).item() == pytest.approx(len(x) * quad(gap, -3, 3)[0], rel=1e-3)


def test_what_gaussian_features_have_and_others_have_more() -> None:
    directions = draw_directions(16, seeded(CPU, 0))
    samples = [torch.randn(256, 16, generator=seeded(CPU, seed)) for seed in range(40)]
    gaussian = float(np.mean([sigreg(sample, directions).item() for sample in samples]))
    # The expectation for n draws of N(0, 1): ∫ (1 - exp(-t²)) exp(-t²/2) dt over [-3, 3].
    assert gaussian == pytest.approx(quad(lambda t: (1 - np.exp(-(t**2))) * np.exp(-(t**2) / 2), -3, 3)[0], rel=0.1)
    for other in (samples[0] + 1, 2 * samples[0], torch.zeros(256, 16)):
        assert sigreg(other, directions).item() > 3 * gaussian


def test_both_are_computed_in_float32_under_autocast() -> None:
    x, directions = features(), draw_directions(6, seeded(CPU, 1))
    with torch.autocast("cpu", torch.bfloat16):
        values = uniformity(x), sigreg(x, directions)
    assert [value.dtype for value in values] == [torch.float32] * 2
    torch.testing.assert_close(values, (uniformity(x), sigreg(x, directions)), rtol=0, atol=0)


def test_every_method_but_the_tokenizer_and_lejepa_takes_them() -> None:
    every = {plugin.name for plugin in discover("method")}
    # LeJEPA's loss is SIGReg; a vocabulary has no pooled features.
    assert every - set(taking()) == {"lejepa", "tokenizer"}


@pytest.mark.parametrize("name", taking())
def test_a_method_has_them_in_its_loss_and_without_a_weight_draws_nothing(name: str) -> None:
    plain, spread = testing.build(name), testing.build(name, *BOTH)
    spread.load_state_dict(plain.state_dict())
    images = plain.as_views(digit_images(8))
    one, other = (method.corrupt(images, seeded(CPU, 1)) for method in (plain, spread))
    before, after = ([leaf for leaf in tree_leaves(c) if isinstance(leaf, Tensor)] for c in (one, other))
    drawn = [leaf for leaf in after if leaf.shape == (plain.encoder().width, DIRECTIONS)]
    # Masks, noise and views are the same draws.
    kept = [leaf for leaf in after if leaf is not drawn[0]]
    assert (len(drawn), len(kept)) == (1, len(before))
    assert all(torch.equal(a, b) for a, b in zip(before, kept, strict=True))
    without, with_both = plain.eval()(images, one), spread.eval()(images, other)
    assert {"uniformity", "sigreg"} & without.keys() == set()
    expected = without["loss"] + 0.5 * with_both["uniformity"] + 0.1 * with_both["sigreg"]
    torch.testing.assert_close(with_both["loss"], expected)
    assert 1 / 8 <= with_both["uniformity"].item() <= 1
    assert spread.whole_batch


@pytest.mark.parametrize("promise", [testing.all_but_teachers_learn, testing.randomness_is_the_generators])
def test_with_both_a_method_keeps_its_promises(promise: Any) -> None:
    promise(testing.build("dsdmae", *BOTH))


def test_cutting_the_batch_is_refused_only_with_a_weight() -> None:
    testing.batch_may_be_cut(testing.build("mae"))
    assert not testing.build("mae").whole_batch
    testing.batch_may_be_cut(testing.build("mae", *BOTH))  # sees that cutting it does make a difference
