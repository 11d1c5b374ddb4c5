"""A convolutional U-Net as a backbone: the grid is the finest scale, coarser ones lend it their field of view.

Made for restoring pixels, where it learns several times faster on a CPU than a plain transformer on patches did
(docs/log.md). The shape is that of DRUNet (Zhang et al. 2021, arXiv:2008.13751) behind a patch embedding that halves
the resolution as FFDNet's does (Zhang et al. 2018, arXiv:1710.04026).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dsdmae_builtin.backbones import UNetSettings
from dsdmae_builtin.convolutions import ResidualConv, to_map, to_tokens
from dsdmae_cli.backbone import Backbone, on_channels
from dsdmae_cli.corruption import patchify
from dsdmae_cli.errors import SettingsError
from dsdmae_cli.settings.size import Size, height_width, size_word, whole_patches


def _stage(width: int, depth: int) -> nn.Sequential:
    return nn.Sequential(*(ResidualConv(width) for _ in range(depth)))


class UNet(Backbone):
    """Residual convolutions at several scales, joined by addition.

    Raises:
        SettingsError: the image cannot be halved as often as there are scales.
    """

    def __init__(self, settings: UNetSettings, image_size: Size) -> None:
        super().__init__()
        in_chans = self.set_channels(settings.in_chans)
        patch, widths, depths = settings.patch_size, settings.widths, settings.depths
        self.patch_size = patch
        self.num_scales = len(widths)
        self.size_multiple: int = patch * 2 ** (len(widths) - 1)
        self.set_image_size(image_size)
        self.width = widths[0]
        self.timm_name = ""
        self.timm_kwargs = {}
        self.embed = nn.Conv2d(in_chans * patch * patch, widths[0], 3, padding=1)
        coarser = list(pairwise(widths))
        self.encode = nn.ModuleList(_stage(w, d) for w, d in zip(widths, depths, strict=True))
        self.shrink = nn.ModuleList(nn.Conv2d(fine, coarse, 2, stride=2) for fine, coarse in coarser)
        self.enlarge = nn.ModuleList(nn.ConvTranspose2d(coarse, fine, 2, stride=2) for fine, coarse in coarser)
        self.decode = nn.ModuleList(_stage(w, d) for w, d in zip(widths[:-1], depths[:-1], strict=True))
        # Batches of a single image would else be taken for channels first.
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b t d"]:
        *_, last = self._stages(images)
        return to_tokens(last)

    @property
    def num_blocks(self) -> int:
        """Stages: down to the coarsest scale, and up again."""
        return 2 * self.num_scales - 1

    def forward_blocks(
        self, images: Float[Tensor, "b c h w"], blocks: Sequence[int]
    ) -> Sequence[tuple[Float[Tensor, "b _ _"], None]]:
        stages = dict(zip(range(1, max(blocks) + 1), self._stages(images), strict=False))
        return [(to_tokens(stages[block]), None) for block in blocks]

    def _stages(self, images: Tensor) -> Iterator[Tensor]:
        """What each stage gives, from the first on."""
        # The images' own grid and not self.grid: convolutions take any, and an exported network keeps that.
        grid = (images.shape[-2] // self.patch_size, images.shape[-1] // self.patch_size)
        x = self.embed(to_map(patchify(images, (self.patch_size, self.patch_size)), grid))
        skipped: list[Tensor] = []
        for stage, shrink in zip(self.encode, self.shrink, strict=False):
            x = stage(x)
            yield x
            skipped.append(x)
            x = shrink(x)
        x = self.encode[-1](x)
        yield x
        for enlarge, stage in zip(reversed(self.enlarge), reversed(self.decode), strict=True):
            x = stage(enlarge(x) + skipped.pop())
            yield x

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        """Which layer a parameter is of, by its name, from the first on: what timm's layer decay asks a network for."""

        def layer(name: str) -> int:
            kind, number, *_ = name.split(".")
            if kind == "embed":
                return 0
            down = kind in ("encode", "shrink")
            return int(number) + 1 if down else 2 * self.num_scales - 1 - int(number)

        return layer

    def timm_state(self) -> dict[str, Tensor]:
        return self.state_dict()

    def adapted(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        pixels, weight = self.patch_size**2, given.get("embed.weight")
        if weight is None or weight.ndim != 4 or weight.shape[1] % pixels:
            return dict(given)  # of another network, which whoever loads it will say
        # The first layer reads the values of a patch as patchify lays them: pixel by pixel, channels innermost.
        by_channel = weight.unflatten(1, (pixels, -1)).transpose(1, 2)
        return {**given, "embed.weight": on_channels(by_channel, self.in_chans).transpose(1, 2).flatten(1, 2)}

    def set_image_size(self, image_size: Size) -> None:
        # No weight depends on the size.
        if whole_patches(image_size, (self.size_multiple, self.size_multiple)) is None:
            raise SettingsError(
                f"data.image_size = {size_word(image_size)} must be a multiple of {self.size_multiple}:"
                f" backbone.patch_size = {self.patch_size}, halved {self.num_scales - 1} times"
            )
        self.image_size = image_size
        height, width = height_width(image_size)
        self.grid = (height // self.patch_size, width // self.patch_size)


def build(settings: UNetSettings, image_size: Size) -> UNet:
    """A U-Net of the settings' widths and depths for images of one size."""
    return UNet(settings, image_size)
