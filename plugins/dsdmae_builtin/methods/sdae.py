"""SdAE: self-distillated masked autoencoder (Chen et al. 2022, arXiv:2208.00449).

The student is a MAE whose decoder predicts features. The teacher, its encoder's moving average, reads the masked
patches alone, dealt into folds that do not see each other; its standardised tokens are what the student must match:
L = 1 - cos(student, sg[standardised teacher]) over the masked patches.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Generator, Tensor
from torch.nn import functional as F

from dsdmae_builtin.methods.specs import SdAESettings
from dsdmae_cli.backbone import Backbone, gather_tokens
from dsdmae_cli.corruption import num_kept
from dsdmae_cli.errors import SettingsError
from dsdmae_cli.masking import multi_fold_ids
from dsdmae_cli.methods.base import Losses, Method, Pictures, StepInfo
from dsdmae_cli.methods.ema import EMATeacher
from dsdmae_cli.methods.heads import MaskedDecoder, check_several_patches
from dsdmae_cli.methods.losses import cosine_loss, standardize_tokens
from dsdmae_cli.methods.pictures import keep_only, similarity_map
from dsdmae_cli.methods.spreading import Spreading


class Folded(NamedTuple):
    """The masked patches of each image, dealt into folds, and the visible ones."""

    ids_folds: Int64[Tensor, "b f n"]
    ids_keep: Int64[Tensor, "b k"]
    directions: Float[Tensor, "d n"] | None = None


class SdAE(Method):
    """An encoder of visible patches, a decoder to features, and a teacher of the masked patches."""

    def __init__(self, settings: SdAESettings, backbone: Backbone) -> None:
        super().__init__()
        check_several_patches(backbone)
        self.settings = settings
        self.student = backbone
        self.spreading = Spreading(settings, self)
        self.num_masked = backbone.num_tokens - num_kept(settings.mask_ratio, backbone.num_tokens)
        if self.num_masked < settings.folds:
            raise SettingsError(
                f"method.folds = {settings.folds} is more than the {self.num_masked} patches that"
                f" method.mask_ratio = {settings.mask_ratio:g} masks of {backbone.num_tokens}; lower the one or raise"
                " the other"
            )
        self.decoder = MaskedDecoder(
            backbone, settings.decoder_dim, settings.decoder_depth, backbone.width, settings.decoder_heads
        )
        self.teacher = EMATeacher(backbone, settings.ema_momentum, settings.ema_every, settings.teacher_start)

    def corrupt(self, images: Float[Tensor, "b c h w"], generator: Generator) -> Folded:
        net = self.student
        folds = multi_fold_ids(len(images), net.num_tokens, self.num_masked, self.settings.folds, generator)
        return Folded(*folds, self.spreading.directions(net.width, generator))

    def forward(self, images: Float[Tensor, "b c h w"], corruption: Folded) -> Losses:
        predicted, target, latents = self._both(images, corruption)
        loss = cosine_loss(predicted, target, self.settings.cosine)
        losses = {"loss": loss, "feature": loss.detach()}
        return self.spreading.add(losses, latents.mean(dim=1), corruption.directions)

    def _both(self, images: Tensor, folds: Folded) -> tuple[Tensor, Tensor, Tensor]:
        """Predicted and true features of every fold, [b*folds, n, d], and the visible tokens, [b, k, d].

        A fold is a sequence of its own to the teacher, and a cosine over tokens ("channel") spans the tokens of one
        fold, as in the public code.
        """
        ids = folds.ids_folds.flatten(0, 1)
        repeated = images.repeat_interleave(folds.ids_folds.shape[1], dim=0)
        teacher = self.teacher.backbone()
        with torch.no_grad():
            target = standardize_tokens(teacher.forward_subset(repeated, ids))
        latents, class_token = self.student.forward_subset_tokens(images, folds.ids_keep)
        decoded = self.decoder(latents, folds.ids_keep, class_token)
        predicted = gather_tokens(decoded, folds.ids_folds.flatten(1))
        return predicted.reshape(target.shape), target, latents

    def after_step(self, info: StepInfo) -> None:
        self.teacher.follow(self.student, info)

    def encoder(self) -> Backbone:
        return self.student

    def averaged(self) -> Backbone | None:
        return self.teacher.backbone()

    def show(self, images: Float[Tensor, "b c h w"], corruption: Folded) -> Pictures:
        """What the student is given, one fold of the teacher's, and how well the student met it at each patch."""
        net, ids = self.student, corruption.ids_folds
        predicted, target, _ = self._both(images, corruption)
        cosines = F.cosine_similarity(predicted.float(), target, dim=-1).reshape(len(images), -1)
        return {
            "student sees": keep_only(images, corruption.ids_keep, net.patch_shape, net.grid),
            "teacher, a fold": keep_only(images, ids[:, 0], net.patch_shape, net.grid),
            "cosine": similarity_map(cosines, ids.flatten(1), net.patch_shape, net.grid),
        }


def build(settings: SdAESettings, backbone: Backbone) -> SdAE:
    """SdAE around a backbone that encodes subsets."""
    return SdAE(settings, backbone)
