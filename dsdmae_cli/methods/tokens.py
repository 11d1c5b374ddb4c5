"""Visual tokens: what a tokenizer is to the methods that predict its tokens (BEiT, CAE)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from dsdmae_cli.methods.base import Method
from dsdmae_cli.methods.frozen import Frozen


class ImageTokenizer(Method):
    """A task whose network turns an image into a grid of words out of a finite vocabulary, and back.

    Attributes:
        num_codes: size of the vocabulary.
    """

    num_codes: int
    learns_features = False  # but what patches look like

    def tokenize(self, images: Float[Tensor, "b c h w"]) -> Int64[Tensor, "b t"]:
        """The word of each patch, row by row, from 0 to num_codes - 1."""
        raise AssertionError("a subclass overrides tokenize")

    def decode(self, codes: Int64[Tensor, "b t"]) -> Float[Tensor, "b c h w"]:
        """The image that words stand for."""
        raise AssertionError("a subclass overrides decode")


class FrozenTokenizer(Frozen):
    """A tokenizer inside a method that learns from it."""

    module: ImageTokenizer

    def __init__(self, tokenizer: ImageTokenizer) -> None:
        super().__init__(tokenizer)

    @property
    def num_codes(self) -> int:
        """Size of the vocabulary."""
        return self.module.num_codes

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "b c h w"]) -> Int64[Tensor, "b t"]:
        return self.module.tokenize(images)

    @torch.no_grad()
    def decode(self, codes: Int64[Tensor, "b t"]) -> Float[Tensor, "b c h w"]:
        """The image that words stand for."""
        return self.module.decode(codes)
