"""A teacher that follows its student by an exponential moving average."""

from __future__ import annotations

import copy
import math
from typing import Literal

import torch
from torch import Tensor, nn

from dsdmae_cli.backbone import Backbone
from dsdmae_cli.methods.base import StepInfo
from dsdmae_cli.sharding import own_slice


def cosine_momentum(start: float, end: float, progress: float) -> float:
    """η rising from `start` to `end` along half a cosine as progress goes from 0 to 1."""
    return end - (end - start) * (math.cos(math.pi * progress) + 1) / 2


class EMATeacher(nn.Module):
    """A copy of the student without gradients: θ_t <- η θ_t + (1-η) θ_s.

    Eq. 4 of the DSdMAE paper prints the roles of θ_t and θ_s swapped; as printed, with η = 0.99, the teacher would be
    the student (docs/methods/dsdmae.md).

    Args:
        student: what to copy.
        momentum: (first, last) η of the cosine schedule, each in [0, 1].
        every: move after every "step" or once at the end of an "epoch".
        start: "student" copies the student's first weights, "random" draws the teacher's own.
        warmup: η of step t is at most (1 + t) / (10 + t), as TensorFlow's ExponentialMovingAverage has it with
            num_updates: what a short run averages would else be its first weights, 0.9995^500 of which is 78%.
    """

    def __init__(
        self,
        student: nn.Module,
        momentum: tuple[float, float],
        every: Literal["step", "epoch"] = "step",
        start: Literal["student", "random"] = "student",
        warmup: bool = False,
    ) -> None:
        super().__init__()
        self.warmup = warmup
        self.module = copy.deepcopy(student)
        if start == "random":
            for part in self.module.modules():
                if isinstance(part, nn.Linear | nn.Conv2d):
                    part.reset_parameters()
        self.module.requires_grad_(False)
        self.momentum = momentum
        self.every = every
        self.eval()

    def train(self, mode: bool = True) -> EMATeacher:
        """A teacher is always in eval mode: no dropout, no stochastic depth."""
        return super().train(False)

    def backbone(self) -> Backbone:
        """The teacher's network, where the student is a backbone."""
        assert isinstance(self.module, Backbone)
        return self.module

    @torch.no_grad()
    def forward(self, *args: Tensor) -> Tensor:
        return self.module(*args)

    @torch.no_grad()
    def follow(self, student: nn.Module, info: StepInfo) -> None:
        """Move toward the student, unless the step was skipped."""
        if self.every == "epoch" and info.step % info.steps_per_epoch:
            return
        eta = cosine_momentum(*self.momentum, progress=info.step / info.total_steps)
        if self.warmup:
            eta = min(eta, (1 + info.step) / (10 + info.step))
        # Of sharded ones each process moves its slices: those of both are cut alike.
        teacher = [own_slice(p.data) for p in self.module.parameters()]
        source = [own_slice(p.detach()) for p in student.parameters()]
        # A skipped step left the student's weights good, so that an epoch's move is made whatever its last step was.
        skipped = info.skipped if self.every == "step" else torch.zeros_like(info.skipped)
        _move(teacher, source, 1 - eta, skipped)
        for mine, theirs in zip(self.module.buffers(), student.buffers(), strict=True):
            if mine.is_floating_point():
                weight = (1 - eta) * (1 - skipped)
                # The engine puts statistics back that a skipped batch has left; of any other NaN, 0 * NaN is NaN.
                moved = mine.lerp(theirs, weight.to(mine.dtype))
                mine.copy_(torch.where(moved.isfinite(), moved, mine))
            else:
                mine.copy_(theirs)


def _move(teacher: list[Tensor], student: list[Tensor], weight: float, skipped: Tensor) -> None:
    """teacher += weight · (student - teacher) in one kernel for all tensors, or none of it where `skipped` is 1.

    It is a step of SGD on |θ_t - θ_s|²/2 of the rate `weight`, whose gradient is a weight decay of 1 on θ_t and -θ_s.
    The fused SGD takes the flag on the device; reading it would stall the step, and torch._foreach_lerp_, which could
    take a weight that is 0 there, is a kernel a tensor then.
    """
    torch._fused_sgd_(
        teacher, student, [], weight_decay=1.0, momentum=0.0, lr=weight, dampening=0.0, nesterov=False, maximize=True,
        is_first_step=False, found_inf=skipped,
    )  # fmt: skip
