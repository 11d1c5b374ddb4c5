"""Small transformers that stand on an encoder's tokens: decoders and regressors."""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from dsdmae_cli.backbone import Backbone, gather_tokens, sincos_positions, to_autocast_dtype
from dsdmae_cli.errors import SettingsError
from dsdmae_cli.settings.size import size_words


def head_count(width: int) -> int:
    """Attention heads of 64 features where the width allows, as in ViT-T/S/B; else the most that divide it."""
    wanted = max(1, width // 64)
    return next(n for n in range(wanted, 0, -1) if width % n == 0)


def check_several_patches(backbone: Backbone) -> None:
    """See that some patches can be hidden while others are seen.

    Raises:
        SettingsError: the backbone makes one patch of an image.
    """
    if backbone.num_tokens < 2:
        raise SettingsError(
            "this method hides some patches and shows others, and the backbone makes one patch of an image of"
            f" {size_words(backbone.image_size)} px; lower backbone.patch_size or raise data.image_size"
        )


class ViTLayerNorm(nn.LayerNorm):
    """LayerNorm with ViT's eps; timm's own casts its input to float32 and back, a pass over memory each way."""

    def __init__(self, width: int, **kwargs: Any) -> None:
        super().__init__(width, **{**kwargs, "eps": 1e-6})


class TokenTransformer(nn.Module):
    """Self-attention blocks over tokens with fixed position embeddings, then a norm.

    Args:
        grid: the encoder's (rows, columns), for the position embedding.
        width: features per token.
        depth: number of blocks.
        out_features: width of a linear layer at the end, or None for none.
        layer_scale: first factor of every branch (CaiT's LayerScale), or None for none.
        num_heads: of the attention; "auto" = head_count(width).

    Raises:
        SettingsError: the heads do not divide the width.
    """

    def __init__(
        self,
        grid: tuple[int, int],
        width: int,
        depth: int,
        out_features: int | None = None,
        layer_scale: float | None = None,
        num_heads: int | Literal["auto"] = "auto",
    ) -> None:
        super().__init__()
        heads = head_count(width) if num_heads == "auto" else num_heads
        if width % heads:
            raise SettingsError(f"method.decoder_heads = {heads} does not divide the decoder's width of {width}")
        # timm takes longer to import than torch, and a method with convolutional heads needs none of it.
        from timm.models.vision_transformer import Block

        # A plain (unregistered) constant would not follow .to(device); a buffer that is not persistent is not saved.
        self.positions: Tensor
        self.register_buffer("positions", sincos_positions(grid, width), persistent=False)
        self.blocks = nn.Sequential(
            *(
                Block(width, heads, qkv_bias=True, init_values=layer_scale, norm_layer=ViTLayerNorm)
                for _ in range(depth)
            )
        )
        self.norm = ViTLayerNorm(width)
        self.project = nn.Linear(width, out_features) if out_features else nn.Identity()
        self.apply(init_weights)

    def forward(
        self,
        tokens: Float[Tensor, "b k d"],
        ids: Int64[Tensor, "b k"] | None = None,
        class_token: Float[Tensor, "b d"] | None = None,
    ) -> Float[Tensor, "b k out"]:
        """Transform tokens that stand at the positions `ids` of the grid (None = at all of them, in order).

        A class token goes along without a position and is dropped at the end.
        """
        tokens = to_autocast_dtype(tokens)
        # Not len(tokens): torch.export would take it for a constant.
        positions = self.positions.to(tokens.dtype).expand(tokens.shape[0], -1, -1)
        tokens = tokens + (positions if ids is None else gather_tokens(positions, ids))
        if class_token is None:
            return self.project(self.norm(self.blocks(tokens)))
        tokens = torch.cat([class_token.unsqueeze(1).to(tokens.dtype), tokens], dim=1)
        return self.project(self.norm(self.blocks(tokens)[:, 1:]))


class MaskedDecoder(nn.Module):
    """MAE's decoder: the tokens that were seen at their places, a learned mask token at all others.

    Args:
        backbone: the encoder whose tokens it is given.
        width: features per token inside, a multiple of 4; "auto" = the encoder's.
        depth: number of blocks.
        out_features: width of a linear layer at the end, or None for none.
        num_heads: of the attention; "auto" = head_count of the width.

    Raises:
        SettingsError: there is one patch alone, the width cannot carry a position embedding, or the heads do not divide
            it.
    """

    def __init__(
        self,
        backbone: Backbone,
        width: int | Literal["auto"],
        depth: int,
        out_features: int | None = None,
        num_heads: int | Literal["auto"] = "auto",
    ) -> None:
        super().__init__()
        check_several_patches(backbone)
        width = backbone.width if width == "auto" else width
        if width % 4:
            raise SettingsError(f"method.decoder_dim = {width} must be a multiple of 4")
        self.embed = nn.Linear(backbone.width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.transformer = TokenTransformer(backbone.grid, width, depth, out_features, num_heads=num_heads)
        self.num_tokens = backbone.num_tokens
        init_weights(self.embed)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(
        self,
        latents: Float[Tensor, "b k d"],
        ids_keep: Int64[Tensor, "b k"],
        class_token: Float[Tensor, "b d"] | None = None,
    ) -> Float[Tensor, "b t out"]:
        """Predictions for all tokens of the grid, from those at `ids_keep` and the encoder's class token."""
        seen = self.embed(latents)
        tokens = self.mask_token.to(seen.dtype).expand(len(seen), self.num_tokens, -1)
        tokens = tokens.scatter(1, ids_keep.unsqueeze(-1).expand_as(seen), seen)
        return self.transformer(tokens, class_token=None if class_token is None else self.embed(class_token))


def init_weights(module: nn.Module) -> None:
    """MAE's initialisation: Xavier-uniform linear layers, zero biases, unit norms."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
