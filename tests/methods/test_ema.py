"""The teacher's moving average against a float64 loop, its schedule, and what a skipped step leaves of it."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from dsdmae_cli.methods.base import StepInfo
from dsdmae_cli.methods.ema import EMATeacher, cosine_momentum


def student(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4), nn.Flatten(), nn.Dropout(0.5), nn.Linear(36, 5))


def info(step: int, total: int, per_epoch: int = 1, skipped: bool = False) -> StepInfo:
    return StepInfo(step, total, per_epoch, torch.tensor(float(skipped)))


@torch.no_grad()
def wander(module: nn.Module, g: torch.Generator) -> None:
    """What an optimiser step and a forward pass do to a student, without the cost of either."""
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(torch.randn(tensor.shape, generator=g) * 0.1)
        else:
            tensor.add_(1)


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def bits(x: Tensor) -> Tensor:
    return x.view(torch.int32) if x.is_floating_point() else x


@pytest.mark.parametrize(("start", "end"), [(0.96, 0.99), (0.99, 1.0), (0.5, 0.2), (0.0, 0.0), (1.0, 1.0)])
def test_cosine_momentum(start: float, end: float) -> None:
    assert cosine_momentum(start, end, 0) == pytest.approx(start, abs=1e-15)
    assert cosine_momentum(start, end, 1) == pytest.approx(end, abs=1e-15)
    assert cosine_momentum(start, end, 0.5) == pytest.approx((start + end) / 2, abs=1e-15)
    # A quarter of the way a cosine has done (1 - cos 45 deg) / 2 of it, a straight line 1/4.
    assert cosine_momentum(start, end, 0.25) == pytest.approx(start + 0.1464466094 * (end - start), abs=1e-9)
    values = [cosine_momentum(start, end, i / 50) for i in range(51)]
    assert all((b - a) * (end - start) >= 0 for a, b in pairwise(values))


@pytest.mark.parametrize("momentum", [(0.96, 0.99), (0.3, 0.9), (0.0, 0.0), (1.0, 1.0)])
def test_the_teacher_is_eq_4_with_its_roles_right(momentum: tuple[float, float]) -> None:
    source = student()
    teacher = EMATeacher(source, momentum)
    reference = {k: v.double() for k, v in snapshot(source).items()}
    g = torch.Generator().manual_seed(1)
    total = 60
    for step in range(1, total + 1):
        wander(source, g)
        teacher.follow(source, info(step, total))
        start, end = momentum
        eta = start + (end - start) * (1 - math.cos(math.pi * step / total)) / 2
        for name, value in source.state_dict().items():
            if value.is_floating_point():
                reference[name] = eta * reference[name] + (1 - eta) * value.double()
            else:
                reference[name] = value.double()
    mine = teacher.module.state_dict()
    assert set(mine) == set(reference)
    for name, expected in reference.items():
        torch.testing.assert_close(mine[name].double(), expected, rtol=0, atol=2e-6)


def test_the_average_of_a_short_run_warms_up() -> None:
    """min(η, (1 + t) / (10 + t)), against float64."""
    source = student()
    teacher = EMATeacher(source, (0.9, 0.9), warmup=True)
    reference = {k: v.double() for k, v in snapshot(source).items() if v.is_floating_point()}
    g = torch.Generator().manual_seed(1)
    for step in range(1, 121):
        wander(source, g)
        teacher.follow(source, info(step, 120))
        eta = min(0.9, (1 + step) / (10 + step))
        for name in reference:
            reference[name] = eta * reference[name] + (1 - eta) * source.state_dict()[name].double()
    for name, expected in reference.items():
        torch.testing.assert_close(teacher.module.state_dict()[name].double(), expected, rtol=0, atol=2e-6)


def test_the_student_is_not_touched() -> None:
    source = student()
    before = snapshot(source)
    teacher = EMATeacher(source, (0.5, 0.5))
    wander(teacher.module, torch.Generator().manual_seed(0))
    teacher.follow(source, info(1, 10))
    assert all(torch.equal(v, before[k]) for k, v in source.state_dict().items())


def test_a_skipped_step_leaves_the_teacher_bit_for_bit() -> None:
    source = student()
    teacher = EMATeacher(source, (0.5, 0.9))
    g = torch.Generator().manual_seed(0)
    wander(source, g)
    teacher.follow(source, info(1, 10))
    before = snapshot(teacher.module)
    wander(source, g)
    teacher.follow(source, info(2, 10, skipped=True))
    for name, tensor in teacher.module.state_dict().items():
        if tensor.is_floating_point():
            assert torch.equal(bits(tensor), bits(before[name])), name
    teacher.follow(source, info(3, 10))
    assert not torch.equal(teacher.module[0].weight, before["0.weight"])


def test_a_skipped_step_keeps_non_finite_statistics_out() -> None:
    source = student()
    teacher = EMATeacher(source, (0.5, 0.9))
    source[1].running_mean.fill_(torch.nan)
    teacher.follow(source, info(1, 10, skipped=True))
    assert all(torch.isfinite(tensor).all() for tensor in teacher.module.state_dict().values())


def test_every_epoch_moves_at_its_end_only() -> None:
    source = student()
    teacher = EMATeacher(source, (0.9, 0.5), every="epoch")
    g = torch.Generator().manual_seed(0)
    for step in range(1, 13):
        before = teacher.module[0].weight.double().clone()
        wander(source, g)
        teacher.follow(source, info(step, 12, per_epoch=4))
        after = teacher.module[0].weight
        if step % 4:
            assert torch.equal(after.double(), before)
        else:
            eta = 0.9 - 0.4 * (1 - math.cos(math.pi * step / 12)) / 2
            expected = eta * before + (1 - eta) * source[0].weight.detach().double()
            torch.testing.assert_close(after.double(), expected, rtol=0, atol=1e-6)


def test_every_epoch_counts_the_steps_before_a_skipped_last_one() -> None:
    source = student()
    teacher = EMATeacher(source, (0.5, 0.5), every="epoch")
    before = teacher.module[0].weight.clone()
    wander(source, torch.Generator().manual_seed(0))
    teacher.follow(source, info(1, 4, per_epoch=2))
    teacher.follow(source, info(2, 4, per_epoch=2, skipped=True))
    assert not torch.equal(teacher.module[0].weight, before)


@pytest.mark.parametrize("start", ["student", "random"])
def test_how_a_teacher_starts(start: Literal["student", "random"]) -> None:
    source = student()
    teacher = EMATeacher(source, (0.96, 0.99), start=start)
    for name, mine in teacher.module.named_parameters():
        theirs = source.get_parameter(name)
        assert mine.data_ptr() != theirs.data_ptr()
        assert not mine.requires_grad
        assert theirs.requires_grad
        same = start == "student" or name.startswith("1.")  # a norm has nothing to draw
        assert torch.equal(mine, theirs) == same, name


def test_training_the_student_leaves_the_teacher_in_eval_mode() -> None:
    teacher = EMATeacher(student(), (0.96, 0.99))
    whole = nn.ModuleList([student(), teacher])
    whole.train()
    assert not any(part.training for part in teacher.modules())


def test_a_new_teacher_is_in_eval_mode() -> None:
    teacher = EMATeacher(student(), (0.96, 0.99))
    assert not any(part.training for part in teacher.modules())


def test_the_teachers_output_has_no_gradient() -> None:
    source = student()
    teacher = EMATeacher(source, (0.96, 0.99)).eval()
    source.eval()
    images = torch.rand(2, 3, 4, 4, requires_grad=True)
    out = teacher(images)
    assert not out.requires_grad
    assert torch.equal(out, source(images))
