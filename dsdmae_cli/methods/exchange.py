"""What a loss over all processes exchanges, with gradients: each process's loss depends on every process's features.

The engine (DistributedDataParallel) takes the mean over processes of the gradients. So that it is the gradient of the
loss of the whole batch, a process here gets back the mean (of a mean) or the sum (of a gathering) of what all of them
would send.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dsdmae_cli import distributed


def mean_over_processes(x: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """The mean over processes, which have equal shares of the batch."""
    return x if distributed.world_size() == 1 else _Mean.apply(x)


def moments_over_processes(
    mean: Float[Tensor, " d"], variance: Float[Tensor, " d"]
) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"]]:
    """Mean and variance of the whole batch, from those of each process's equal share of it; one exchange, and one back.

    The variance is the mean of each share's own and of its mean's squared distance from the mean of all (Chan, Golub
    and LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances"): nothing cancels.
    """
    return (mean, variance) if distributed.world_size() == 1 else _Moments.apply(mean, variance)


def gather_from_processes(x: Float[Tensor, "b d"]) -> Float[Tensor, "n d"]:
    """All processes' rows, in the order of ranks."""
    return x if distributed.world_size() == 1 else _Gather.apply(x)


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return distributed.mean_(x.clone())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return distributed.mean_(grad.clone())


class _Moments(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        means, variances = distributed.gather(torch.stack([mean, variance])[None]).unbind(dim=1)
        whole = means.mean(dim=0)
        ctx.save_for_backward(mean - whole)
        return whole, (variances + (means - whole).square()).mean(dim=0)

    @staticmethod
    def backward(ctx: Any, of_mean: Tensor, of_variance: Tensor) -> tuple[Tensor, Tensor]:
        [apart] = ctx.saved_tensors
        to_mean, to_variance = distributed.mean_(torch.stack([of_mean, of_variance]))
        return to_mean + 2 * apart * to_variance, to_variance


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return distributed.gather(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = distributed.mean_(grad.clone()) * distributed.world_size()
        return total.chunk(distributed.world_size())[distributed.rank()]
