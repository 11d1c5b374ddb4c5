"""Regularisers that keep pooled features apart, for any method: U-MAE's uniformity term and LeJEPA's SIGReg.

A method whose settings are a SpreadSettings takes them with three lines:

    self.spreading = Spreading(settings, self)                                   in __init__
    directions = self.spreading.directions(backbone.width, generator)            in corrupt, kept in the corruption
    return self.spreading.add(losses, tokens.mean(dim=1), corruption.directions)   in forward

Both look at all images of a batch over all processes, so that the batch is no longer cut into micro-batches. They are
computed in float32, whatever autocast does around them.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from jaxtyping import Float
from torch import Generator, Tensor
from torch.nn import functional as F

from dsdmae_cli import distributed
from dsdmae_cli.methods.base import Losses, Method
from dsdmae_cli.methods.exchange import mean_over_processes
from dsdmae_cli.settings.models import SpreadSettings

# LeJEPA's public code: 256 directions a step, 17 points of the characteristic function from 0 to 3.
DIRECTIONS = 256
_KNOTS, _REACH = 17, 3.0


class Spreading:
    """The regularisers that a method's settings ask for; without a weight nothing is drawn and nothing computed."""

    def __init__(self, settings: SpreadSettings, method: Method) -> None:
        self.uniformity_weight, self.sigreg_weight = settings.uniformity_weight, settings.sigreg_weight
        if self.uniformity_weight or self.sigreg_weight:
            method.whole_batch = True

    def directions(self, width: int, generator: Generator) -> Float[Tensor, "d n"] | None:
        """What SIGReg of this batch looks along; None without it. Drawn last, it leaves masks and noise as they are."""
        return draw_directions(width, generator) if self.sigreg_weight else None

    def add(
        self, losses: Losses, pooled: Float[Tensor, "b d"], directions: Float[Tensor, "d n"] | None = None
    ) -> Losses:
        """Losses with the regularisers of an image's pooled features in "loss", and each of them by its name."""
        terms: list[tuple[str, float, Tensor]] = []
        if self.uniformity_weight:
            terms.append(("uniformity", self.uniformity_weight, uniformity(pooled)))
        if self.sigreg_weight:
            assert directions is not None, "a corruption without directions"
            terms.append(("sigreg", self.sigreg_weight, sigreg(pooled, directions)))
        for name, weight, value in terms:
            losses = {**losses, "loss": losses["loss"] + weight * value, name: value.detach()}
        return losses


def uniformity(features: Float[Tensor, "b d"]) -> Float[Tensor, ""]:
    """Mean squared cosine between the images of the whole batch, each with itself too (U-MAE, Zhang et al. 2022,
    arXiv:2210.08344, as in its public code). From 1/min(n, d), where they have all directions alike, to 1.

    Of n unit rows F it is |F^T F / n|^2, so that processes exchange a matrix of d x d instead of their features.
    """
    with _float32(features):
        unit = F.normalize(features.float(), dim=1)
        return mean_over_processes(unit.T @ unit / len(unit)).square().sum()


def draw_directions(width: int, generator: Generator) -> Float[Tensor, "d n"]:
    """Random unit vectors as columns, the same in all processes, whose generators differ."""
    drawn = torch.randn(width, DIRECTIONS, generator=generator, device=generator.device)
    return F.normalize(distributed.mean_(drawn), dim=0)


def sigreg(features: Float[Tensor, "b d"], directions: Float[Tensor, "d n"]) -> Float[Tensor, ""]:
    """Sketched isotropic Gaussian regularisation (LeJEPA, Balestriero & LeCun 2025, arXiv:2511.08544, Sec. 4).

    Along each direction the Epps-Pulley statistic of the n features of the whole batch against N(0, 1), averaged:

        n · 2 ∫_0^3 |φ(t) - exp(-t²/2)|² exp(-t²/2) dt,   φ(t) = mean_i exp(i t x_i)

    by the trapezoidal rule at 17 points. It is 1.05 on average for features that are Gaussian, and grows with the batch
    for others.
    """
    with _float32(features):
        t = torch.linspace(0, _REACH, _KNOTS, device=features.device)
        gauss = torch.exp(-t.square() / 2)
        step = torch.full_like(t, 2 * _REACH / (_KNOTS - 1))
        step[0] = step[-1] = _REACH / (_KNOTS - 1)
        angles = (features.float() @ directions).unsqueeze(-1) * t
        real = mean_over_processes(angles.cos().mean(dim=0))
        imaginary = mean_over_processes(angles.sin().mean(dim=0))
        gap = (real - gauss).square() + imaginary.square()
        return len(features) * distributed.world_size() * (gap @ (step * gauss)).mean()


def _float32(features: Tensor) -> torch.autocast | nullcontext[None]:
    kind = features.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()
