"""Visual tokens: what a tokenizer is to the methods that predict its tokens (BEiT, CAE)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from dsdmae_cli.methods.base import Method


class ImageTokenizer(Method):
    """A task whose network turns an image into a grid of words out of a finite vocabulary, and back.

    Attributes:
        num_codes: size of the vocabulary.
    """

    num_codes: int
    learns_features = False  # but what patches look like

    def tokenize(self, images: Float[Tensor, "b 3 s s"]) -> Int64[Tensor, "b t"]:
        """The word of each patch, row by row, from 0 to num_codes - 1."""
        raise AssertionError("a tokenizer overrides tokenize")

    def decode(self, codes: Int64[Tensor, "b t"]) -> Float[Tensor, "b 3 s s"]:
        """The image that words stand for."""
        raise AssertionError("a tokenizer overrides decode")


class FrozenTokenizer(nn.Module):
    """A tokenizer inside a method that learns from it: it never learns again, and is saved with the method.

    Attributes:
        trained: whether weights of a training were given; as a buffer, so that a checkpoint says it too.
    """

    def __init__(self, tokenizer: ImageTokenizer) -> None:
        super().__init__()
        self.module = tokenizer.requires_grad_(False)
        self.trained: Tensor
        self.register_buffer("trained", torch.zeros((), dtype=torch.bool))
        self.eval()

    def train(self, mode: bool = True) -> FrozenTokenizer:
        """Always in eval mode."""
        return super().train(False)

    def give(self, weights: dict[str, Tensor]) -> None:
        """Take the weights of a trained tokenizer of the same shape."""
        self.module.load_state_dict(weights)
        self.trained.fill_(True)

    @property
    def num_codes(self) -> int:
        """Size of the vocabulary."""
        return self.module.num_codes

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "b 3 s s"]) -> Int64[Tensor, "b t"]:
        return self.module.tokenize(images)

    @torch.no_grad()
    def decode(self, codes: Int64[Tensor, "b t"]) -> Float[Tensor, "b 3 s s"]:
        """The image that words stand for."""
        return self.module.decode(codes)
