"""Learning rates, groups of parameters and the optimiser, held against MAE's and timm's."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import timm.optim
import torch
from helpers import settings
from torch import Tensor
from toy import Listener, Toy, mae_lr, trainer

from dsdmae_cli.config.resolve import resolve
from dsdmae_cli.errors import CheckpointError
from dsdmae_cli.optim import build_optimizer, learning_rate, parameter_groups
from dsdmae_cli.runs.build import build_method
from dsdmae_cli.settings.models import OptimSettings


@pytest.mark.parametrize(("epochs", "per_epoch", "warmup"), [(10, 7, 2.0), (500, 24, 20.0), (3, 5, 0.12), (2, 3, 0.0)])
def test_the_learning_rate_is_maes(epochs: int, per_epoch: int, warmup: float) -> None:
    total = epochs * per_epoch
    ours = [learning_rate(s, total, warmup * per_epoch, 2e-3, 1e-5) for s in range(total)]
    assert ours == pytest.approx([mae_lr(s / per_epoch, epochs, warmup, 2e-3, 1e-5) for s in range(total)], rel=1e-12)
    top = math.ceil(warmup * per_epoch)
    assert all(a < b for a, b in pairwise(ours[: top + 1]) if top > 1)
    assert all(a > b for a, b in pairwise(ours[top:]))
    assert max(ours) <= 2e-3
    assert learning_rate(total, total, warmup * per_epoch, 2e-3, 1e-5) == pytest.approx(1e-5)


def test_the_trainer_follows_the_schedule() -> None:
    hooks = Listener()
    run = trainer(Toy(), hooks, optim=OptimSettings(lr=1e-2, min_lr=1e-4, warmup_epochs=0.5), epochs=3)
    run.fit()
    assert [r["lr"] for r in hooks.records] == pytest.approx([mae_lr(s / 3, 3, 0.5, 1e-2, 1e-4) for s in range(9)])
    assert [r["step"] for r in hooks.records] == list(range(1, 10))
    assert [r["epoch"] for r in hooks.records] == pytest.approx([s / 3 for s in range(1, 10)])
    assert hooks.epochs == [1, 2, 3]
    assert all(set(r) == {"step", "epoch", "loss", "part", "grad_norm", "skipped", "lr", "images_per_second"}
               for r in hooks.records)  # fmt: skip
    assert hooks.records[-1]["loss"] < hooks.records[0]["loss"]


@pytest.mark.parametrize("more", [(), ("backbone.class_token=true", "backbone.pos_embed=learn")])
@pytest.mark.parametrize("method", ["dsdmae", "mae"])
def test_decay_spares_what_timm_spares(method: str, more: tuple[str, ...]) -> None:
    module = build_method(resolve(settings("digits", *more, method=method).settings))
    names = {id(p): name for name, p in module.named_parameters()}
    ours = [{names[id(p)] for p in group["params"]} for group in parameter_groups(module, 0.05)]  # type: ignore[attr-defined]
    assert [group["weight_decay"] for group in parameter_groups(module, 0.05)] == [0.05, 0.0]
    tokens = [n for n in names.values() if n.endswith(("pos_embed", "cls_token", "mask_token"))]
    theirs = timm.optim.param_groups_weight_decay(module, 0.05, no_weight_decay_list=tokens)
    assert {frozenset(group) for group in ours} == {frozenset(names[id(p)] for p in g["params"]) for g in theirs}
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    assert ours[0] | ours[1] == trained
    assert not [name for name in trained if name.startswith("teacher")]


def test_decay_spares_tokens_by_whatever_name() -> None:
    small = {"embed_dim": 16, "depth": 1, "num_heads": 2, "img_size": 32}
    networks = {
        "vit_small_patch14_reg4_dinov2": ("cls_token", "reg_token", "pos_embed"),
        "deit_tiny_distilled_patch16_224": ("cls_token", "dist_token", "pos_embed"),
        "vit_base_patch16_siglip_224": ("attn_pool.latent", "pos_embed"),
        "eva02_tiny_patch14_224": ("cls_token", "pos_embed"),
    }
    for name, tokens in networks.items():
        network = timm.create_model(name, **small)
        names = {id(p): name for name, p in network.named_parameters()}
        decayed, spared = ({names[id(p)] for p in group["params"]} for group in parameter_groups(network, 0.05))
        assert set(tokens) <= spared
        assert not [left for left in decayed if not left.endswith("weight")], name
        assert all(network.get_parameter(left).ndim > 1 for left in decayed)
        assert {left for left in spared if network.get_parameter(left).ndim > 1} == set(tokens)
    one_channel = parameter_groups(torch.nn.Conv2d(3, 1, 3), 0.05)
    assert [len(group["params"]) for group in one_channel] == [1, 1]


def test_the_optimiser_is_fused_adamw_with_the_settings() -> None:
    optimizer = build_optimizer(Toy(), OptimSettings(lr=0.5, betas=(0.8, 0.7), weight_decay=0.3))
    assert optimizer.defaults["fused"]
    assert [g["betas"] for g in optimizer.param_groups] == [(0.8, 0.7)] * 2
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.3, 0.0]


def muon(**settings: Any) -> OptimSettings:
    return OptimSettings(optimizer="muon", **{"lr": 0.5, "betas": (0.8, 0.7), "weight_decay": 0.1, **settings})


def newton_schulz(matrix: Tensor) -> Tensor:
    """Five steps of the quintic iteration by its formula, in float64, with timm's coefficients."""
    x = matrix.double() / matrix.double().norm()
    for a, b, c in (
        (4.0848, -6.8946, 2.9270), (3.9505, -6.3029, 2.6377), (3.7418, -5.5913, 2.3037), (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ):  # fmt: skip
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x


def test_muon_moves_matrices_by_its_formula_and_the_rest_as_adamw() -> None:
    method = Toy()
    optimizer = build_optimizer(method, muon())
    twin = Toy()
    reference = torch.optim.AdamW(parameter_groups(twin, 0.1), lr=0.5, betas=(0.8, 0.7))
    theirs = dict(twin.net.named_parameters())
    expected = {name: p.detach().double() for name, p in method.net.named_parameters() if p.ndim == 2}
    buffers = {name: torch.zeros_like(p) for name, p in expected.items()}
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        for name, parameter in method.net.named_parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
            theirs[name].grad = parameter.grad.clone()
            if name in expected:
                buffers[name] = 0.95 * buffers[name] + 0.05 * parameter.grad
                update = newton_schulz(0.05 * parameter.grad + 0.95 * buffers[name])
                values = torch.linalg.svdvals(update)
                assert values.min() > 0.5  # alike, which is what it is for
                assert values.max() < 1.5
                expected[name] = expected[name] * (1 - 0.5 * 0.1) - 0.5 * 0.2 * max(update.shape) ** 0.5 * update
        optimizer.step()
        reference.step()
    for name, parameter in method.net.named_parameters():
        if name in expected:  # products in bfloat16
            assert (parameter - expected[name]).norm() < 0.02 * expected[name].norm()
        else:
            torch.testing.assert_close(parameter, theirs[name])


def test_muon_takes_what_maps_features() -> None:
    small = {"embed_dim": 16, "depth": 1, "num_heads": 2, "img_size": 32}
    networks = {
        "vit_tiny_patch16_224": (small, {"cls_token", "pos_embed"}),
        "beit_base_patch16_224": (small, {"cls_token", "blocks.0.attn.relative_position_bias_table"}),
        "convnext_atto": (
            {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8)},
            {f"stages.{stage}.blocks.0.conv_dw.weight" for stage in range(4)},
        ),
    }
    for name, (options, left) in networks.items():
        network = timm.create_model(name, **options)
        names = {id(p): name for name, p in network.named_parameters()}
        groups = parameter_groups(network, 0.05, muon=True)
        by_muon = {names[id(p)] for g in groups if g["use_muon"] for p in g["params"]}
        others = {names[id(p)] for g in groups if not g["use_muon"] for p in g["params"]}
        assert by_muon | others == set(names.values())
        assert all(name.endswith("weight") and network.get_parameter(name).ndim > 1 for name in by_muon)
        assert {name for name in others if network.get_parameter(name).ndim > 1} == left


def test_muon_goes_on_with_counts_on_the_host() -> None:
    run = trainer(Toy(), Listener(), optim=muon(lr=1e-2, warmup_epochs=0), epochs=1)
    run.fit()
    _, training, rest = run.state()
    there = trainer(Toy().to("meta"), Listener(), optim=muon(lr=1e-2, warmup_epochs=0), epochs=1)
    there.restore(3, training, rest)
    places = {entry: value.device.type for state in there.optimizer.state.values() for entry, value in state.items()}
    assert places == {"momentum_buffer": "meta", "exp_avg": "meta", "exp_avg_sq": "meta", "step": "cpu"}


@pytest.mark.parametrize("lost", ["optimizer/momentum_buffer/net.1.weight", "optimizer/"])
def test_muon_does_not_go_on_without_its_moments(lost: str) -> None:
    run, again = (trainer(Toy(), Listener(), optim=muon(lr=1e-2, warmup_epochs=0), epochs=1) for _ in range(2))
    run.fit()
    _, training, rest = run.state()
    with pytest.raises(CheckpointError, match=r"optimiser knows nothing of net\.\d\."):
        again.restore(3, {name: value for name, value in training.items() if not name.startswith(lost)}, rest)
