"""A tokenizer of visual words, trained on the images at hand: an autoencoder with finite scalar quantisation between.

z = projection of each token to a few channels, standardised by batch norm and bounded by tanh; each channel is rounded
to one of its L levels, with the gradient passed straight through; the product of the levels is the vocabulary
(Mentzer et al. 2023, arXiv:2309.15505).
A decoder of self-attention blocks predicts the pixels; the loss is their mean squared error. There is no codebook to
learn: no dead words to revive, no losses to commit to them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Generator, Tensor, nn

from dsdmae_builtin.methods.specs import TokenizerSettings
from dsdmae_cli.backbone import Backbone
from dsdmae_cli.corruption import patchify, unpatchify
from dsdmae_cli.methods.base import Losses, Restoration, StepInfo
from dsdmae_cli.methods.heads import TokenTransformer, init_weights
from dsdmae_cli.methods.losses import pixel_loss
from dsdmae_cli.methods.projection import TrackingBatchNorm
from dsdmae_cli.methods.tokens import ImageTokenizer


class Nothing(NamedTuple):
    """Nothing is hidden from a tokenizer."""


class ScalarQuantizer(nn.Module):
    """Finite scalar quantisation: each channel takes one of `levels[i]` values, evenly spaced in [-1, 1], without 1
    itself where their number is even.

    Args:
        levels: values of each channel, two or more.
    """

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__()
        self.levels: Tensor
        self.basis: Tensor
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        basis = [math.prod(levels[:i]) for i in range(len(levels))]
        self.register_buffer("basis", torch.tensor(basis), persistent=False)

    def forward(self, z: Float[Tensor, "b t c"]) -> Float[Tensor, "b t c"]:
        """The nearest values of the grid; the gradient is that of the bound before rounding. In float32 throughout."""
        bounded = self._bound(z.float())
        rounded = bounded + (bounded.round() - bounded).detach()
        return rounded / self._half()

    def _half(self) -> Tensor:
        return (self.levels // 2).float()

    def _bound(self, z: Tensor) -> Tensor:
        """Into the open interval whose rounding has exactly L values; an even L has one more below zero than above."""
        reach = (self.levels - 1) * (1 + 1e-3) / 2
        offset = torch.where(self.levels % 2 == 0, 0.5, 0.0)
        return torch.tanh(z + torch.atanh(offset / reach)) * reach - offset

    def codes(self, values: Float[Tensor, "b t c"]) -> Int64[Tensor, "b t"]:
        """The words of quantised values, a number in the mixed basis of the levels."""
        digits = (values * self._half() + self._half()).round().long()
        return (digits * self.basis).sum(dim=-1)

    def values(self, codes: Int64[Tensor, "b t"]) -> Float[Tensor, "b t c"]:
        """The inverse of codes."""
        digits = codes.unsqueeze(-1) // self.basis % self.levels
        return (digits.float() - self._half()) / self._half()


class Tokenizer(ImageTokenizer):
    """The backbone as encoder, a quantised bottleneck, and a decoder of self-attention blocks to pixels."""

    whole_batch = True  # for the batch norm's statistics

    def __init__(self, settings: TokenizerSettings, backbone: Backbone) -> None:
        super().__init__()
        self.settings = settings
        self.backbone = backbone
        self.num_codes = math.prod(settings.levels)
        ph, pw = backbone.patch_shape
        self.narrow = nn.Linear(backbone.width, len(settings.levels))
        # Without it all tokens drift to one side, where tanh is flat, and a handful of words is left (docs/log.md).
        self.norm = TrackingBatchNorm(len(settings.levels))
        self.kept: Tensor
        self.register_buffer("kept", torch.stack(self._statistics()))
        self.quantizer = ScalarQuantizer(settings.levels)
        self.widen = nn.Linear(len(settings.levels), backbone.width)
        self.decoder = TokenTransformer(
            backbone.grid, backbone.width, settings.decoder_depth, backbone.in_chans * ph * pw
        )
        init_weights(self.narrow)
        init_weights(self.widen)
        # The decoder learns the mean image by its bias before much pulls at the encoder.
        assert isinstance(self.decoder.project, nn.Linear)
        with torch.no_grad():
            self.decoder.project.weight.mul_(0.1)

    def corrupt(self, images: Float[Tensor, "b c h w"], generator: Generator) -> Nothing:
        return Nothing()

    def forward(self, images: Float[Tensor, "b c h w"], corruption: Nothing) -> Losses:
        patches = self._patches(self._values(images))
        loss = pixel_loss(patches, patchify(images, self.backbone.patch_shape))
        return {"loss": loss, "pixel": loss.detach()}

    def _statistics(self) -> tuple[Tensor, Tensor]:
        mean, var = self.norm.running_mean, self.norm.running_var
        assert mean is not None
        assert var is not None
        return mean, var

    @torch.no_grad()
    def after_step(self, info: StepInfo) -> None:
        """A batch that was not finite must not stay in the batch norm's statistics: they decide all later words."""
        for now, before in zip(self._statistics(), self.kept, strict=True):
            now.copy_(torch.where(now.isfinite(), now, before))
            before.copy_(now)

    def _values(self, images: Tensor) -> Tensor:
        z = self.narrow(self.backbone(images)).float()
        return self.quantizer(self.norm(z.flatten(0, 1)).unflatten(0, z.shape[:2]))

    def _patches(self, values: Tensor) -> Tensor:
        return self.decoder(self.widen(values))

    def tokenize(self, images: Float[Tensor, "b c h w"]) -> Int64[Tensor, "b t"]:
        return self.quantizer.codes(self._values(images))

    def decode(self, codes: Int64[Tensor, "b t"]) -> Float[Tensor, "b c h w"]:
        return self._pixels(self.quantizer.values(codes))

    def _pixels(self, values: Tensor) -> Tensor:
        return unpatchify(self._patches(values).float(), self.backbone.patch_shape, self.backbone.grid)

    def encoder(self) -> Backbone:
        return self.backbone

    def restore(self, images: Float[Tensor, "b c h w"], corruption: Nothing) -> Restoration:
        """The images, and what their words give back."""
        return Restoration(images, self._pixels(self._values(images)))

    def measure(self, images: Float[Tensor, "b c h w"]) -> dict[str, float]:
        """What the words keep of held-out images (peak signal-to-noise ratio in dB), and how many are in use."""
        values = self._values(images)
        error = (self._pixels(values).clamp(-1, 1) - images).square().mean(dim=(1, 2, 3)).clamp(min=1e-10)
        counts = torch.bincount(self.quantizer.codes(values).flatten(), minlength=self.num_codes).double()
        shares = counts[counts > 0] / counts.sum()
        return {
            "psnr": float((10 * torch.log10(4 / error)).mean()),
            "words_used": float(len(shares)),
            "perplexity": float((-shares * shares.log()).sum().exp()),
        }

    @property
    def no_denoise(self) -> str:
        return "it has learned to give clean images back from few words, and nothing of noise"


def build(settings: TokenizerSettings, backbone: Backbone) -> Tokenizer:
    """A tokenizer whose encoder is the backbone."""
    return Tokenizer(settings, backbone)
