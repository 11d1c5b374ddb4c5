"""CAE's latent contextual regressor: masked patches ask, visible ones answer."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from timm.layers.layer_scale import LayerScale
from timm.layers.mlp import Mlp
from torch import Tensor, nn
from torch.nn import functional as F

from dsdmae_cli.backbone import gather_tokens, sincos_positions, to_autocast_dtype
from dsdmae_cli.methods.heads import ViTLayerNorm, head_count, init_weights


class CrossAttentionBlock(nn.Module):
    """Attention of queries to context, then an MLP. Positions are added to queries and keys, not to values.

    As in the public code the MLP's residual branches off behind its norm, not before: x <- norm(x); x <- x + mlp(x).
    """

    def __init__(self, width: int, layer_scale: float) -> None:
        super().__init__()
        self.heads = head_count(width)
        self.norm_query, self.norm_key, self.norm_value, self.norm = (ViTLayerNorm(width) for _ in range(4))
        self.query, self.value, self.project = (nn.Linear(width, width) for _ in range(3))
        self.key = nn.Linear(width, width, bias=False)  # a bias would shift all scores of a query alike
        self.mlp = Mlp(width, 4 * width)
        self.scale_attention, self.scale_mlp = LayerScale(width, layer_scale), LayerScale(width, layer_scale)

    def forward(
        self,
        x: Float[Tensor, "b m d"],
        x_positions: Float[Tensor, "b m d"],
        context: Float[Tensor, "b n d"],
        context_positions: Float[Tensor, "b n d"],
    ) -> Float[Tensor, "b m d"]:
        query = self._split(self.query(self.norm_query(x + x_positions)))
        key = self._split(self.key(self.norm_key(context + context_positions)))
        value = self._split(self.value(self.norm_value(context)))
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x = self.norm(x + self.scale_attention(self.project(mixed)))
        return x + self.scale_mlp(self.mlp(x))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class LatentRegressor(nn.Module):
    """Latents of masked patches from those of visible ones: a mask token at each masked place attends to the latents
    of the visible patches and to the mask tokens themselves, block after block; the visible ones never change.

    Args:
        grid: the encoder's (rows, columns).
        width: features per token.
        depth: number of blocks.
        layer_scale: first factor of every branch.
    """

    def __init__(self, grid: tuple[int, int], width: int, depth: int, layer_scale: float) -> None:
        super().__init__()
        self.positions: Tensor
        self.register_buffer("positions", sincos_positions(grid, width), persistent=False)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.ModuleList(CrossAttentionBlock(width, layer_scale) for _ in range(depth))
        self.norm = ViTLayerNorm(width)
        self.apply(init_weights)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(
        self, visible: Float[Tensor, "b k d"], ids_keep: Int64[Tensor, "b k"], ids_masked: Int64[Tensor, "b m"]
    ) -> Float[Tensor, "b m d"]:
        """Normalised latents of the masked patches."""
        visible = to_autocast_dtype(visible)
        positions = self.positions.to(visible.dtype).expand(len(visible), -1, -1)
        asked, seen = gather_tokens(positions, ids_masked), gather_tokens(positions, ids_keep)
        everywhere = torch.cat([seen, asked], dim=1)
        x = self.mask_token.to(visible.dtype).expand(len(visible), ids_masked.shape[1], -1)
        for block in self.blocks:
            x = block(x, asked, torch.cat([visible, x], dim=1), everywhere)
        return self.norm(x)
