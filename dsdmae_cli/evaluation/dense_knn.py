"""Nearest neighbours among patches: each votes with the distribution of labels under it (capi, Darcet et al. 2025,
arXiv:2502.08769, judges patch features by their nearest training patches too; there each pixel of a patch takes its
neighbours' most frequent label).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional as F

from dsdmae_cli.data.masks import VOID
from dsdmae_cli.data.source import derive_seed, seeded
from dsdmae_cli.evaluation.dense import DenseData
from dsdmae_cli.evaluation.knn import Ready

_WINDOWS_AT_ONCE = 64
_QUERIES_AT_ONCE = 1024


def label_shares(masks: UInt8[Tensor, "n h w"], grid: tuple[int, int], num_classes: int) -> Float[Tensor, "n t c"]:
    """Share of each class in the judged pixels of each patch; all zero where none is judged.

    Args:
        masks: of sides that are whole numbers of patches.
    """
    n, height, width = masks.shape
    size = (height // grid[0], width // grid[1])
    shares = torch.empty(n, grid[0] * grid[1], num_classes)
    for part in torch.arange(n).split(_WINDOWS_AT_ONCE):
        labels = masks[part].long()
        # One class beyond the last takes the void pixels, and is dropped.
        known = torch.where(labels == VOID, num_classes, labels)
        patches = known.unflatten(2, (grid[1], size[1])).unflatten(1, (grid[0], size[0])).transpose(2, 3)
        flat = patches.reshape(len(part), grid[0] * grid[1], -1)
        counts = torch.zeros(len(part), flat.shape[1], num_classes + 1)
        counts.scatter_add_(2, flat, torch.ones_like(flat, dtype=torch.float32))
        shares[part] = F.normalize(counts[..., :num_classes], p=1, dim=2)
    return shares


@dataclass(frozen=True)
class PatchBank:
    """Training patches that vote, on a device.

    Attributes:
        ready: their features.
        shares: [n, c] of labels under each, none all zero.
    """

    ready: Ready
    shares: Float[Tensor, "n c"]

    @classmethod
    def of(cls, features: Float[Tensor, "n d"], shares: Float[Tensor, "n c"], device: torch.device) -> PatchBank:
        """Of patches wherever they are."""
        return cls(Ready.of(features, device), shares.to(device))

    def __len__(self) -> int:
        return len(self.shares)

    def votes(self, tokens: Float[Tensor, "b t d"], k: int, temperature: float) -> Float[Tensor, "b t c"]:
        """Each class's share of the k nearest patches' votes, weighted by exp(cosine / temperature) of centred
        features."""
        weights, nearest = self.ready.neighbours(tokens.flatten(0, 1), k, temperature)
        weights = weights / weights.sum(dim=1, keepdim=True)
        parts = [
            torch.einsum("mk,mkc->mc", some, self.shares[which])
            for some, which in zip(weights.split(_QUERIES_AT_ONCE), nearest.split(_QUERIES_AT_ONCE), strict=True)
        ]
        return torch.cat(parts).unflatten(0, tokens.shape[:2])


def bank_of(data: DenseData, windows: Int64[Tensor, " n"], most: int) -> PatchBank:
    """The patches of some windows that have a judged pixel; of more than `most` a random choice by the seed."""
    shares = label_shares(data.masks[windows], data.grid, data.num_classes).flatten(0, 1)
    judged = torch.nonzero(shares.sum(dim=1) > 0)[:, 0]
    if len(judged) > most:
        generator = seeded(torch.device("cpu"), derive_seed(data.schedule.seed, "patches"))
        judged = judged[torch.randperm(len(judged), generator=generator)[:most].sort().values]
    per_window = data.tokens.shape[1]
    features = data.tokens[windows[judged // per_window], judged % per_window]
    return PatchBank.of(features, shares[judged], data.device)
