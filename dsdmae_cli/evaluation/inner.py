"""An encoder as a probe looks at it: after an inner block, several side by side, or given slightly noisy images.

Masked and denoising networks are often worth most before their last block, whose features serve the decoder (Alkin et
al. 2024, arXiv:2402.10093; Xiang et al. 2023, arXiv:2303.09769, who also probe with a little noise on the images).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from dsdmae_cli.backbone import Backbone, grid_of
from dsdmae_cli.blocks import Tokens, check_blocks, numbers_of, shape_of
from dsdmae_cli.data.source import derive_seed, seeded
from dsdmae_cli.settings.size import height_width

_KEY = "probe.blocks"
# Noise fields that images draw from by their own pixels.
_FIELDS = 64


class Seen(Backbone):
    """An encoder's features after some of its blocks, of images with noise of a given level.

    An image gets one of 64 fields of noise, by the sum of its pixels: its features depend neither on its batch nor on
    when they are computed.

    Args:
        blocks: numbers from 1; None = the final features. Several are put side by side.
        noise_std: σ for pixels in [-1, 1].

    Raises:
        SettingsError: the encoder has no such block, or blocks of several grids.
    """

    def __init__(self, encoder: Backbone, blocks: Sequence[int] | None = None, noise_std: float = 0.0) -> None:
        super().__init__()
        self.encoder, self.noise_std = encoder, noise_std
        self.blocks = tuple(blocks) if blocks is not None else (encoder.num_blocks,)
        check_blocks(encoder, self.blocks, _KEY)
        self.in_chans, self.image_size = encoder.in_chans, encoder.image_size
        self.mean, self.std = encoder.mean, encoder.std
        # Part of the digest under which features are kept.
        self.timm_name = encoder.timm_name
        self.timm_kwargs = {**encoder.timm_kwargs, "blocks": self.blocks, "noise_std": noise_std}
        device = next((weight.device for weight in encoder.parameters()), torch.device("cpu"))
        generator = seeded(torch.device("cpu"), derive_seed(0, "input noise"))
        count = _FIELDS if noise_std else 0
        fields = torch.randn(count, encoder.in_chans, *height_width(self.image_size), generator=generator)
        self.register_buffer("fields", fields.to(device), persistent=False)
        tokens, self.width, self.has_class_token = shape_of(encoder, self.blocks, _KEY)
        self.grid = grid_of(tokens, self.image_size)

    fields: Tensor

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b t d"]:
        return self.forward_tokens(images)[0]

    def forward_tokens(self, images: Float[Tensor, "b c h w"]) -> Tokens:
        return self.side_by_side(self.encoder.forward_blocks(self.noisy(images), self.blocks))

    def noisy(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The images as the network gets them."""
        if not self.noise_std:
            return images
        # Summed as integers: a float32 has no room for the sum of a large image, and would depend on its order.
        which = ((images + 1) * 127.5).round().long().sum(dim=(1, 2, 3)) % _FIELDS
        return images + self.noise_std * self.fields[which]

    def side_by_side(self, found: Sequence[Tokens]) -> Tokens:
        """What was found after its blocks, as one."""
        tokens = [token for _, token in found if token is not None]
        patches = torch.cat([patches for patches, _ in found], dim=2)
        return patches, torch.cat(tokens, dim=1) if self.has_class_token else None

    def timm_state(self) -> dict[str, Tensor]:
        return self.encoder.timm_state()


def seen_in_words(blocks: str, noise_std: float) -> str:
    """What a protocol adds where a probe looks at more or other than the final features of images as they are.

    Args:
        blocks: as `candidates` takes them; of "all" the one that was chosen is said where it is chosen.
    """
    last, _, count = blocks.partition(":")
    words = f"; features after block {blocks}" if blocks.isdigit() else ""
    if last == "last" and count:
        words = f"; features after the last {count} blocks side by side"
    return words + (f"; Gaussian noise of σ {noise_std:g} on the images, for pixels in [-1, 1]" if noise_std else "")


def tokens_of(encoders: Sequence[Backbone], images: Float[Tensor, "b c h w"]) -> list[Tokens]:
    """What each encoder gives; where they look at blocks of one network, by one pass through it."""
    seen = [encoder for encoder in encoders if isinstance(encoder, Seen)]
    networks = {(id(one.encoder), one.noise_std) for one in seen}
    if len(encoders) == 1 or len(seen) < len(encoders) or len(networks) > 1:
        return [encoder.forward_tokens(images) for encoder in encoders]
    blocks = sorted({block for one in seen for block in one.blocks})
    found = dict(zip(blocks, seen[0].encoder.forward_blocks(seen[0].noisy(images), blocks), strict=True))
    return [one.side_by_side([found[block] for block in one.blocks]) for one in seen]


def candidates(encoder: Backbone, blocks: str, noise_std: float) -> dict[str, Backbone]:
    """What is probed, by name: one encoder, or with blocks = "all" one for each block, of which one will be chosen.

    Args:
        blocks: "last", a number, "last:N" (the last N side by side) or "all".

    Raises:
        SettingsError: the encoder has no such blocks.
    """
    count = encoder.num_blocks
    if blocks == "all":
        check_blocks(encoder, range(1, max(2, count) + 1) if count == 1 else (), _KEY)
        return {str(block): Seen(encoder, (block,), noise_std) for block in range(1, count + 1)}
    if blocks == "last":
        return {blocks: Seen(encoder, None, noise_std) if noise_std else encoder}
    return {blocks: Seen(encoder, numbers_of(encoder, blocks, _KEY), noise_std)}
