"""A method: all that its author must read.

A method is an nn.Module with three moments:

    corrupt(images, generator)   all randomness lives here: masks, noise, views. Not compiled, not differentiated.
    forward(images, corruption)  deterministic, runs under autocast, may be compiled and distributed; gives losses.
    after_step(info)             after the optimiser's step: a teacher follows its student here.

A test can so hand `forward` a corruption of its own, and a resumed run needs no random state but the step's number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Generator, Tensor, nn

from dsdmae_cli.backbone import Backbone

# A NamedTuple (or any pytree) of tensors; its shape is the method's own business.
Corruption = Any
# "loss" is what is differentiated; the other entries are its detached parts, for people to look at.
Losses = dict[str, Tensor]


@dataclass(frozen=True)
class StepInfo:
    """Where the run stands after an optimiser step.

    Attributes:
        step: steps done, this one included, from 1.
        total_steps: steps of the whole run.
        steps_per_epoch: steps of an epoch.
        skipped: scalar float tensor on the device, 1.0 if the step was skipped for a non-finite gradient, else 0.0.
            It is never read back here: multiply by it.
    """

    step: int
    total_steps: int
    steps_per_epoch: int
    skipped: Tensor


class Restoration(NamedTuple):
    """What the paper's Fig. 2 shows, in [-1, 1]: the images as the network got them, and as it gave them back."""

    corrupted: Float[Tensor, "b c h w"]
    restored: Float[Tensor, "b c h w"]


class Method(nn.Module):
    """A pre-training task around a backbone. Images are [b, 3, s, s] in [-1, 1]."""

    def corrupt(self, images: Float[Tensor, "b c h w"], generator: Generator) -> Corruption:
        """Draw masks, noise or views for a batch.

        Args:
            generator: on the images' device, freshly seeded for this batch; the only source of randomness.
        """
        raise AssertionError("a method overrides corrupt")

    def forward(self, images: Float[Tensor, "b c h w"], corruption: Corruption) -> Losses:
        """The losses of a batch, each a mean over it; "loss" carries the gradient."""
        raise AssertionError("a method overrides forward")

    def after_step(self, info: StepInfo) -> None:
        """Whatever follows an optimiser step; nothing by default."""

    def encoder(self) -> Backbone:
        """The network that is kept when pre-training is over."""
        raise AssertionError("a method overrides encoder")

    def restore(self, images: Float[Tensor, "b c h w"], corruption: Corruption) -> Restoration | None:
        """Images as corrupted and as restored, for figures; None where the method restores no pixels."""
        return None
