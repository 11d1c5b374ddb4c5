"""A network that was trained before the run, inside a method that learns from it (MethodSpec.requires)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Frozen(nn.Module):
    """A network that never learns again, and is saved with the method that holds it.

    Attributes:
        module: the network.
        trained: whether weights of a training were given; as a buffer, so that a checkpoint says it too.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module.requires_grad_(False)
        self.trained: Tensor
        self.register_buffer("trained", torch.zeros((), dtype=torch.bool))
        self.eval()

    def train(self, mode: bool = True) -> Frozen:
        """Always in eval mode."""
        return super().train(False)

    def give(self, weights: dict[str, Tensor]) -> None:
        """Take the weights of a trained network of the same shape."""
        self.module.load_state_dict(weights)
        self.trained.fill_(True)
