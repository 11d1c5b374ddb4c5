"""TSCAE, as we read its abstract, against its formulas in float64."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from reference import blocks, cosine, cut, embed, images, linear, normalised, positions, tiny
from torch import Tensor

from dsdmae_builtin.methods.tscae import TSCAE
from dsdmae_cli.data.source import seeded

CPU = torch.device("cpu")


def surprise(queries: list[Tensor], keys: list[Tensor], tau: float) -> float:
    """InfoNCE with MoCo v3's factor 2τ: how surprised each query is by its own key among all."""
    total = 0.0
    for i, query in enumerate(queries):
        odds = [math.exp(float(cosine(query, key)) / tau) for key in keys]
        total -= math.log(odds[i] / sum(odds))
    return 2 * tau * total / len(queries)


def spread_out(pooled: list[Tensor]) -> list[Tensor]:
    """Zero mean and unit variance of every feature over the images."""
    mean = sum(pooled) / len(pooled)
    var = sum((x - mean) ** 2 for x in pooled) / len(pooled)
    return [(x - mean) / (var + 1e-5) ** 0.5 for x in pooled]


def reference(method: TSCAE, clean: Tensor, masked: Tensor, kept: Tensor) -> dict[str, float]:
    w = {name: tensor.double() for name, tensor in method.state_dict().items()}
    pixel, teacher, student = [], [], []
    for image, drop, keep in zip(clean.double(), masked, kept, strict=True):
        assert sorted([*keep.tolist(), *drop.tolist()]) == list(range(16))
        tokens = w["decoder.mask_token"][0].repeat(16, 1)
        latents = blocks(embed(image, w, "backbone.vit")[keep], w, "backbone.vit", heads=2)
        tokens[keep] = linear(latents, w, "decoder.embed")
        width = tokens.shape[1]
        decoded = blocks(tokens + positions(4, width), w, "decoder.transformer", heads=1)
        told = linear(decoded, w, "decoder.transformer.project")[drop]
        target = normalised(cut(image)) if method.settings.norm_pix_loss else cut(image)
        pixel.append(float((linear(told, w, "predict") - target[drop]).pow(2).mean()))
        teacher.append(told.mean(dim=0))
        student.append(blocks(embed(image, w, "backbone.vit")[drop], w, "backbone.vit", heads=2).mean(dim=0))
    tau = method.settings.temperature
    teacher, student = spread_out(teacher), spread_out(student)
    parts = {
        "pixel": sum(pixel) / len(pixel),
        "contrastive": (surprise(teacher, student, tau) + surprise(student, teacher, tau)) / 2,
    }
    return parts | {"loss": parts["pixel"] + method.settings.contrastive_weight * parts["contrastive"]}


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("method.contrastive_weight=2", "method.temperature=0.7"),
        ("method.norm_pix_loss=true", "method.decoder_dim=16", "method.mask_ratio=0.5"),
    ],
    ids=" ".join,
)
def test_tscae_is_its_formulas(more: tuple[str, ...]) -> None:
    method = tiny(*more, name="tscae")
    clean = images(5)
    split = method.corrupt(clean, seeded(CPU, 1))
    expected = reference(method, clean, split.ids_masked, split.ids_keep)
    exact = copy.deepcopy(method).double()
    # In float64 but for the losses themselves, which the program computes in float32.
    for losses, tolerance in ((exact(clean.double(), split), 1e-6), (method(clean, split), 2e-5)):
        assert losses.keys() == expected.keys()
        for name, value in losses.items():
            assert value.item() == pytest.approx(expected[name], rel=tolerance), name
            assert value.requires_grad == (name == "loss")


def gradients(method: TSCAE, clean: Tensor) -> dict[str, bool]:
    method.zero_grad()
    method(clean, method.corrupt(clean, seeded(CPU, 1)))["loss"].backward()
    return {
        name: p.grad is not None and bool(p.grad.abs().sum() > 0)
        for name, p in method.named_parameters()
        if p.requires_grad
    }


def test_both_branches_learn_from_the_contrast() -> None:
    """The encoder is one; without pixels to restore, the teacher's decoder still learns, and so does what feeds it."""
    method = tiny("method.contrastive_weight=1", name="tscae")
    method.predict.requires_grad_(False)
    method.predict.weight.data.zero_()  # no pixel loss reaches the rest
    learned = gradients(method, images(6))
    assert all(learned.values()), [name for name, got in learned.items() if not got]
    without = tiny("method.contrastive_weight=0", name="tscae")
    without.predict.weight.data.zero_()
    assert {name for name, got in gradients(without, images(6)).items() if got} == {"predict.weight", "predict.bias"}


def test_it_tells_images_apart() -> None:
    """Equal images cannot be told apart: the loss is then log(batch) times 2τ, whatever the weights."""
    method = tiny(name="tscae")
    one = images(1).expand(6, -1, -1, -1).contiguous()
    split = method.corrupt(one, seeded(CPU, 1))
    same = type(split)(*(ids[:1].expand(6, -1) for ids in split[:2]))
    assert method(one, same)["contrastive"].item() == pytest.approx(0.4 * math.log(6), rel=1e-3)


@torch.no_grad()
def test_its_pictures_are_complementary() -> None:
    method = tiny(name="tscae")
    clean = images(3)
    shown = method.show(clean, method.corrupt(clean, seeded(CPU, 1)))
    assert list(shown) == ["teacher sees", "restored", "student sees"]
    assert torch.equal(shown["teacher sees"] + shown["student sees"], clean)
    kept = shown["teacher sees"] != 0
    assert kept.float().mean().item() == pytest.approx(0.25)
    assert torch.equal(shown["restored"][kept], clean[kept])
