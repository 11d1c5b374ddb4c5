"""Weighted k-nearest-neighbour classification by cosine, the protocol of DINO (Caron et al. 2021, arXiv:2104.14294).

Features are centred on the bank's mean, which DINO's own class token hardly needs and mean-pooled tokens do:
a large common part would make all cosines alike. Neighbours vote with exp(cosine / temperature) (Wu et al. 2018,
arXiv:1805.01978).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from dsdmae_cli.evaluation.closing import NEIGHBOURS

# One block of similarities is 1,024 x 32,768 float32 numbers, 128 MiB, however many images there are.
_QUERIES_AT_ONCE = 1024
_BANK_AT_ONCE = 32_768


@torch.no_grad()
def knn_probabilities(
    bank: Float[Tensor, "n d"],
    bank_labels: Int64[Tensor, " n"],
    queries: Float[Tensor, "m d"],
    num_classes: int,
    ks: Sequence[int],
    temperature: float = 0.07,
    device: torch.device | None = None,
) -> dict[int, Float[Tensor, "m c"]]:
    """Each class's share of the neighbours' votes, for every k of `ks` in one pass.

    A k larger than the bank means all of the bank.

    Args:
        bank, queries: features in any floating dtype, on any device; compared in float32.
        bank_labels: 0..num_classes-1.
        device: where to compute; None = where the queries are. The bank visits it in blocks.

    Returns:
        Probabilities by k, on the CPU. A class without a neighbour has zero.
    """
    device = device or queries.device
    weights, nearest = neighbours(bank, queries, max(ks), temperature, device)
    labels = bank_labels.to(device)[nearest]
    probabilities = {}
    for k in ks:
        votes = torch.zeros(len(queries), num_classes, device=device)
        votes.scatter_add_(1, labels[:, :k], weights[:, :k])
        probabilities[k] = (votes / votes.sum(dim=1, keepdim=True)).cpu()
    return probabilities


@torch.no_grad()
def neighbours(
    bank: Float[Tensor, "n d"], queries: Float[Tensor, "m d"], k: int, temperature: float, device: torch.device
) -> tuple[Float[Tensor, "m k"], Int64[Tensor, "m k"]]:
    """Weights of the votes of each query's k nearest (or all of a smaller bank), and which they are, nearest first.

    The nearest one's weight is one, which changes no share and leaves no room for overflow.
    """
    center = _mean(bank).to(device)
    return _weighted(_blocks(bank, center, device), center, queries, min(k, len(bank)), temperature)


@dataclass(frozen=True)
class Ready:
    """A bank that is asked again and again, whole on a device.

    Attributes:
        units: its features, centred and of length one.
        center: their mean.
    """

    units: Float[Tensor, "n d"]
    center: Float[Tensor, " d"]

    @classmethod
    def of(cls, bank: Float[Tensor, "n d"], device: torch.device) -> Ready:
        """The bank, and what every question would have to work out anew."""
        center = _mean(bank).to(device)
        return cls(torch.cat(list(_blocks(bank, center, device))), center)

    @torch.no_grad()
    def neighbours(
        self, queries: Float[Tensor, "m d"], k: int, temperature: float
    ) -> tuple[Float[Tensor, "m k"], Int64[Tensor, "m k"]]:
        """What `neighbours` says of the bank."""
        blocks = iter(self.units.split(_BANK_AT_ONCE))
        return _weighted(blocks, self.center, queries, min(k, len(self.units)), temperature)


def _weighted(
    blocks: Iterator[Float[Tensor, "b d"]],
    center: Float[Tensor, " d"],
    queries: Float[Tensor, "m d"],
    k: int,
    temperature: float,
) -> tuple[Float[Tensor, "m k"], Int64[Tensor, "m k"]]:
    points = torch.cat([_unit(part.to(center.device), center) for part in queries.split(_QUERIES_AT_ONCE)])
    similarity, nearest = _nearest(blocks, points, k)
    return ((similarity - similarity[:, :1]) / temperature).exp(), nearest


def knn_accuracy(
    bank: Float[Tensor, "n d"],
    bank_labels: Int64[Tensor, " n"],
    queries: Float[Tensor, "m d"],
    labels: Int64[Tensor, " m"],
    k: int = NEIGHBOURS,
    temperature: float = 0.07,
) -> float:
    """Fraction of queries that their k nearest bank images classify rightly."""
    num_classes = int(max(bank_labels.max(), labels.max())) + 1
    probabilities = knn_probabilities(bank, bank_labels, queries, num_classes, (k,), temperature)[k]
    return int((probabilities.argmax(dim=1) == labels.cpu()).sum()) / len(labels)


def _mean(bank: Float[Tensor, "n d"]) -> Float[Tensor, " d"]:
    # In float64, because a million float16 rows add up to more than float32 can tell apart; block by block, because
    # a whole bank in float64 may not fit. (MPS has no float64, hence the CPU.)
    total = torch.zeros(bank.shape[1], dtype=torch.float64)
    for part in bank.split(_BANK_AT_ONCE):
        total += part.cpu().double().sum(dim=0)
    return (total / len(bank)).float()


def _unit(features: Float[Tensor, "b d"], center: Float[Tensor, " d"]) -> Float[Tensor, "b d"]:
    return F.normalize(features.float() - center, dim=1)


def _blocks(
    bank: Float[Tensor, "n d"], center: Float[Tensor, " d"], device: torch.device
) -> Iterator[Float[Tensor, "b d"]]:
    for part in bank.split(_BANK_AT_ONCE):
        yield _unit(part.to(device, non_blocking=True), center)


def _nearest(
    blocks: Iterator[Float[Tensor, "b d"]], queries: Float[Tensor, "m d"], k: int
) -> tuple[Float[Tensor, "m k"], Int64[Tensor, "m k"]]:
    """Cosine and index of each query's k nearest in all blocks, nearest first."""
    similarity = torch.empty(len(queries), 0, device=queries.device)
    nearest = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    start = 0
    # Blocks outside, queries inside: a bank that lives on the CPU travels to the device once, not once a query block.
    for block in blocks:
        found = [(part @ block.T).topk(min(k, len(block)), dim=1) for part in queries.split(_QUERIES_AT_ONCE)]
        similarity = torch.cat([similarity, torch.cat([f.values for f in found])], dim=1)
        nearest = torch.cat([nearest, torch.cat([f.indices for f in found]) + start], dim=1)
        similarity, order = similarity.topk(min(k, similarity.shape[1]), dim=1)
        nearest = nearest.gather(1, order)
        start += len(block)
    return similarity, nearest
