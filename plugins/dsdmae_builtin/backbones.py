"""Backbones that ship with the program, as torch-free specs: the paper's ViT-T/S/B and any timm model with a grid.

The networks are built in vit.py and timm_backbone.py.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from dsdmae_cli.plugins import BackboneSpec
from dsdmae_cli.settings.models import BackboneSettings, PositiveFloat, PositiveInt, Share


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
    drop_path: Share = Field(0.0, description="stochastic depth rate of the last block")


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


class TimmSettings(BackboneSettings):
    """Any timm model whose final features form a grid."""

    pretrained: bool = Field(False, description="start from timm's published weights (needs network or a cache)")
    options: dict[str, Any] = Field({}, description="further arguments of timm.create_model, as a table")


_VIT = "dsdmae_builtin.vit:build"

VIT_TINY = BackboneSpec(
    summary="ViT-T: 12 blocks of width 192, 3 heads", build=_VIT, settings=ViTSettings, encodes_subset=True
)
VIT_SMALL = BackboneSpec(
    summary="ViT-S: 12 blocks of width 384, 6 heads",
    build=_VIT,
    settings=ViTSmallSettings,
    encodes_subset=True,
)
VIT_BASE = BackboneSpec(
    summary="ViT-B: 12 blocks of width 768, 12 heads",
    build=_VIT,
    settings=ViTBaseSettings,
    encodes_subset=True,
)
TIMM = BackboneSpec(
    summary="any timm model that yields a grid of features (Swin, ConvNeXt, ...)",
    build="dsdmae_builtin.timm_backbone:build",
    argument="NAME",
    settings=TimmSettings,
    own_patch_size=True,
)
