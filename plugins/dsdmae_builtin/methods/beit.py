"""BEiT: masked image modelling (Bao et al. 2022, arXiv:2106.08254).

Blocks of patches are replaced by a mask token before the encoder, which reads all tokens; a linear layer on its output
predicts the visual words of the masked patches, under the cross-entropy. The words are those of a tokenizer that this
program trains on the same images (tokenizer.py), where the paper takes DALL-E's.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Generator, Tensor, nn

from dsdmae_builtin.methods.specs import BEiTSettings
from dsdmae_builtin.words import fitting, word_losses, word_pictures
from dsdmae_cli import corruption as C
from dsdmae_cli.backbone import Backbone, gather_tokens
from dsdmae_cli.masking import block_ids
from dsdmae_cli.methods.base import Losses, Method, Pictures
from dsdmae_cli.methods.spreading import Spreading
from dsdmae_cli.methods.tokens import FrozenTokenizer, ImageTokenizer


class Masked(NamedTuple):
    """The masked patches of each image."""

    ids_masked: Int64[Tensor, "b m"]
    directions: Float[Tensor, "d n"] | None = None


class BEiT(Method):
    """A mask token before the encoder and a linear layer to words behind it."""

    def __init__(self, settings: BEiTSettings, backbone: Backbone, tokenizer: ImageTokenizer) -> None:
        super().__init__()
        self.settings = settings
        self.backbone = backbone
        self.spreading = Spreading(settings, self)
        self.tokenizer = FrozenTokenizer(tokenizer)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, backbone.width))
        self.head = nn.Linear(backbone.width, tokenizer.num_codes)
        # As in the public code: small logits, so that the first loss is the logarithm of the vocabulary.
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def corrupt(self, images: Float[Tensor, "b c h w"], generator: Generator) -> Masked:
        net = self.backbone
        count = C.num_masked(self.settings.mask_ratio, net.num_tokens, generator)
        ids, _ = block_ids(len(images), net.grid, count, generator)
        return Masked(ids, self.spreading.directions(net.width, generator))

    def forward(self, images: Float[Tensor, "b c h w"], corruption: Masked) -> Losses:
        words = self.tokenizer(images).gather(1, corruption.ids_masked)
        logits, tokens = self._predict(images, corruption)
        loss, right = word_losses(logits, words)
        losses = {"loss": loss, "words": loss.detach(), "accuracy": right}
        return self.spreading.add(losses, tokens.mean(dim=1), corruption.directions)

    def _predict(self, images: Tensor, corruption: Masked) -> tuple[Tensor, Tensor]:
        """Logits over the vocabulary, of the masked patches, and the encoder's tokens of all."""
        masked = C.ids_to_mask(corruption.ids_masked, self.backbone.num_tokens)
        tokens = self.backbone.forward_masked(images, masked, self.mask_token)
        return self.head(gather_tokens(tokens, corruption.ids_masked)), tokens

    def encoder(self) -> Backbone:
        return self.backbone

    def show(self, images: Float[Tensor, "b c h w"], corruption: Masked) -> Pictures:
        """Masked patches grey; the image of all words with the masked ones as predicted; that of the true words."""
        logits, _ = self._predict(images, corruption)
        return word_pictures(images, corruption.ids_masked, logits, self.tokenizer)


def build(settings: BEiTSettings, backbone: Backbone, tokenizer: Method) -> BEiT:
    """BEiT around a backbone that takes a mask token."""
    return BEiT(settings, backbone, fitting(settings, backbone, tokenizer))
