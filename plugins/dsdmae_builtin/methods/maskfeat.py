"""MaskFeat: masked feature prediction (Wei et al. 2022, arXiv:2112.09133).

Blocks of patches are replaced by a mask token before the encoder, which reads all tokens; a linear layer on its output
predicts the histograms of oriented gradients (hog.py) of the masked patches, under the mean squared error.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Generator, Tensor, nn

from dsdmae_builtin.hog import hog, hog_features, hog_picture
from dsdmae_builtin.methods.specs import MaskFeatSettings
from dsdmae_cli import corruption as C
from dsdmae_cli.backbone import Backbone, gather_tokens
from dsdmae_cli.masking import block_ids
from dsdmae_cli.methods.base import Losses, Method, Pictures
from dsdmae_cli.methods.heads import init_weights
from dsdmae_cli.methods.losses import pixel_loss
from dsdmae_cli.methods.pictures import hide
from dsdmae_cli.methods.spreading import Spreading


class Masked(NamedTuple):
    """The masked patches of each image."""

    ids_masked: Int64[Tensor, "b m"]
    directions: Float[Tensor, "d n"] | None = None


class MaskFeat(Method):
    """A mask token before the encoder and a linear layer behind it."""

    def __init__(self, settings: MaskFeatSettings, backbone: Backbone) -> None:
        super().__init__()
        self.settings = settings
        self.backbone = backbone
        self.spreading = Spreading(settings, self)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, backbone.width))
        self.head = nn.Linear(backbone.width, hog_features(backbone.patch_shape, backbone.in_chans))
        init_weights(self.head)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def corrupt(self, images: Float[Tensor, "b c h w"], generator: Generator) -> Masked:
        net = self.backbone
        count = C.num_masked(self.settings.mask_ratio, net.num_tokens, generator)
        if self.settings.mask == "block":
            ids, _ = block_ids(len(images), net.grid, count, generator)
        else:
            ids, _ = C.random_ids(len(images), net.num_tokens, count, generator)
        return Masked(ids, self.spreading.directions(net.width, generator))

    def forward(self, images: Float[Tensor, "b c h w"], corruption: Masked) -> Losses:
        target = gather_tokens(self._target(images), corruption.ids_masked)
        predicted, tokens = self._predict(images, corruption)
        loss = pixel_loss(predicted, target)
        losses = {"loss": loss, "hog": loss.detach()}
        return self.spreading.add(losses, tokens.mean(dim=1), corruption.directions)

    def _predict(self, images: Tensor, corruption: Masked) -> tuple[Tensor, Tensor]:
        """Histograms of the masked patches, and the encoder's tokens of all."""
        masked = C.ids_to_mask(corruption.ids_masked, self.backbone.num_tokens)
        tokens = self.backbone.forward_masked(images, masked, self.mask_token)
        return self.head(gather_tokens(tokens, corruption.ids_masked)), tokens

    def _target(self, images: Tensor) -> Tensor:
        return hog(images, self.backbone.patch_shape, self.settings.gaussian)

    def encoder(self) -> Backbone:
        return self.backbone

    def show(self, images: Float[Tensor, "b c h w"], corruption: Masked) -> Pictures:
        """Masked patches grey; the histograms with those of masked patches as predicted; the true ones."""
        net, ids = self.backbone, corruption.ids_masked
        true = self._target(images)
        predicted = self._predict(images, corruption)[0].to(true.dtype)
        mixed = true.scatter(1, ids.unsqueeze(-1).expand_as(predicted), predicted)
        return {
            "given": hide(images, ids, net.patch_shape, net.grid),
            "predicted HOG": hog_picture(mixed, net.grid, net.patch_shape),
            "true HOG": hog_picture(true, net.grid, net.patch_shape),
        }


def build(settings: MaskFeatSettings, backbone: Backbone) -> MaskFeat:
    """MaskFeat around a backbone that takes a mask token."""
    return MaskFeat(settings, backbone)
