"""InfoNCE and batch norm over all processes: against numpy in float64, torch's own batch norm, and one process."""

from __future__ import annotations

import copy
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import assignments, start
from numpy.typing import NDArray
from safetensors.torch import load_file
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn

from dsdmae_cli.methods.contrastive import info_nce
from dsdmae_cli.methods.ema import EMATeacher
from dsdmae_cli.methods.projection import GlobalBatchNorm, TrackingBatchNorm, mlp, synchronized

Array = NDArray[np.float64]
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def pair(b: int = 6, d: int = 10, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    q = torch.randn(b, d, generator=g)
    return q.to(dtype), (0.5 * q + torch.randn(b, d, generator=g)).to(dtype)


def reference(q: Array, k: Array, tau: float) -> float:
    """One query after the other: 2τ times the mean surprise at its own key."""
    total = 0.0
    for i, query in enumerate(q):
        cosines = [query @ key / np.sqrt(query @ query) / np.sqrt(key @ key) for key in k]
        total -= np.log(np.exp(cosines[i] / tau) / sum(np.exp(c / tau) for c in cosines))
    return 2 * tau * total / len(q)


@pytest.mark.parametrize("tau", [0.07, 0.2, 1.0])
def test_info_nce_is_its_formula(tau: float) -> None:
    q, k = pair()
    expected = reference(q.double().numpy(), k.double().numpy(), tau)
    assert info_nce(q, k, tau).item() == pytest.approx(expected, rel=1e-5)
    # It sees directions alone.
    assert info_nce(3 * q, 0.1 * k, tau).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("symmetric", [False, True])
def test_its_gradient_equals_float64s_and_keys_get_none(symmetric: bool) -> None:
    def expected(x: Array) -> float:
        rows = reference(x, keys, 0.2)
        return (rows + reference(keys, x, 0.2)) / 2 if symmetric else rows

    q, k = (x.requires_grad_() for x in pair())
    loss = info_nce(q, k, 0.2, symmetric)
    loss.backward()
    assert k.grad is None
    assert q.grad is not None
    x, keys, step = q.detach().double().numpy(), k.detach().double().numpy(), 1e-5
    assert loss.item() == pytest.approx(expected(x), rel=1e-5)
    for index in [(0, 0), (3, 7), (5, 9)]:
        shift = np.zeros_like(x)
        shift[index] = step
        slope = (expected(x + shift) - expected(x - shift)) / (2 * step)
        assert q.grad[index].item() == pytest.approx(slope, rel=1e-3, abs=1e-6)


def test_what_it_is_when_nothing_or_everything_is_told_apart() -> None:
    same = torch.ones(8, 4)
    assert info_nce(same, same, 0.2).item() == pytest.approx(0.4 * np.log(8), rel=1e-6)
    apart = torch.eye(8)
    assert info_nce(apart, apart, 0.01).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("under_autocast", [False, True])
def test_it_is_computed_in_float32(under_autocast: bool) -> None:
    q, k = pair(32, 64, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=under_autocast):
        loss = info_nce(q, k, 0.2)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(reference(q.double().numpy(), k.double().numpy(), 0.2), rel=1e-5)


def test_info_nce_compiles_whole(unchecked_shapes: None) -> None:
    q, k = pair()
    compiled = torch.compile(info_nce, fullgraph=True, backend="eager")(q, k, 0.2)
    torch.testing.assert_close(compiled, info_nce(q, k, 0.2))


# -- projector and predictor


def test_the_batch_norm_is_torchs_in_training_mode_in_every_mode() -> None:
    x = torch.randn(12, 5, generator=torch.Generator().manual_seed(0)) * 3 + 40
    for affine in (True, False):
        ours, theirs = GlobalBatchNorm(5, affine), nn.BatchNorm1d(5, affine=affine)
        if affine:
            ours.weight.data.uniform_(0.5, 2)
            ours.bias.data.uniform_(-1, 1)
            theirs.load_state_dict(ours.state_dict(), strict=False)
        one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
        pull = torch.randn(12, 5, generator=torch.Generator().manual_seed(1))
        (ours(one) * pull).sum().backward()
        (theirs(other) * pull).sum().backward()
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)
        assert torch.equal(ours.eval()(x), ours.train()(x))
        assert not list(ours.buffers())
    assert GlobalBatchNorm(5)(x[:1]).abs().max() == 0


def test_the_tracking_one_is_torchs_in_every_mode() -> None:
    ours, theirs = TrackingBatchNorm(5), nn.BatchNorm1d(5, affine=False)
    for seed in range(3):
        x = torch.randn(12, 5, generator=torch.Generator().manual_seed(seed)) * 3 + 2
        one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
        pull = torch.randn(12, 5, generator=torch.Generator().manual_seed(9))
        (ours(one) * pull).sum().backward()
        (theirs(other) * pull).sum().backward()
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-5, atol=1e-6)


def test_a_teachers_projector_normalises_as_the_students() -> None:
    projector = mlp(6, 16, 4, layers=3)
    teacher = EMATeacher(projector, (0.99, 1.0)).train()
    x = torch.randn(9, 6)
    assert torch.equal(teacher(x), projector.train()(x))


