"""Backbones that ship with the program, as torch-free specs: the paper's ViT-T/S/B and any timm model with a grid.

The networks are built in vit.py and timm_backbone.py.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from dsdmae_cli.plugins import BackboneSpec
from dsdmae_cli.settings.models import BackboneSettings, PositiveFloat, PositiveInt

_NORMALIZATION = (
    "what the network sees: imagenet = pixels normalised by ImageNet's mean and std, as most published weights want"
    " them; none = pixels in [-1, 1]"
)


class ViTSettings(BackboneSettings):
    """A plain vision transformer; the defaults are ViT-T's."""

    embed_dim: PositiveInt = Field(192, description="features per token; a multiple of 4 and of num_heads")
    depth: PositiveInt = Field(12, description="number of transformer blocks")
    num_heads: PositiveInt = Field(3, description="attention heads")
    mlp_ratio: PositiveFloat = Field(4.0, description="width of a block's hidden layer over embed_dim")
    pos_embed: Literal["sincos", "learn"] = Field(
        "sincos", description="fixed 2-D sine-cosine positions, or learned ones"
    )
    class_token: bool = Field(False, description="prepend a class token; 256 tokens tile better than 257")
    layer_scale: PositiveFloat | None = Field(
        None, description="first factor of every branch, learned (CaiT's LayerScale); none = no such factors"
    )
    normalization: Literal["imagenet", "none"] = Field("none", description=_NORMALIZATION)


class ViTSmallSettings(ViTSettings):
    """ViT-S."""

    name: str = Field("vit-small", description="backbone plugin, or timm:NAME for any timm model with a grid")
    embed_dim: PositiveInt = Field(384, description="features per token; a multiple of 4 and of num_heads")
    num_heads: PositiveInt = Field(6, description="attention heads")


class ViTBaseSettings(ViTSettings):
    """ViT-B."""

    name: str = Field("vit-base", description="backbone plugin, or timm:NAME for any timm model with a grid")
    embed_dim: PositiveInt = Field(768, description="features per token; a multiple of 4 and of num_heads")
    num_heads: PositiveInt = Field(12, description="attention heads")


class ViTLargeSettings(ViTSettings):
    """ViT-L."""

    name: str = Field("vit-large", description="backbone plugin, or timm:NAME for any timm model with a grid")
    embed_dim: PositiveInt = Field(1024, description="features per token; a multiple of 4 and of num_heads")
    depth: PositiveInt = Field(24, description="number of transformer blocks")
    num_heads: PositiveInt = Field(16, description="attention heads")


class ViTHugeSettings(ViTSettings):
    """ViT-H."""

    name: str = Field("vit-huge", description="backbone plugin, or timm:NAME for any timm model with a grid")
    embed_dim: PositiveInt = Field(1280, description="features per token; a multiple of 4 and of num_heads")
    depth: PositiveInt = Field(32, description="number of transformer blocks")
    num_heads: PositiveInt = Field(16, description="attention heads")


class ViTGiantSettings(ViTSettings):
    """ViT-g, of Zhai et al. 2022 (arXiv:2106.04560)."""

    name: str = Field("vit-giant", description="backbone plugin, or timm:NAME for any timm model with a grid")
    embed_dim: PositiveInt = Field(1408, description="features per token; a multiple of 4 and of num_heads")
    depth: PositiveInt = Field(40, description="number of transformer blocks")
    num_heads: PositiveInt = Field(16, description="attention heads")
    mlp_ratio: PositiveFloat = Field(6144 / 1408, description="width of a block's hidden layer over embed_dim")


class BEiTViTSettings(BackboneSettings):
    """BEiT's vision transformer, of ViT-T's size by default."""

    name: str = Field("beit-tiny", description="backbone plugin, or timm:NAME for any timm model with a grid")
    embed_dim: PositiveInt = Field(192, description="features per token; a multiple of num_heads")
    depth: PositiveInt = Field(12, description="number of transformer blocks")
    num_heads: PositiveInt = Field(3, description="attention heads")
    mlp_ratio: PositiveFloat = Field(4.0, description="width of a block's hidden layer over embed_dim")
    layer_scale: PositiveFloat = Field(0.1, description="first factor of every branch, learned (CaiT's LayerScale)")
    normalization: Literal["imagenet", "none"] = Field("none", description=_NORMALIZATION)


class BEiTViTSmallSettings(BEiTViTSettings):
    """BEiT's vision transformer of ViT-S's size."""

    name: str = Field("beit-small", description="backbone plugin, or timm:NAME for any timm model with a grid")
    embed_dim: PositiveInt = Field(384, description="features per token; a multiple of num_heads")
    num_heads: PositiveInt = Field(6, description="attention heads")


class BEiTViTBaseSettings(BEiTViTSettings):
    """BEiT's vision transformer of ViT-B's size."""

    name: str = Field("beit-base", description="backbone plugin, or timm:NAME for any timm model with a grid")
    embed_dim: PositiveInt = Field(768, description="features per token; a multiple of num_heads")
    num_heads: PositiveInt = Field(12, description="attention heads")


