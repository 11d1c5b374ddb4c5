"""CAE: context autoencoder (Chen et al. 2022, arXiv:2202.03026).

The encoder reads visible patches alone. A regressor of cross-attention blocks predicts from them the latents of the
masked patches; a decoder reads nothing but those predictions and predicts the visual words of the masked patches.
L = cross-entropy(words) + 2 mean (predicted latent - sg[the encoder's own latent of the masked patches])^2.
The words are those of a tokenizer that this program trains on the same images (tokenizer.py).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Generator, Tensor
from torch.nn import functional as F

from dsdmae_builtin.cross_attention import LatentRegressor
from dsdmae_builtin.methods.specs import CAESettings
from dsdmae_builtin.words import fitting, word_losses, word_pictures
from dsdmae_cli import corruption as C
from dsdmae_cli.backbone import Backbone
from dsdmae_cli.masking import block_ids
from dsdmae_cli.methods.base import Losses, Method, Pictures
from dsdmae_cli.methods.heads import TokenTransformer, check_several_patches
from dsdmae_cli.methods.spreading import Spreading
from dsdmae_cli.methods.tokens import FrozenTokenizer, ImageTokenizer


class BlockMask(NamedTuple):
    """The masked patches of each image and the visible ones; each row sorted ascending."""

    ids_masked: Int64[Tensor, "b m"]
    ids_keep: Int64[Tensor, "b k"]
    directions: Float[Tensor, "d n"] | None = None


class CAE(Method):
    """An encoder of visible patches, a regressor to the latents of masked ones, and a decoder of these to words."""

    def __init__(self, settings: CAESettings, backbone: Backbone, tokenizer: ImageTokenizer) -> None:
        super().__init__()
        check_several_patches(backbone)
        self.settings = settings
        self.backbone = backbone
        self.spreading = Spreading(settings, self)
        self.tokenizer = FrozenTokenizer(tokenizer)
        self.regressor = LatentRegressor(backbone.grid, backbone.width, settings.regressor_depth, settings.layer_scale)
        self.decoder = TokenTransformer(
            backbone.grid, backbone.width, settings.decoder_depth, tokenizer.num_codes, settings.layer_scale
        )

    def corrupt(self, images: Float[Tensor, "b c h w"], generator: Generator) -> BlockMask:
        net = self.backbone
        count = min(C.num_masked(self.settings.mask_ratio, net.num_tokens, generator), net.num_tokens - 1)
        ids = block_ids(len(images), net.grid, count, generator)
        return BlockMask(*ids, self.spreading.directions(net.width, generator))

    def forward(self, images: Float[Tensor, "b c h w"], corruption: BlockMask) -> Losses:
        words = self.tokenizer(images).gather(1, corruption.ids_masked)
        with torch.no_grad():
            target = self.backbone.forward_subset(images, corruption.ids_masked)
        logits, latents, visible = self._predict(images, corruption)
        word, right = word_losses(logits, words)
        alignment = F.mse_loss(latents.float(), target.float())
        losses = {
            "loss": word + self.settings.alignment_weight * alignment,
            "words": word.detach(),
            "alignment": alignment.detach(),
            "accuracy": right,
        }
        return self.spreading.add(losses, visible.mean(dim=1), corruption.directions)

    def _predict(self, images: Tensor, corruption: BlockMask) -> tuple[Tensor, Tensor, Tensor]:
        """Logits over the vocabulary, and latents, of the masked patches; latents of the visible ones."""
        visible = self.backbone.forward_subset(images, corruption.ids_keep)
        latents = self.regressor(visible, corruption.ids_keep, corruption.ids_masked)
        return self.decoder(latents, corruption.ids_masked), latents, visible

    def encoder(self) -> Backbone:
        return self.backbone

    def show(self, images: Float[Tensor, "b c h w"], corruption: BlockMask) -> Pictures:
        """Masked patches grey; the image of all words with the masked ones as predicted; that of the true words."""
        logits, *_ = self._predict(images, corruption)
        return word_pictures(images, corruption.ids_masked, logits, self.tokenizer)


def build(settings: CAESettings, backbone: Backbone, tokenizer: Method) -> CAE:
    """CAE around a backbone that encodes subsets."""
    return CAE(settings, backbone, fitting(settings, backbone, tokenizer))
