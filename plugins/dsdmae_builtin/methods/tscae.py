"""TSCAE: teacher-student complementary masked autoencoder (2023), re-implemented from the abstract.

The teacher, encoder and decoder, sees a quarter of the patches and predicts representations of the others, which a
prediction module maps to pixels. The student, the same encoder alone, sees those others: the complementary mask. What
the teacher predicted of an image and what the student saw of it must find each other in the batch:
L = L_pixel + w L_contrast. Everything the abstract leaves open is our reading: docs/methods/tscae.md lists it.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Generator, Tensor, nn

from dsdmae_builtin.methods.mae import Split
from dsdmae_builtin.methods.specs import TSCAESettings
from dsdmae_cli import corruption as C
from dsdmae_cli.backbone import Backbone, gather_tokens
from dsdmae_cli.methods.base import Losses, Method, Pictures, Restoration
from dsdmae_cli.methods.contrastive import info_nce
from dsdmae_cli.methods.heads import MaskedDecoder, init_weights
from dsdmae_cli.methods.losses import pixel_loss
from dsdmae_cli.methods.pictures import hide, keep_only, put_back
from dsdmae_cli.methods.projection import GlobalBatchNorm
from dsdmae_cli.methods.spreading import Spreading


class TSCAE(Method):
    """One encoder for teacher and student, the teacher's decoder, and a linear layer to pixels."""

    whole_batch = True

    def __init__(self, settings: TSCAESettings, backbone: Backbone) -> None:
        super().__init__()
        self.settings = settings
        self.backbone = backbone
        self.spreading = Spreading(settings, self)
        patch = backbone.patch_shape
        self.decoder = MaskedDecoder(
            backbone, settings.decoder_dim, settings.decoder_depth, backbone.width, settings.decoder_heads
        )
        self.predict = nn.Linear(backbone.width, patch[0] * patch[1] * backbone.in_chans)
        # What all images share is most of a pooled latent, and the cosine of any two is then near 1: centred and scaled
        # over the batch they can be told apart from the first step on.
        self.spread = GlobalBatchNorm(backbone.width, affine=False)
        init_weights(self.predict)

    def corrupt(self, images: Float[Tensor, "b c h w"], generator: Generator) -> Split:
        """The teacher's mask; the student's is the rest."""
        tokens = self.backbone.num_tokens
        keep = C.num_kept(self.settings.mask_ratio, tokens)
        ids = C.random_ids(len(images), tokens, tokens - keep, generator)
        return Split(*ids, self.spreading.directions(self.backbone.width, generator))

    def forward(self, images: Float[Tensor, "b c h w"], corruption: Split) -> Losses:
        ids = corruption.ids_masked
        told = self._teacher(images, corruption)
        seen = self.backbone.forward_subset(images, ids)
        patches = C.patchify(images, self.backbone.patch_shape)
        if self.settings.norm_pix_loss:
            patches = C.normalize_patches(patches)
        pixel = pixel_loss(self.predict(told), gather_tokens(patches, ids))
        pooled = seen.mean(dim=1)
        told, seen = self.spread(told.mean(dim=1)), self.spread(pooled)
        tau = self.settings.temperature
        # Keys get no gradient, so that each direction teaches one branch.
        contrastive = (info_nce(told, seen, tau) + info_nce(seen, told, tau)) / 2
        loss = pixel + self.settings.contrastive_weight * contrastive
        losses = {"loss": loss, "pixel": pixel.detach(), "contrastive": contrastive.detach()}
        return self.spreading.add(losses, pooled, corruption.directions)

    def _teacher(self, images: Tensor, split: Split) -> Tensor:
        """Representations that the teacher predicts of the patches it does not see."""
        latents, class_token = self.backbone.forward_subset_tokens(images, split.ids_keep)
        decoded = self.decoder(latents, split.ids_keep, class_token)
        return gather_tokens(decoded, split.ids_masked)

    def encoder(self) -> Backbone:
        return self.backbone

    def restore(self, images: Float[Tensor, "b c h w"], corruption: Split) -> Restoration:
        """What the teacher is given, and the pixels of its prediction."""
        net, ids = self.backbone, corruption.ids_masked
        predicted = self.predict(self._teacher(images, corruption)).float()
        restored = put_back(images, predicted, ids, net.patch_shape, net.grid, self.settings.norm_pix_loss)
        return Restoration(hide(images, ids, net.patch_shape, net.grid), restored)

    def show(self, images: Float[Tensor, "b c h w"], corruption: Split) -> Pictures:
        """As restore, and what the student is given."""
        shown, net = self.restore(images, corruption), self.backbone
        return {
            "teacher sees": shown.corrupted,
            "restored": shown.restored,
            "student sees": keep_only(images, corruption.ids_masked, net.patch_shape, net.grid),
        }

    @property
    def no_denoise(self) -> str:
        return "it has learned to fill in patches that are hidden, and nothing of noise in those that it sees"


def build(settings: TSCAESettings, backbone: Backbone) -> TSCAE:
    """TSCAE around a backbone that encodes subsets."""
    return TSCAE(settings, backbone)
