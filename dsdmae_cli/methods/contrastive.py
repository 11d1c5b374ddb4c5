"""The contrastive loss, over all processes. Projectors are projection.py, strong views dsdmae_cli/views.py."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from dsdmae_cli import distributed
from dsdmae_cli.methods.exchange import gather_from_processes


def info_nce(
    queries: Float[Tensor, "b d"], keys: Float[Tensor, "b d"], temperature: float, symmetric: bool = False
) -> Float[Tensor, ""]:
    """InfoNCE with in-batch negatives (MoCo v3, Chen et al. 2021, arXiv:2104.02057, Eq. 1 and Algorithm 1).

        2τ · mean_i -log( exp(q_i·k_i / τ) / Σ_j exp(q_i·k_j / τ) ),  q and k of unit length

    The factor 2τ keeps the size of the gradient where it is when τ changes. j runs over the images of all processes: a
    query of this process looks for its key among everyone's. Keys get no gradient, so that nothing has to travel back
    through the exchange: each process's loss is a mean over its own queries, and the mean over processes that
    DistributedDataParallel takes of the gradients is the gradient of the loss of the whole batch.

    Computed in float32, whatever autocast does around it. A method whose loss this is sets `whole_batch`.

    Args:
        queries, keys: row i of both belongs to the same image; every process has equally many.
        temperature: τ, above 0.
        symmetric: the mean of that and of the same with rows and columns exchanged, where each key has to find its
            query among everyone's (CLIP, Radford et al. 2021, arXiv:2103.00020, Fig. 3). Queries then travel too, and
            their gradients back.
    """
    # Autocast would round the similarities to bf16, that is to steps of 0.004/τ. Plans count on a device without it.
    kind = queries.device.type
    with torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext():
        q = F.normalize(queries.float(), dim=1)
        k = F.normalize(keys.detach().float(), dim=1)
        own = len(q) * distributed.rank() + torch.arange(len(q), device=q.device)
        loss = F.cross_entropy(q @ distributed.gather(k).T / temperature, own)
        if symmetric:
            loss = (loss + F.cross_entropy(k @ gather_from_processes(q).T / temperature, own)) / 2
        return 2 * temperature * loss
