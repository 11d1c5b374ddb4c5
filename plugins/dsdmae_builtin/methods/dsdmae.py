"""DSdMAE: denoising self-distillation masked autoencoder (Xu & Stirenko 2023).

The student reads the patches of an image, a share r of them noisy; the teacher, its moving average, reads the clean
ones. On the student's latents at the noisy positions stand, side by side, a decoder to pixels (Eq. 1) and a
regressor to the teacher's latents (Eq. 2); L = λ L_y + (1-λ) L_z (Eq. 3). docs/methods/dsdmae.md says where the paper
is silent, and that by default both read a quarter of the patches, where it has them read all.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Generator, Tensor, nn

from dsdmae_builtin.convolutions import GridConvolutions
from dsdmae_builtin.methods.dsdmae_settings import DSdMAESettings
from dsdmae_cli import corruption as C
from dsdmae_cli.backbone import Backbone, gather_tokens
from dsdmae_cli.degradation.photographs import Photographs, degrade
from dsdmae_cli.errors import SettingsError
from dsdmae_cli.methods.base import Losses, Method, Restoration, StepInfo
from dsdmae_cli.methods.ema import EMATeacher
from dsdmae_cli.methods.heads import TokenTransformer
from dsdmae_cli.methods.losses import cosine_loss, pixel_loss, standardize_tokens
from dsdmae_cli.methods.spreading import Spreading

# With pixels in [-1, 1]: an image with σ = 0.1 (13 of 255) counts half as much as one without noise.
_WEIGHT_FLOOR = 0.01


class Noised(NamedTuple):
    """The student's input, the patches that carry noise, and its level in each image or in each of these patches.

    directions: of methods/spreading.py, as in every method that has them.
    ids_clean: the patches that are read without noise, where not all are read.
    """

    images: Float[Tensor, "b c h w"]
    ids_noisy: Int64[Tensor, "b k"]
    std: Float[Tensor, "b _"]
    directions: Float[Tensor, "d n"] | None = None
    ids_clean: Int64[Tensor, "b c"] | None = None


class DSdMAE(Method):
    """Decoder and regressor on a student encoder, a teacher beside it; a head that λ switches off is not built."""

    grain_rows: Tensor
    grain_columns: Tensor

    def __init__(self, settings: DSdMAESettings, backbone: Backbone) -> None:
        super().__init__()
        self.settings = settings
        self.student = backbone
        self.spreading = Spreading(settings, self)
        if settings.noise == "photograph" and backbone.in_chans != 3:
            raise SettingsError(
                f"method.noise = 'photograph' is a camera's, of RGB images, and these have {backbone.in_chans}"
                " channels; take another noise, or choose three bands with --set data.bands=[3,2,1]"
            )
        white = settings.std if isinstance(settings.std, tuple) else (settings.std, settings.std)
        self.photographs = Photographs(
            settings.photograph_shares,
            white,
            settings.photograph_shot,
            settings.photograph_jpeg,
            settings.photograph_jpeg_alone,
        )
        patch = backbone.patch_shape
        # Of settings alone: no checkpoint needs them.
        for name, factor in C.grain(patch, backbone.in_chans, settings.correlation)._asdict().items():
            self.register_buffer(f"grain_{name}", factor, persistent=False)
        head = {"transformer": TokenTransformer, "conv": GridConvolutions}[settings.heads]
        self.decoder: nn.Module | None = None
        if settings.lambda_ > 0:
            values = patch[0] * patch[1] * backbone.in_chans
            self.decoder = head(backbone.grid, backbone.width, settings.decoder_depth, values)
        self.regressor = self.teacher = None
        if settings.lambda_ < 1:
            self.regressor = head(backbone.grid, backbone.width, settings.regressor_depth)
            self.teacher = EMATeacher(backbone, settings.ema_momentum, settings.ema_every, settings.teacher_start)

    @property
    def tokens_read(self) -> int:
        return self.settings.num_read(self.student.num_tokens)

    def corrupt(self, images: Float[Tensor, "b c h w"], generator: Generator) -> Noised:
        """In eval mode all patches are read, as with any dropout."""
        s, net = self.settings, self.student
        read = self.tokens_read if self.training else net.num_tokens
        count = C.num_masked(s.mask_ratio, read, generator)
        ids_noisy, ids_clean = C.random_ids(len(images), net.num_tokens, count, generator, read)
        noisy = C.mask_to_pixels(C.ids_to_mask(ids_noisy, net.num_tokens), net.patch_shape, net.grid)
        noise = self._photographed if s.noise == "photograph" else self._gaussian
        given, std = noise(images, noisy, ids_noisy, generator)
        directions = self.spreading.directions(net.width, generator)
        return Noised(given, ids_noisy, std, directions, ids_clean if read < net.num_tokens else None)

    def _gaussian(
        self, images: Tensor, noisy: Tensor, ids_noisy: Tensor, generator: Generator
    ) -> tuple[Tensor, Float[Tensor, "b _"]]:
        s, net = self.settings, self.student
        assert s.noise != "photograph"
        levels = (len(images), net.num_tokens if s.per_patch else 1)
        drawn = C.draw_std(s.std, levels, generator, s.law)
        std = drawn if isinstance(drawn, Tensor) else images.new_full((len(images), 1), drawn)
        by_pixel: Tensor | float = drawn if not isinstance(drawn, Tensor) else std[:, :, None, None]
        if std.shape[1] > 1:
            by_pixel, std = C.mask_to_pixels(std, net.patch_shape, net.grid), std.gather(1, ids_noisy)
        grain = C.Grain(self.grain_rows, self.grain_columns) if s.correlation else None
        return C.add_noise(images, noisy, by_pixel, s.noise, generator, s.noise_clip, grain), std

    def _photographed(
        self, images: Tensor, noisy: Tensor, ids_noisy: Tensor, generator: Generator
    ) -> tuple[Tensor, Float[Tensor, "b 1"]]:
        """The level, which no draw says, is what was added."""
        degraded = degrade(images, self.photographs, generator)
        std = (degraded - images).square().flatten(1).mean(dim=1, keepdim=True).sqrt()
        return torch.where(noisy, degraded, images), std

    def forward(self, images: Float[Tensor, "b c h w"], corruption: Noised) -> Losses:
        ids, weight = corruption.ids_noisy, self.settings.lambda_
        tokens, latents = self._read(self.student, corruption.images, corruption)
        losses: Losses = {}
        if self.decoder is not None:
            target = gather_tokens(self._pixel_target(images), ids)
            losses["pixel"] = pixel_loss(self._decode(latents, corruption), target, self._pixel_weight(corruption))
        if self.regressor is not None and self.teacher is not None:
            with torch.no_grad():
                _, target = self._read(self.teacher.backbone(), images, corruption)
            if self.settings.target_norm == "token":
                target = standardize_tokens(target)
            losses["feature"] = cosine_loss(self.regressor(latents, ids), target, self.settings.cosine)
        weights = {"pixel": weight, "feature": 1 - weight}
        loss = torch.stack([weights[name] * value for name, value in losses.items()]).sum()
        losses = {"loss": loss, **{name: value.detach() for name, value in losses.items()}}
        return self.spreading.add(losses, tokens.mean(dim=1), corruption.directions)

    def _read(self, net: Backbone, images: Tensor, corruption: Noised) -> tuple[Tensor, Tensor]:
        """Features of all patches that are read, and of the noisy ones."""
        ids, ids_clean = corruption.ids_noisy, corruption.ids_clean
        if ids_clean is None:
            tokens = net(images)
            return tokens, gather_tokens(tokens, ids)
        tokens = net.forward_subset(images, torch.cat([ids, ids_clean], dim=1))
        return tokens, tokens[:, : ids.shape[1]]

    def _decode(self, latents: Tensor, corruption: Noised) -> Tensor:
        """Patches at the noisy positions; as a residual they are added in float32, or noise would be rounded in."""
        assert self.decoder is not None
        decoded: Tensor = self.decoder(latents, corruption.ids_noisy)
        if not self.settings.residual:
            return decoded
        given = C.patchify(corruption.images, self.student.patch_shape)
        return gather_tokens(given, corruption.ids_noisy) + decoded.float()

    def _pixel_weight(self, corruption: Noised) -> Tensor | None:
        if self.settings.pixel_weight == "none":
            return None
        return 1 / (corruption.std.square() + _WEIGHT_FLOOR)

    def _pixel_target(self, images: Tensor) -> Tensor:
        patches = C.patchify(images, self.student.patch_shape)
        return C.normalize_patches(patches) if self.settings.norm_pix_loss else patches

    def after_step(self, info: StepInfo) -> None:
        if self.teacher is not None:
            self.teacher.follow(self.student, info)

    def encoder(self) -> Backbone:
        return self.student

    def averaged(self) -> Backbone | None:
        return None if self.teacher is None else self.teacher.backbone()

    def restore(self, images: Float[Tensor, "b c h w"], corruption: Noised) -> Restoration | None:
        """Decoded pixels at the noisy patches, the given ones elsewhere; None without a decoder.

        With norm_pix_loss the network does not predict a patch's mean and contrast: they are taken from the original,
        as MAE's own pictures do.
        """
        if self.decoder is None:
            return None
        ids, patch = corruption.ids_noisy, self.student.patch_shape
        decoded = self._decode(gather_tokens(self.student(corruption.images), ids), corruption).float()
        patches = C.patchify(images, patch)
        if self.settings.norm_pix_loss:
            decoded = C.denormalize_patches(decoded, gather_tokens(patches, ids))
        patches = patches.scatter(1, ids.unsqueeze(-1).expand_as(decoded), decoded)
        return Restoration(corruption.images, C.unpatchify(patches, patch, self.student.grid))

    def denoise(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"] | None:
        """Every patch decoded as if it were noisy; None without a decoder or with norm_pix_loss."""
        if self.decoder is None or self.settings.norm_pix_loss:
            return None
        tokens, patch = self.student(images), self.student.patch_shape
        grid = (images.shape[2] // patch[0], images.shape[3] // patch[1])
        decoder = self.decoder
        decoded: Tensor = decoder.on_grid(tokens, grid) if isinstance(decoder, GridConvolutions) else decoder(tokens)
        if self.settings.residual:
            decoded = C.patchify(images, patch) + decoded.float()
        return C.unpatchify(decoded.float(), patch, grid)

    @property
    def no_restore(self) -> str:
        return "with method.lambda = 0 it learns from features alone and has no decoder of pixels"

    @property
    def no_denoise(self) -> str:
        if self.decoder is None:
            return self.no_restore
        return "with method.norm_pix_loss = true it predicts pixels but for each patch's mean and contrast"

    @property
    def denoise_multiple(self) -> int | None:
        return self.student.size_multiple if isinstance(self.decoder, GridConvolutions) else None


def build(settings: DSdMAESettings, backbone: Backbone) -> DSdMAE:
    """DSdMAE around any backbone with a grid."""
    return DSdMAE(settings, backbone)
