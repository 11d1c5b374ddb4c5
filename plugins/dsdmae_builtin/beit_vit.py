"""BEiT's vision transformer on timm's Beit: relative position bias shared by all blocks, layer scale, a class token.

Its weights keep timm's names. It reads whole images, masked ones too; a subset of patches it does not.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models.beit import Beit
from torch import Tensor, nn

from dsdmae_builtin.backbones import BEiTViTSettings
from dsdmae_builtin.vit import check_patches, new_grid
from dsdmae_cli.backbone import Backbone, to_autocast_dtype
from dsdmae_cli.errors import SettingsError
from dsdmae_cli.methods.heads import ViTLayerNorm
from dsdmae_cli.settings.size import Size, height_width


class BEiTViT(Backbone):
    """A vision transformer without absolute positions that returns its patch tokens after the final norm.

    Raises:
        SettingsError: the image is not a whole number of patches, or the width does not fit the heads.
    """

    has_class_token = True
    timm_name = "beit_base_patch16_224"

    def __init__(self, settings: BEiTViTSettings, image_size: Size) -> None:
        super().__init__()
        in_chans = self.set_channels(settings.in_chans)
        if settings.normalization == "imagenet":
            self.set_normalization(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
        patch, self.grid = check_patches(settings.patch_size, image_size)
        if settings.embed_dim % settings.num_heads:
            raise SettingsError(
                f"backbone.embed_dim = {settings.embed_dim} must be a multiple of backbone.num_heads ="
                f" {settings.num_heads}"
            )
        self.width = settings.embed_dim
        self.image_size = image_size
        self.timm_kwargs = {
            "img_size": image_size,
            "patch_size": patch,
            "embed_dim": settings.embed_dim,
            "depth": settings.depth,
            "num_heads": settings.num_heads,
            "mlp_ratio": settings.mlp_ratio,
            "init_values": settings.layer_scale,
            "use_abs_pos_emb": False,
            "use_rel_pos_bias": False,
            "use_shared_rel_pos_bias": True,
            "global_pool": "token",
            "num_classes": 0,
        }
        if in_chans != 3:  # timm's own default, which is left out of what it is told
            self.timm_kwargs["in_chans"] = in_chans
        self.vit = Beit(**self.timm_kwargs, drop_path_rate=settings.drop_path, norm_layer=ViTLayerNorm)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b t d"]:
        return self.forward_tokens(images)[0]

    def forward_tokens(
        self, images: Float[Tensor, "b c h w"]
    ) -> tuple[Float[Tensor, "b t d"], Float[Tensor, "b d"] | None]:
        return self._encode(to_autocast_dtype(self.vit.patch_embed(self.normalize(images))))

    def forward_masked(
        self, images: Float[Tensor, "b c h w"], masked: Bool[Tensor, "b t"], mask_token: Float[Tensor, "1 1 d"]
    ) -> Float[Tensor, "b t d"]:
        patches = to_autocast_dtype(self.vit.patch_embed(self.normalize(images)))
        return self._encode(torch.where(masked.unsqueeze(-1), mask_token.to(patches.dtype), patches))[0]

    @property
    def num_blocks(self) -> int:
        return len(self.vit.blocks)

    def forward_blocks(
        self, images: Float[Tensor, "b c h w"], blocks: Sequence[int]
    ) -> Sequence[tuple[Float[Tensor, "b t d"], Float[Tensor, "b d"] | None]]:
        return self._blocks(to_autocast_dtype(self.vit.patch_embed(self.normalize(images))), blocks)

    def _encode(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Features of the patches and of the class token."""
        return self._blocks(patches, (self.num_blocks,))[0]

    def _blocks(self, patches: Tensor, blocks: Sequence[int]) -> Sequence[tuple[Tensor, Tensor]]:
        first = self.vit.cls_token.to(patches.dtype).expand(len(patches), -1, -1)
        tokens, found = torch.cat([first, patches], dim=1), {}
        assert self.vit.rel_pos_bias is not None
        bias = self.vit.rel_pos_bias()
        for number in range(1, max(blocks) + 1):
            tokens = self.vit.blocks[number - 1](tokens, shared_rel_pos_bias=bias)
            if number in blocks:
                given = self.vit.norm(tokens) if number == self.num_blocks else tokens
                found[number] = (given[:, 1:], given[:, 0])
        return [found[block] for block in blocks]

    @property
    def body(self) -> nn.Module:
        return self.vit

    def timm_state(self) -> dict[str, Tensor]:
        return dict(self.vit.state_dict())

    def set_image_size(self, image_size: Size) -> None:
        grid = new_grid(image_size, self.patch_shape[0])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch's, of a tensor inside timm that is not contiguous
            self.vit.set_input_size(img_size=height_width(image_size))  # resamples the table of biases over distances
        self.image_size = image_size
        self.grid = grid
        self.timm_kwargs = {**self.timm_kwargs, "img_size": image_size}


def build(settings: BEiTViTSettings, image_size: Size) -> BEiTViT:
    """BEiT's ViT of the settings' size for images of one size."""
    return BEiTViT(settings, image_size)
