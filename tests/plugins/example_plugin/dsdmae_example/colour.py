"""The method: some patches are turned grey, and the network gives them their colours back."""

from __future__ import annotations

from typing import NamedTuple

import torch
from dsdmae_cli.backbone import Backbone
from dsdmae_cli.corruption import ids_to_mask, mask_to_pixels, num_masked, patchify, random_ids, unpatchify
from dsdmae_cli.methods.base import Losses, Method, Restoration
from jaxtyping import Bool, Float
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from dsdmae_example.specs import ColourSettings

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


class Greyed(NamedTuple):
    """The patches that lose their colour: True = grey. All that is random; the rest follows from it."""

    mask: Bool[Tensor, "b t"]


class Colour(Method):
    """Predict the colours of grey patches with one linear layer on the backbone's tokens.

    Args:
        settings: share of grey patches, and the error's kind.
        backbone: the encoder that is pre-trained.
    """

    def __init__(self, settings: ColourSettings, backbone: Backbone) -> None:
        super().__init__()
        self.settings = settings
        self.backbone = backbone
        height, width = backbone.patch_shape
        self.decoder = nn.Linear(backbone.width, 3 * height * width)

    def corrupt(self, images: Float[Tensor, "b c h w"], generator: Generator) -> Greyed:
        num_tokens = self.backbone.num_tokens
        num_grey = num_masked(self.settings.mask_ratio, num_tokens, generator)
        ids_grey, _ = random_ids(len(images), num_tokens, num_grey, generator)
        return Greyed(ids_to_mask(ids_grey, num_tokens))

    def forward(self, images: Float[Tensor, "b c h w"], corruption: Greyed) -> Losses:
        predicted = self._predict(self._turn_grey(images, corruption.mask))
        target = patchify(images, self.backbone.patch_shape)
        error = F.l1_loss if self.settings.loss == "l1" else F.mse_loss
        per_patch = error(predicted, target, reduction="none").mean(dim=-1)
        # Patches that kept their colour have nothing to teach.
        grey = corruption.mask.float()
        return {"loss": (per_patch * grey).sum() / grey.sum()}

    def encoder(self) -> Backbone:
        return self.backbone

    def restore(self, images: Float[Tensor, "b c h w"], corruption: Greyed) -> Restoration:
        patch, grid = self.backbone.patch_shape, self.backbone.grid
        corrupted = self._turn_grey(images, corruption.mask)
        coloured = unpatchify(self._predict(corrupted), patch, grid)
        return Restoration(
            corrupted, torch.where(mask_to_pixels(corruption.mask, patch, grid), coloured, images)
        )

    def _turn_grey(
        self, images: Float[Tensor, "b c h w"], mask: Bool[Tensor, "b t"]
    ) -> Float[Tensor, "b c h w"]:
        luma = sum(weight * images[:, c : c + 1] for c, weight in enumerate(LUMA))
        pixels = mask_to_pixels(mask, self.backbone.patch_shape, self.backbone.grid)
        return torch.where(pixels, luma, images)

    def _predict(self, corrupted: Float[Tensor, "b c h w"]) -> Float[Tensor, "b t p"]:
        # Under autocast the decoder answers in half precision, which would round small errors away.
        return self.decoder(self.backbone(corrupted)).float()
