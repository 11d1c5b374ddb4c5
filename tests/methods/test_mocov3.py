"""MoCo v3 against its formulas in float64, and the promises of its settings."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import settings
from PIL import Image
from reference import blocks, embed
from torch import Tensor

from dsdmae_builtin.methods.mocov3 import MoCoV3, Views
from dsdmae_cli.config.resolve import resolve
from dsdmae_cli.data.source import seeded
from dsdmae_cli.errors import SettingsError
from dsdmae_cli.methods.base import StepInfo
from dsdmae_cli.methods.ema import cosine_momentum
from dsdmae_cli.runs.build import build_method

CPU = torch.device("cpu")
Weights = dict[str, Tensor]


def build(name: str, *more: str) -> Any:
    return build_method(resolve(settings("digits", *more, method=name).settings))


def perturbed(method: Any, seed: int = 0) -> Any:
    """All weights away from their first values, so that student and teacher differ."""
    generator = seeded(CPU, seed)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return method


def pairs(count: int = 5, size: int = 16, seed: int = 0) -> Tensor:
    return torch.rand(count, 2, 3, size, size, generator=seeded(CPU, seed)) * 2 - 1


# -- the second implementation, in float64: shared with test_msa.py


def mlp_of(x: Tensor, w: Weights, name: str, layers: int) -> Tensor:
    """Linear, batch norm over the images, ReLU; the last norm has neither scale nor shift, and no ReLU follows."""
    for layer in range(layers):
        x = x @ w[f"{name}.{3 * layer}.weight"].T
        x = (x - x.sum(0) / len(x)) / (((x - x.sum(0) / len(x)) ** 2).sum(0) / len(x) + 1e-5) ** 0.5
        if layer < layers - 1:
            x = x * w[f"{name}.{3 * layer + 1}.weight"] + w[f"{name}.{3 * layer + 1}.bias"]
            x = x * (x > 0)
    assert not [key for key in w if key.startswith(f"{name}.{3 * layers}")]
    return x


def contrast(queries: Tensor, keys: Tensor, tau: float) -> float:
    """Algorithm 1: labels on the diagonal, cross-entropy times 2τ."""
    q, k = (x / (x**2).sum(1, keepdim=True) ** 0.5 for x in (queries, keys))
    odds = (q @ k.T / tau).exp()
    return float(-2 * tau * (odds.diagonal() / odds.sum(1)).log().mean())


def whole_images(views: Tensor, w: Weights, name: str) -> Tensor:
    return torch.stack([blocks(embed(view, w, name), w, name, heads=2).mean(0) for view in views])


def reference(method: MoCoV3, views: Views) -> float:
    w = {name: tensor.double() for name, tensor in method.state_dict().items()}
    queries, keys = [], []
    for view in (views.first.double(), views.second.double()):
        projected = mlp_of(whole_images(view, w, "student.vit"), w, "projector", 3)
        queries.append(mlp_of(projected, w, "predictor", 2))
        keys.append(mlp_of(whole_images(view, w, "teacher.module.vit"), w, "teacher_projector.module", 3))
    tau = method.settings.temperature
    return contrast(queries[0], keys[1], tau) + contrast(queries[1], keys[0], tau)


@pytest.mark.parametrize("more", [(), ("method.temperature=1", "method.freeze_patch_embed=false")], ids=" ".join)
def test_mocov3_is_its_formulas(more: tuple[str, ...]) -> None:
    method = perturbed(build("mocov3", *more)).train()
    images = pairs()
    views = method.corrupt(images, seeded(CPU, 1))
    expected = reference(method, views)
    exact = copy.deepcopy(method).double()
    # In float64 but for what the program always computes in float32: batch norms and the loss.
    for found in (exact(images.double(), Views(*(view.double() for view in views[:2]))), method(images, views)):
        assert found.keys() == {"loss", "contrastive"}
        assert found["loss"].item() == found["contrastive"].item() == pytest.approx(expected, rel=2e-5)
        assert not found["contrastive"].requires_grad
    # Which crop is the first matters to the views, not to the loss of given ones.
    turned = method(images, Views(views.second, views.first))
    assert turned["loss"].item() == pytest.approx(expected, rel=2e-5)


def test_modes_do_not_change_the_loss() -> None:
    """Batch norm by running statistics would."""
    method, images = perturbed(build("mocov3")), pairs()
    views = method.corrupt(images, seeded(CPU, 1))
    assert torch.equal(method.train()(images, views)["loss"], method.eval()(images, views)["loss"])


def test_what_is_trained() -> None:
    method, images = perturbed(build("mocov3")).train(), pairs()
    method(images, method.corrupt(images, seeded(CPU, 1)))["loss"].backward()
    still = {name for name, p in method.named_parameters() if not p.requires_grad}
    assert {name for name in still if not name.startswith("teacher")} == {
        "student.vit.pos_embed", "student.vit.patch_embed.proj.weight", "student.vit.patch_embed.proj.bias",
    }  # fmt: skip
    for name, p in method.named_parameters():
        assert (p.grad is None) == (name in still), name
        assert name.startswith(("student.", "projector.", "predictor.")) or name in still
    free = build("mocov3", "method.freeze_patch_embed=false")
    assert free.student.vit.patch_embed.proj.weight.requires_grad


def test_the_momentum_encoder_is_encoder_and_projector() -> None:
    method = build("mocov3")
    for teacher, student in ((method.teacher, method.student), (method.teacher_projector, method.projector)):
        assert all(torch.equal(a, b) for a, b in zip(teacher.parameters(), student.parameters(), strict=True))
    perturbed(method)
    before = copy.deepcopy(method)
    method.after_step(StepInfo(30, 100, 10, torch.zeros(())))
    eta = cosine_momentum(0.99, 1.0, 0.3)
    for teacher, student in (("teacher", "student"), ("teacher_projector", "projector")):
        parts = (getattr(before, teacher), getattr(before, student), getattr(method, teacher))
        for old, source, new in zip(*(part.parameters() for part in parts), strict=True):
            torch.testing.assert_close(new, eta * old + (1 - eta) * source)


def test_a_backbone_without_a_patch_embedding() -> None:
    net = ("backbone.name=timm:test_convnext", "backbone.patch_size=1", "data.image_size=32",
           "backbone.options={depths=[1, 1, 1, 1], dims=[16, 16, 24, 32]}")  # fmt: skip
    with pytest.raises(SettingsError, match=r"method\.freeze_patch_embed=false"):
        build("mocov3", *net)
    method, images = build("mocov3", "method.freeze_patch_embed=false", *net), pairs(size=32)
    assert torch.isfinite(method(images, method.corrupt(images, seeded(CPU, 0)))["loss"])


# -- the views


def test_the_two_views_are_made_differently() -> None:
    assert (MoCoV3.num_views, MoCoV3.whole_batch) == (2, True)
    small = build("mocov3").strengths
    assert [(s.blur_probability, s.solarize_probability) for s in small] == [(0, 0), (0, 0.2)]
    large = build("mocov3", "data.image_size=64", "backbone.patch_size=16").strengths
    assert [s.blur_probability for s in large] == [1.0, 0.1]
    asked = build("mocov3", "method.blur_probability=[0.5, 0.25]", "method.solarize_probability=[1, 0]").strengths
    assert [(s.blur_probability, s.solarize_probability) for s in asked] == [(0.5, 1), (0.25, 0)]
    assert all(
        s.jitter == (0.4, 0.4, 0.2, 0.1) and (s.jitter_probability, s.grey_probability) == (0.8, 0.2) for s in small
    )


def test_each_view_is_made_of_its_own_crop() -> None:
    method = build("mocov3", "method.jitter_probability=0", "method.grey_probability=0",
                   "method.solarize_probability=[0, 1]")  # fmt: skip
    images = pairs(3)
    views = method.corrupt(images, seeded(CPU, 0))
    torch.testing.assert_close(views.first, images[:, 0])
    assert method.restore(images, views) is None
    assert [torch.equal(a, b) for a, b in zip(method.show(images, views).values(), views[:2], strict=True)] == [
        True,
        True,
    ]
    torch.testing.assert_close(views.second, torch.where(images[:, 1] >= 0, -images[:, 1], images[:, 1]))


@pytest.mark.parametrize(
    "wrong", ["method.jitter=[0.4, 0.4, 0.2, 0.6]", "method.temperature=0", "method.blur_probability=0.5",
              "method.solarize_probability=[0, 2]", "method.ema_momentum=[0.9, 1.1]"],
)  # fmt: skip
def test_settings_out_of_range_are_refused(wrong: str) -> None:
    with pytest.raises(SettingsError, match=wrong.split("=")[0]):
        build("mocov3", wrong)


# -- on real images


def photographs(folder: Path, count: int = 64) -> Tensor:
    paths = sorted((folder / "train").rglob("*.jpg"))[:: 200 // count][:count]
    pixels = np.stack([np.asarray(Image.open(path).convert("RGB").resize((16, 16))) for path in paths])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1


def test_it_learns_to_tell_photographs_apart(cifar_folder: Path) -> None:
    torch.manual_seed(0)
    method = build("mocov3", "method.ema_momentum=[0.9, 1]").train()
    images = method.as_views(photographs(cifar_folder))
    assert images.shape == (64, 2, 3, 16, 16)
    optimizer = torch.optim.AdamW(method.parameters(), lr=3e-3)
    losses = []
    for step in range(1, 61):
        loss = method(images, method.corrupt(images, seeded(CPU, step)))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        method.after_step(StepInfo(step, 60, 10, torch.zeros(())))
        losses.append(loss.item())
    assert sum(losses[:2]) / 2 > 3.3  # 4τ ln 64: no better than chance
    assert sum(losses[-5:]) / 5 < 2.8