@pytest.mark.parametrize("layers", [2, 3])
def test_mlp_is_moco_v3s(layers: int) -> None:
    parts = list(mlp(6, 16, 4, layers))
    between = [nn.Linear, GlobalBatchNorm, nn.ReLU] * (layers - 1)
    assert [type(part) for part in parts] == [*between, nn.Linear, GlobalBatchNorm]
    linear = [part for part in parts if isinstance(part, nn.Linear)]
    widths = [6, 16, 16, 4] if layers == 3 else [6, 16, 4]
    assert [(part.in_features, part.out_features) for part in linear] == list(pairwise(widths))
    assert all(part.bias is None for part in linear)
    norms = [part for part in parts if isinstance(part, GlobalBatchNorm)]
    assert [part.weight is not None for part in norms] == [True] * (layers - 1) + [False]
    out = mlp(6, 16, 4, layers)(torch.randn(40, 6))
    torch.testing.assert_close(out.mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.var(0, unbiased=False), torch.ones(4), atol=1e-2, rtol=0)


def test_a_backbones_own_batch_norm_over_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    assert synchronized(backbone) is backbone
    monkeypatch.setattr("dsdmae_cli.distributed.world_size", lambda: 2)
    assert synchronized(nn.Linear(2, 2)) is not None
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert isinstance(synchronized(copy.deepcopy(backbone))[1], nn.SyncBatchNorm)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(4), nn.BatchNorm2d(4, momentum=None), BatchNormAct2d(4), None])
def test_a_batch_norm_over_one_process_is_torchs(norm: nn.Module | None, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = nn.Sequential(nn.Conv2d(3, 4, 1), norm or nn.BatchNorm2d(4, affine=False, track_running_stats=False))
    ours = copy.deepcopy(theirs)
    with monkeypatch.context() as two:
        two.setattr("dsdmae_cli.distributed.world_size", lambda: 2)
        two.setattr("torch.cuda.is_available", lambda: False)
        ours = synchronized(ours)
    assert type(ours[1]) is not type(theirs[1])
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for seed in range(3):
        x = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) * 3 + 2
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-4, atol=1e-5)


# -- two processes

# Each takes its share of the batch; rank 0 saves the mean of the losses and the gradients that DDP left.
SCRIPT = """
import sys
import torch
from safetensors.torch import save_file
from torch.nn.parallel import DistributedDataParallel
from dsdmae_cli import distributed
from dsdmae_cli.methods.base import StepInfo
from dsdmae_cli.runs.build import build_method
from dsdmae_cli.config.compose import load
from dsdmae_cli.config.resolve import resolve

out, *assignments = sys.argv[1:]
def main():
    # What holds the group must be gone before the interpreter ends, or gloo's threads abort it now and then.
    settings = resolve(load(assignments=assignments, environ={}).settings)
    method = build_method(settings).train()
    side = settings.data.image_size
    world, rank = distributed.world_size(), distributed.rank()
    g = torch.Generator().manual_seed(0)
    views = [method.num_views] if method.num_views > 1 else []
    images = torch.rand(8, *views, 3, side, side, generator=g) * 2 - 1
    corruption = method.corrupt(images, g)

    def share(tree):
        if isinstance(tree, tuple):
            return type(tree)(*map(share, tree))
        shared = not isinstance(tree, torch.Tensor) or len(tree) != len(images)  # directions, and where there are none
        return tree if shared else tree.chunk(world)[rank]

    # Away from their first values, where student and teacher are one.
    with torch.no_grad():
        for p in method.parameters():
            p += 0.05 * torch.randn(p.shape, generator=g)
    model = DistributedDataParallel(method) if world > 1 else method
    loss = model(share(images), share(corruption))["loss"]
    loss.backward()
    loss = distributed.mean_(loss.detach().clone())
    found = {name: p.grad for name, p in method.named_parameters() if p.grad is not None} | {"loss": loss}
    found |= {name: b for name, b in method.named_buffers() if "running" in name}
    if rank == 0:
        save_file(found, out)

with distributed.process_group(torch.device("cpu")):
    main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "more"),
    [
        pytest.param("mocov3", (), marks=pytest.mark.long),
        pytest.param("msa", (), marks=pytest.mark.long),
        pytest.param("lejepa", ("method.views=3",), marks=pytest.mark.long),
        ("tokenizer", ()),
        ("dsdmae", ("method.uniformity_weight=0.5", "method.sigreg_weight=0.1")),
        ("dsdmae", ("backbone.name=timm:resnet10t", "data.image_size=64", "method.mask_ratio=0.5")),
    ],
)
def test_two_processes_have_one_processs_loss_and_gradients(method: str, more: tuple[str, ...], tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    chosen = assignments("digits", *more, method=method)
    two = start(*TORCHRUN, script, tmp_path / "two", *chosen)
    one = start(script, tmp_path / "one", *chosen)
    for process in (one, two):
        _, err = process.communicate(timeout=180)
        assert process.returncode == 0, err
    ours, expected = load_file(tmp_path / "two"), load_file(tmp_path / "one")
    assert ours.keys() == expected.keys()
    assert len(ours) > 20
    for name, tensor in expected.items():
        torch.testing.assert_close(
            ours[name], tensor, rtol=1e-4, atol=1e-5 * float(tensor.abs().max()) + 2e-6, msg=name
        )
