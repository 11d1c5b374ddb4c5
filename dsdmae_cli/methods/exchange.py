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


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return distributed.gather(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = distributed.mean_(grad.clone()) * distributed.world_size()
        return total.chunk(distributed.world_size())[distributed.rank()]
