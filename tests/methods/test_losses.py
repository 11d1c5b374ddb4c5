"""The shared losses against their formulas in float64 numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from dsdmae_cli.methods.losses import CosineKind, cosine_loss, pixel_loss, standardize_tokens

Array = NDArray[np.float64]


def pair(shape: tuple[int, ...] = (3, 7, 20), dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    first = torch.randn(shape, generator=g)
    second = 0.5 * first + torch.randn(shape, generator=g) + 0.3
    return first.to(dtype), second.to(dtype)


def wide(x: Tensor) -> Array:
    return x.detach().double().numpy()


def cosine(a: Array, b: Array) -> float:
    return float(a.ravel() @ b.ravel() / np.sqrt((a.ravel() @ a.ravel()) * (b.ravel() @ b.ravel())))


def cosine_reference(predicted: Array, target: Array, kind: CosineKind) -> float:
    """DSdMAE Eq. 2, one vector pair after the other, in each reading of what a vector is."""
    images, tokens, width = predicted.shape
    spans: dict[str, list[Any]] = {
        "token": [(i, t, slice(None)) for i in range(images) for t in range(tokens)],
        "channel": [(i, slice(None), d) for i in range(images) for d in range(width)],
        "global": [(i, slice(None), slice(None)) for i in range(images)],
    }
    return 1 - sum(cosine(predicted[span], target[span]) for span in spans[kind]) / len(spans[kind])


def test_pixel_loss_is_eq_1_as_a_mean() -> None:
    predicted, target = pair()
    per_patch = ((wide(predicted) - wide(target)) ** 2).mean(axis=-1)
    # MAE writes it as a mean per patch, then over the masked patches.
    assert pixel_loss(predicted, target).item() == pytest.approx(per_patch.mean(), rel=1e-6)
    assert pixel_loss(target, target) == 0


@pytest.mark.parametrize("kind", ["token", "channel", "global"])
def test_cosine_loss_in_its_three_readings(kind: CosineKind) -> None:
    predicted, target = pair()
    expected = cosine_reference(wide(predicted), wide(target), kind)
    assert cosine_loss(predicted, target, kind).item() == pytest.approx(expected, abs=1e-6)
    # It sees directions alone: 0 along the target, 2 against it.
    assert cosine_loss(3 * target, target, kind).item() == pytest.approx(0, abs=1e-6)
    assert cosine_loss(-target, target, kind).item() == pytest.approx(2, abs=1e-6)


def test_the_three_readings_differ_and_the_default_is_per_token() -> None:
    predicted, target = pair()
    # Tokens of unequal length tell the readings apart.
    predicted, target = predicted * torch.arange(1, 8)[:, None], target * torch.arange(1, 8)[:, None]
    kinds: tuple[CosineKind, ...] = ("token", "channel", "global")
    values = [cosine_loss(predicted, target, kind).item() for kind in kinds]
    assert min(abs(a - b) for i, a in enumerate(values) for b in values[:i]) > 1e-3
    assert cosine_loss(predicted, target).item() == values[0]


@pytest.mark.parametrize("kind", ["token", "channel", "global"])
def test_a_dead_token_breaks_nothing(kind: CosineKind) -> None:
    predicted, target = pair()
    predicted[0] = 0
    predicted.requires_grad_()
    loss = cosine_loss(predicted, target, kind)
    loss.backward()
    assert torch.isfinite(loss)
    assert predicted.grad is not None
    assert torch.isfinite(predicted.grad).all()


@pytest.mark.parametrize("offset", [0.0, 5.0])
@pytest.mark.parametrize("scale", [1.0, 1e-3, 100.0])
def test_standardize_tokens_is_sdaes(scale: float, offset: float) -> None:
    tokens = (pair()[0] + offset) * scale
    x = wide(tokens)
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, ddof=1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(standardize_tokens(tokens).numpy(), expected, rtol=0, atol=2e-5)


def test_a_constant_token_is_standardised_to_zero() -> None:
    assert standardize_tokens(torch.full((2, 3, 8), 4.0)).abs().max() == 0


@pytest.mark.parametrize("under_autocast", [False, True])
def test_half_precision_inputs_are_computed_in_float32(under_autocast: bool) -> None:
    predicted, target = pair((4, 16, 192), torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=under_autocast):
        pixel = pixel_loss(predicted, target)
        token = cosine_loss(predicted, target)
        standard = standardize_tokens(target)
    assert pixel.dtype == token.dtype == standard.dtype == torch.float32
    # bf16 arithmetic would be off in the third digit.
    assert pixel.item() == pytest.approx(((wide(predicted) - wide(target)) ** 2).mean(), rel=1e-6)
    assert token.item() == pytest.approx(cosine_reference(wide(predicted), wide(target), "token"), abs=1e-6)
    x = wide(target)
    expected = (x - x.mean(-1, keepdims=True)) / x.std(-1, ddof=1, keepdims=True)
    np.testing.assert_allclose(standard.numpy(), expected, rtol=0, atol=2e-5)


def test_gradients_equal_float64s() -> None:
    predicted, target = pair((2, 5, 8))
    predicted.requires_grad_()
    (0.6 * pixel_loss(predicted, target) + 0.4 * cosine_loss(predicted, target)).backward()
    assert predicted.grad is not None

    def loss(x: Array) -> float:
        return 0.6 * ((x - y) ** 2).mean() + 0.4 * cosine_reference(x, y, "token")

    x, y, step = wide(predicted), wide(target), 1e-5
    for index in [(0, 0, 0), (1, 4, 7), (0, 3, 2)]:
        shift = np.zeros_like(x)
        shift[index] = step
        slope = (loss(x + shift) - loss(x - shift)) / (2 * step)
        assert predicted.grad[index].item() == pytest.approx(slope, rel=1e-4, abs=1e-7)