class UNetSettings(BackboneSettings):
    """A convolutional U-Net without norms; its tokens are the finest scale."""

    name: str = Field("unet", description="backbone plugin, or timm:NAME for any timm model with a grid")
    patch_size: PositiveInt = Field(2, description="side of a patch in pixels, one token of the finest scale")
    widths: tuple[PositiveInt, ...] = Field((48, 96, 192), description="features at each scale, finest first")
    depths: tuple[PositiveInt, ...] = Field(
        (2, 2, 4), description="residual blocks at each scale; all but the coarsest have them on the way up again"
    )

    @model_validator(mode="after")
    def _one_depth_a_scale(self) -> UNetSettings:
        if not self.widths or len(self.widths) != len(self.depths):
            raise ValueError(
                f"widths has {len(self.widths)} scales and depths {len(self.depths)}; give each scale one of both"
            )
        return self


class TimmSettings(BackboneSettings):
    """Any timm model whose final features form a grid."""

    pretrained: bool = Field(False, description="start from timm's published weights (needs network or a cache)")
    normalization: Literal["auto", "timm", "none"] = Field(
        "auto",
        description="what the network sees: timm = pixels normalised by the model's own mean and std, none = pixels in"
        " [-1, 1]; auto = timm where pretrained",
    )
    options: dict[str, Any] = Field({}, description="further arguments of timm.create_model, as a table")

    @property
    def normalized(self) -> bool:
        """Whether pixels are normalised by the model's own mean and std."""
        return self.normalization == "timm" or (self.normalization == "auto" and self.pretrained)

    def without_weights(self) -> TimmSettings:
        seen: Literal["timm", "none"] = "timm" if self.normalized else "none"
        return self.model_copy(update={"pretrained": False, "normalization": seen})


_VIT = "dsdmae_builtin.vit:build"
_RECOGNIZE_VIT = "dsdmae_builtin.recognition:vit"

VIT_TINY = BackboneSpec(
    summary="ViT-T: 12 blocks of width 192, 3 heads",
    build=_VIT,
    settings=ViTSettings,
    encodes_subset=True,
    takes_mask_token=True,
    any_channels=True,
    rectangles=True,
    recognize=_RECOGNIZE_VIT,
)
VIT_SMALL = BackboneSpec(
    summary="ViT-S: 12 blocks of width 384, 6 heads",
    build=_VIT,
    settings=ViTSmallSettings,
    encodes_subset=True,
    takes_mask_token=True,
    any_channels=True,
    rectangles=True,
    recognize=_RECOGNIZE_VIT,
)
VIT_BASE = BackboneSpec(
    summary="ViT-B: 12 blocks of width 768, 12 heads",
    build=_VIT,
    settings=ViTBaseSettings,
    encodes_subset=True,
    takes_mask_token=True,
    any_channels=True,
    rectangles=True,
    recognize=_RECOGNIZE_VIT,
)
VIT_LARGE = BackboneSpec(
    summary="ViT-L: 24 blocks of width 1024, 16 heads",
    build=_VIT,
    settings=ViTLargeSettings,
    encodes_subset=True,
    takes_mask_token=True,
    any_channels=True,
    rectangles=True,
    recognize=_RECOGNIZE_VIT,
)
VIT_HUGE = BackboneSpec(
    summary="ViT-H: 32 blocks of width 1280, 16 heads",
    build=_VIT,
    settings=ViTHugeSettings,
    encodes_subset=True,
    takes_mask_token=True,
    any_channels=True,
    rectangles=True,
    recognize=_RECOGNIZE_VIT,
)
VIT_GIANT = BackboneSpec(
    summary="ViT-g: 40 blocks of width 1408, 16 heads",
    build=_VIT,
    settings=ViTGiantSettings,
    encodes_subset=True,
    takes_mask_token=True,
    any_channels=True,
    rectangles=True,
    recognize=_RECOGNIZE_VIT,
)
_BEIT = "dsdmae_builtin.beit_vit:build"

BEIT_TINY = BackboneSpec(
    summary="ViT-T with relative position bias, layer scale and a class token, as BEiT has it",
    build=_BEIT,
    settings=BEiTViTSettings,
    takes_mask_token=True,
    any_channels=True,
    rectangles=True,
    recognize="dsdmae_builtin.recognition:beit",
)
BEIT_SMALL = BackboneSpec(
    summary="ViT-S with relative position bias, layer scale and a class token, as BEiT has it",
    build=_BEIT,
    settings=BEiTViTSmallSettings,
    takes_mask_token=True,
    any_channels=True,
    rectangles=True,
    recognize="dsdmae_builtin.recognition:beit",
)
BEIT_BASE = BackboneSpec(
    summary="ViT-B with relative position bias, layer scale and a class token, as BEiT has it",
    build=_BEIT,
    settings=BEiTViTBaseSettings,
    takes_mask_token=True,
    any_channels=True,
    rectangles=True,
    recognize="dsdmae_builtin.recognition:beit",
)
UNET = BackboneSpec(
    summary="a convolutional U-Net on a fine grid, for restoring pixels",
    build="dsdmae_builtin.unet:build",
    settings=UNetSettings,
    own_patch_size=True,
    any_channels=True,
    rectangles=True,
)
TIMM = BackboneSpec(
    summary="any timm model that yields a grid of features (Swin, ConvNeXt, ...)",
    build="dsdmae_builtin.timm_backbone:build",
    argument="NAME",
    settings=TimmSettings,
    own_patch_size=True,
    any_channels=True,
    rectangles=True,
    image_size="dsdmae_builtin.timm_backbone:own_image_size",
    recognize="dsdmae_builtin.recognition:timm",
)
