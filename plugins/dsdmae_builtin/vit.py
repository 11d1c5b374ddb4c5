"""ViT-T/S/B at any image and patch size, on timm's VisionTransformer. Its weights keep timm's names."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from dsdmae_builtin.backbones import ViTSettings
from dsdmae_cli.backbone import Backbone, gather_tokens, sincos_positions, to_autocast_dtype
from dsdmae_cli.errors import SettingsError
from dsdmae_cli.methods.heads import ViTLayerNorm, init_weights
from dsdmae_cli.settings.size import Size, height_width, nearest_whole, size_word, whole_patches

# Of the pixels of ImageNet in [0, 1], by channel.
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# The registered timm architecture that a ViT of a width is nearest to; its other dimensions are given as arguments.
_TIMM_NAMES = {192: "vit_tiny_patch16_224", 384: "vit_small_patch16_224", 768: "vit_base_patch16_224"}


class ViT(Backbone):
    """A vision transformer that returns its patch tokens after the final norm.

    Raises:
        SettingsError: the image is not a whole number of patches, or the width does not fit heads or positions.
    """

    def __init__(self, settings: ViTSettings, image_size: Size) -> None:
        super().__init__()
        in_chans = self.set_channels(settings.in_chans)
        patch, self.grid = check_patches(settings.patch_size, image_size)
        _check(settings)
        self.width = settings.embed_dim
        self.image_size = image_size
        self.has_class_token = settings.class_token
        if settings.normalization == "imagenet":
            self.set_normalization(_IMAGENET_MEAN, _IMAGENET_STD)
        self.timm_name = _TIMM_NAMES.get(self.width, _TIMM_NAMES[192])
        self.timm_kwargs = {
            "img_size": image_size,
            "patch_size": patch,
            "embed_dim": settings.embed_dim,
            "depth": settings.depth,
            "num_heads": settings.num_heads,
            "mlp_ratio": settings.mlp_ratio,
            "class_token": settings.class_token,
            "global_pool": "avg",
            "fc_norm": False,
            "num_classes": 0,
        }
        if in_chans != 3:  # timm's own default, which is left out of what it is told
            self.timm_kwargs["in_chans"] = in_chans
        if settings.layer_scale is not None:
            self.timm_kwargs["init_values"] = settings.layer_scale
        self.vit = VisionTransformer(**self.timm_kwargs, drop_path_rate=settings.drop_path, norm_layer=ViTLayerNorm)
        self.vit.apply(init_weights)
        nn.init.xavier_uniform_(self.vit.patch_embed.proj.weight.flatten(1))  # MAE: like a linear layer
        self._set_positions(settings.pos_embed)

    def _set_positions(self, kind: str) -> None:
        table = sincos_positions(self.grid, self.width)
        if self.vit.cls_token is not None:
            nn.init.normal_(self.vit.cls_token, std=0.02)
            table = torch.cat([torch.zeros(1, 1, self.width), table], dim=1)
        if kind == "sincos":
            self.positions.data.copy_(table)
            self.positions.requires_grad_(False)
        else:
            nn.init.normal_(self.positions, std=0.02)

    @property
    def positions(self) -> nn.Parameter:
        """timm's position embedding, that of the class token first."""
        assert self.vit.pos_embed is not None
        return self.vit.pos_embed

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b t d"]:
        return self._encode(self._embed(images))[0]

    def forward_tokens(
        self, images: Float[Tensor, "b c h w"]
    ) -> tuple[Float[Tensor, "b t d"], Float[Tensor, "b d"] | None]:
        return self._encode(self._embed(images))

    def forward_subset(
        self, images: Float[Tensor, "b c h w"], ids_keep: Int64[Tensor, "b k"]
    ) -> Float[Tensor, "b k d"]:
        return self.forward_subset_tokens(images, ids_keep)[0]

    def forward_subset_tokens(
        self, images: Float[Tensor, "b c h w"], ids_keep: Int64[Tensor, "b k"]
    ) -> tuple[Float[Tensor, "b k d"], Float[Tensor, "b d"] | None]:
        return self._encode(gather_tokens(self._embed(images), ids_keep))

    def forward_masked(
        self, images: Float[Tensor, "b c h w"], masked: Bool[Tensor, "b t"], mask_token: Float[Tensor, "1 1 d"]
    ) -> Float[Tensor, "b t d"]:
        patches = self._patches(images)
        patches = torch.where(masked.unsqueeze(-1), mask_token.to(patches.dtype), patches)
        return self._encode(self._place(patches))[0]

    def _embed(self, images: Tensor) -> Tensor:
        return self._place(self._patches(images))

    def _patches(self, images: Tensor) -> Tensor:
        return to_autocast_dtype(self.vit.patch_embed(self.normalize(images)))

    def _place(self, patches: Tensor) -> Tensor:
        return patches + self.positions[:, -self.num_tokens :].to(patches.dtype)

    @property
    def num_blocks(self) -> int:
        return len(self.vit.blocks)

    def forward_blocks(
        self, images: Float[Tensor, "b c h w"], blocks: Sequence[int]
    ) -> Sequence[tuple[Float[Tensor, "b t d"], Float[Tensor, "b d"] | None]]:
        tokens, found = self._with_class_token(self._embed(images)), {}
        for number in range(1, max(blocks) + 1):
            tokens = self.vit.blocks[number - 1](tokens)
            if number in blocks:
                found[number] = self._parted(self.vit.norm(tokens) if number == self.num_blocks else tokens)
        return [found[block] for block in blocks]

    def _encode(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features of the patches, and of the class token if there is one."""
        return self._parted(self.vit.norm(self.vit.blocks(self._with_class_token(tokens))))

    def _with_class_token(self, tokens: Tensor) -> Tensor:
        if self.vit.cls_token is None:
            return tokens
        first = (self.vit.cls_token + self.positions[:, :1]).to(tokens.dtype)
        return torch.cat([first.expand(tokens.shape[0], -1, -1), tokens], dim=1)

    def _parted(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        return (tokens, None) if self.vit.cls_token is None else (tokens[:, 1:], tokens[:, 0])

    def attention(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b heads rows columns"]:
        tokens = self._with_class_token(self._embed(images))
        for block in self.vit.blocks[:-1]:
            tokens = block(tokens)
        return attention_to_patches(self.vit.blocks[-1], tokens, self.grid, self.has_class_token)

    @property
    def body(self) -> VisionTransformer:
        return self.vit

    def timm_state(self) -> dict[str, Tensor]:
        return dict(self.vit.state_dict())

    def set_image_size(self, image_size: Size) -> None:
        grid = new_grid(image_size, self.patch_shape[0])
        learned = self.positions.requires_grad
        # timm resamples the table bicubically, a fixed sine-cosine one too: the network knows these positions, and
        # those of a new table of another size would mean other distances to it.
        self.vit.set_input_size(img_size=height_width(image_size))
        self.positions.requires_grad_(learned)
        self.image_size = image_size
        self.grid = grid
        self.timm_kwargs = {**self.timm_kwargs, "img_size": image_size}


def attention_to_patches(
    block: Any, tokens: Float[Tensor, "b n d"], grid: tuple[int, int], class_token: bool
) -> Float[Tensor, "b heads rows columns"]:
    """A block's attention to the patches: the class token's, or the mean of all that there are.

    Args:
        block: of timm's vision transformers, in eval mode.
        tokens: that it reads, those of the patches last.
        class_token: the first of them is one.
    """
    attn = block.attn
    b, n, _ = tokens.shape
    qkv = attn.qkv(block.norm1(tokens)).reshape(b, n, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
    query, key = attn.q_norm(qkv[0]).float(), attn.k_norm(qkv[1]).float()
    weights = (query @ key.mT * attn.scale).softmax(dim=-1)
    found = weights[:, :, 0] if class_token else weights.mean(dim=2)
    return found[..., -grid[0] * grid[1] :].unflatten(-1, grid)


def check_patches(patch: int | str, image_size: Size) -> tuple[int, tuple[int, int]]:
    """The side of a patch in pixels and the grid of patches, if they fill the image.

    Raises:
        SettingsError: they do not.
    """
    grid = None if isinstance(patch, str) else whole_patches(image_size, (patch, patch))
    if isinstance(patch, str) or grid is None:
        common = math.gcd(*height_width(image_size))
        allowed = ", ".join(str(n) for n in range(1, common + 1) if common % n == 0)
        sizes = "" if isinstance(patch, str) else f", or data.image_size {_next_to(image_size, patch, 1)}"
        raise SettingsError(
            f"backbone.patch_size = {patch} does not divide data.image_size = {size_word(image_size)};"
            f" it may be one of {allowed}{sizes}"
        )
    return patch, grid


def new_grid(image_size: Size, patch: int) -> tuple[int, int]:
    """Rows and columns of patches of a network's own in images of another size.

    Raises:
        SettingsError: no whole number of patches, or none but one.
    """
    grid = whole_patches(image_size, (patch, patch))
    if grid is None or grid == (1, 1):
        raise SettingsError(
            f"an image size of {size_word(image_size)} px is no whole number of patches of {patch} px (two at least);"
            f" {_next_to(image_size, patch, 2).replace(' or ', ' and ')} would be"
        )
    return grid


def _next_to(image_size: Size, patch: int, least: int) -> str:
    below, above = nearest_whole(image_size, (patch, patch), least)
    return size_word(below) if below == above else f"{size_word(below)} or {size_word(above)}"


def _check(settings: ViTSettings) -> None:
    if settings.embed_dim % 4 or settings.embed_dim % settings.num_heads:
        raise SettingsError(
            f"backbone.embed_dim = {settings.embed_dim} must be a multiple of 4 and of"
            f" backbone.num_heads = {settings.num_heads}"
        )


def build(settings: ViTSettings, image_size: Size) -> ViT:
    """A ViT of the settings' size for images of one size."""
    return ViT(settings, image_size)
