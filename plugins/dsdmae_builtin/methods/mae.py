"""MAE: masked autoencoder (He et al. 2022, arXiv:2111.06377).

Most patches are dropped; the encoder sees the rest, the decoder gets a mask token in place of each dropped patch and
predicts its pixels. The loss is the mean squared error over dropped patches.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Generator, Tensor, nn

from dsdmae_builtin.methods.specs import MAESettings
from dsdmae_cli import corruption as C
from dsdmae_cli.backbone import Backbone, gather_tokens
from dsdmae_cli.errors import SettingsError
from dsdmae_cli.methods.base import Losses, Method, Restoration
from dsdmae_cli.methods.heads import TokenTransformer, init_weights
from dsdmae_cli.methods.losses import pixel_loss


class Split(NamedTuple):
    """The patches of each image, divided."""

    ids_masked: Int64[Tensor, "b m"]
    ids_keep: Int64[Tensor, "b k"]


class MAE(Method):
    """An encoder of visible patches and a decoder of all of them."""

    def __init__(self, settings: MAESettings, backbone: Backbone) -> None:
        super().__init__()
        self.settings = settings
        self.backbone = backbone
        width = backbone.width if settings.decoder_dim == "auto" else settings.decoder_dim
        if width % 4:
            raise SettingsError(f"method.decoder_dim = {width} must be a multiple of 4")
        patch = backbone.patch_shape
        self.embed = nn.Linear(backbone.width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.decoder = TokenTransformer(backbone.grid, width, settings.decoder_depth, patch[0] * patch[1] * 3)
        init_weights(self.embed)
        nn.init.normal_(self.mask_token, std=0.02)

    def corrupt(self, images: Float[Tensor, "b c h w"], generator: Generator) -> Split:
        tokens = self.backbone.num_tokens
        # len_keep = int(T (1-r)), as the public code counts; at least one patch must be seen.
        keep = max(1, int(tokens * (1 - self.settings.mask_ratio)))
        return Split(*C.random_ids(len(images), tokens, tokens - keep, generator))

    def forward(self, images: Float[Tensor, "b c h w"], corruption: Split) -> Losses:
        predicted = gather_tokens(self._predict(images, corruption), corruption.ids_masked)
        patches = C.patchify(images, self.backbone.patch_shape)
        if self.settings.norm_pix_loss:
            patches = C.normalize_patches(patches)
        loss = pixel_loss(predicted, gather_tokens(patches, corruption.ids_masked))
        return {"loss": loss, "pixel": loss.detach()}

    def _predict(self, images: Tensor, split: Split) -> Tensor:
        seen = self.embed(self.backbone.forward_subset(images, split.ids_keep))
        tokens = self.mask_token.to(seen.dtype).expand(len(images), self.backbone.num_tokens, -1)
        return self.decoder(tokens.scatter(1, split.ids_keep.unsqueeze(-1).expand_as(seen), seen))

    def encoder(self) -> Backbone:
        return self.backbone

    def restore(self, images: Float[Tensor, "b c h w"], corruption: Split) -> Restoration:
        """Dropped patches grey in the one, predicted in the other."""
        net, ids = self.backbone, corruption.ids_masked
        hidden = C.mask_to_pixels(C.ids_to_mask(ids, net.num_tokens), net.patch_shape, net.grid)
        patches = C.patchify(images, net.patch_shape)
        predicted = gather_tokens(self._predict(images, corruption), ids).float()
        if self.settings.norm_pix_loss:
            predicted = C.denormalize_patches(predicted, gather_tokens(patches, ids))
        patches = patches.scatter(1, ids.unsqueeze(-1).expand_as(predicted), predicted)
        return Restoration(
            torch.where(hidden, torch.zeros_like(images), images),
            C.unpatchify(patches, net.patch_shape, net.grid),
        )


def build(settings: MAESettings, backbone: Backbone) -> MAE:
    """MAE around a backbone that encodes subsets."""
    return MAE(settings, backbone)
