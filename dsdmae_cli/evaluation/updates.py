"""Optimisers of several heads at once, each at its own rate: a parameter's first dimension is that of the heads.

Each head moves as it would alone under the optimiser of its name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Optimizer = Literal["lars", "sgd", "adamw"]


class _Updates:
    """Parameters in place, weights before biases; only weights are decayed.

    Args:
        weights, biases: [H, ...] each.
        weight_decay: into the gradient for lars and sgd, decoupled for adamw.
    """

    def __init__(self, weights: Sequence[Tensor], biases: Sequence[Tensor], weight_decay: float = 0.0) -> None:
        self.parameters, self.num_weights, self.weight_decay = (*weights, *biases), len(weights), weight_decay
        self.moments = [torch.zeros_like(p) for p in self.parameters]

    def __call__(self, gradients: Sequence[Tensor], lrs: Float[Tensor, " h"]) -> None:
        """One step of every head at its rate; the gradients may be used up."""
        raise AssertionError("an optimiser overrides this")


class Momentum(_Updates):
    """SGD with momentum 0.9; with a trust ratio it is LARS.

    LARS is You et al. 2017 (arXiv:1708.03888) as facebookresearch/mae's util/lars.py has it: only weights are scaled
    (and decayed), by trust x |w| / |g + decay x w|, before momentum; the rate comes last. The ratio is each head's own.
    """

    trust: float | None = None
    momentum = 0.9

    def __call__(self, gradients: Sequence[Tensor], lrs: Float[Tensor, " h"]) -> None:
        for index, (parameter, step) in enumerate(zip(self.parameters, gradients, strict=True)):
            if index < self.num_weights:
                step.add_(parameter, alpha=self.weight_decay)
                if self.trust is not None:
                    step.mul_(self._ratio(parameter, step))
            self.moments[index].mul_(self.momentum).add_(step)
            parameter.addcmul_(_beside(lrs, parameter), self.moments[index], value=-1)

    def _ratio(self, weight: Tensor, step: Tensor) -> Tensor:
        within = tuple(range(1, weight.ndim))
        own, change = (torch.linalg.vector_norm(t, dim=within, keepdim=True) for t in (weight, step))
        return torch.where((own > 0) & (change > 0), (self.trust or 0.0) * own / change, 1.0)


class Lars(Momentum):
    """LARS, trust 0.001."""

    trust = 0.001


class AdamW(_Updates):
    """AdamW (Loshchilov & Hutter 2019), betas (0.9, 0.999), eps 1e-8."""

    betas = (0.9, 0.999)
    eps = 1e-8

    def __init__(self, weights: Sequence[Tensor], biases: Sequence[Tensor], weight_decay: float = 0.0) -> None:
        super().__init__(weights, biases, weight_decay)
        self.squares = [torch.zeros_like(p) for p in self.parameters]
        self.num_steps = 0

    def __call__(self, gradients: Sequence[Tensor], lrs: Float[Tensor, " h"]) -> None:
        self.num_steps += 1
        first_bias, second_bias = (1 - beta**self.num_steps for beta in self.betas)
        for index, (parameter, gradient) in enumerate(zip(self.parameters, gradients, strict=True)):
            rates, first, second = _beside(lrs, parameter), self.moments[index], self.squares[index]
            if index < self.num_weights:
                parameter.mul_(1 - rates * self.weight_decay)
            first.lerp_(gradient, 1 - self.betas[0])
            second.mul_(self.betas[1]).addcmul_(gradient, gradient, value=1 - self.betas[1])
            denominator = (second / second_bias).sqrt_().add_(self.eps)
            parameter.sub_(rates / first_bias * first / denominator)


def _beside(lrs: Float[Tensor, " h"], parameter: Tensor) -> Tensor:
    return lrs.view(-1, *(1,) * (parameter.ndim - 1))


UPDATES: dict[Optimizer, type[Momentum] | type[AdamW]] = {"lars": Lars, "sgd": Momentum, "adamw": AdamW}
