"""MAE: masked autoencoder (He et al. 2022, arXiv:2111.06377).

Most patches are dropped; the encoder sees the rest, the decoder gets a mask token in place of each dropped patch and
predicts its pixels. The loss is the mean squared error over dropped patches.
"""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float, Int64
from torch import Generator, Tensor

from dsdmae_builtin.methods.specs import MAESettings
from dsdmae_cli import corruption as C
from dsdmae_cli.backbone import Backbone, gather_tokens
from dsdmae_cli.methods.base import Losses, Method, Restoration
from dsdmae_cli.methods.heads import MaskedDecoder
from dsdmae_cli.methods.losses import pixel_loss
from dsdmae_cli.methods.pictures import hide, put_back
from dsdmae_cli.methods.spreading import Spreading


class Split(NamedTuple):
    """The patches of each image, divided."""

    ids_masked: Int64[Tensor, "b m"]
    ids_keep: Int64[Tensor, "b k"]
    directions: Float[Tensor, "d n"] | None = None


class MAE(Method):
    """An encoder of visible patches and a decoder of all of them."""

    def __init__(self, settings: MAESettings, backbone: Backbone) -> None:
        super().__init__()
        self.settings = settings
        self.backbone = backbone
        self.spreading = Spreading(settings, self)
        patch = backbone.patch_shape
        self.decoder = MaskedDecoder(
            backbone,
            settings.decoder_dim,
            settings.decoder_depth,
            patch[0] * patch[1] * backbone.in_chans,
            settings.decoder_heads,
        )

    def corrupt(self, images: Float[Tensor, "b c h w"], generator: Generator) -> Split:
        split = self.split(images, generator)
        return split._replace(directions=self.spreading.directions(self.backbone.width, generator))

    def split(self, images: Float[Tensor, "b c h w"], generator: Generator) -> Split:
        """Which patches are dropped, alone."""
        tokens = self.backbone.num_tokens
        keep = C.num_kept(self.settings.mask_ratio, tokens)
        return Split(*C.random_ids(len(images), tokens, tokens - keep, generator))

    def forward(self, images: Float[Tensor, "b c h w"], corruption: Split) -> Losses:
        latents, class_token = self.backbone.forward_subset_tokens(images, corruption.ids_keep)
        loss = self.reconstruction_loss(latents, class_token, images, corruption)
        losses = {"loss": loss, "pixel": loss.detach()}
        return self.spreading.add(losses, latents.mean(dim=1), corruption.directions)

    def reconstruction_loss(
        self,
        latents: Float[Tensor, "b k d"],
        class_token: Float[Tensor, "b d"] | None,
        images: Float[Tensor, "b c h w"],
        split: Split,
    ) -> Float[Tensor, ""]:
        """The error over dropped patches of what the decoder makes of the visible ones' latents."""
        patches = C.patchify(images, self.backbone.patch_shape)
        if self.settings.norm_pix_loss:
            patches = C.normalize_patches(patches)
        predicted = gather_tokens(self.decoder(latents, split.ids_keep, class_token), split.ids_masked)
        return pixel_loss(predicted, gather_tokens(patches, split.ids_masked))

    def encoder(self) -> Backbone:
        return self.backbone

    def restore(self, images: Float[Tensor, "b c h w"], corruption: Split) -> Restoration:
        """Dropped patches grey in the one, predicted in the other."""
        net, ids = self.backbone, corruption.ids_masked
        latents, class_token = net.forward_subset_tokens(images, corruption.ids_keep)
        predicted = gather_tokens(self.decoder(latents, corruption.ids_keep, class_token), ids).float()
        restored = put_back(images, predicted, ids, net.patch_shape, net.grid, self.settings.norm_pix_loss)
        return Restoration(hide(images, ids, net.patch_shape, net.grid), restored)

    @property
    def no_denoise(self) -> str:
        return "it has learned to fill in patches that are hidden, and nothing of noise in those that it sees"


def build(settings: MAESettings, backbone: Backbone) -> MAE:
    """MAE around a backbone that encodes subsets."""
    return MAE(settings, backbone)
