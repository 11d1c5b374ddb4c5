"""Weights of other code under timm's names: CLIP (also Hugging Face's), Hugging Face's SigLIP, ViT and BEiT,
torchvision's and mmpretrain's ViT, DINOv2, DINOv3.

MAE, DINO, MoCo v3, BEiT, OpenCLIP's SigLIP and torchvision's ResNets use these names already.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

State = dict[str, Tensor]
_Names = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class _Convention:
    """Code whose names differ from timm's.

    Attributes:
        words: what to call it.
        sign: a name that no other convention has.
        names: (pattern, replacement) of the beginning of names, one after the other.
        merged: of three names in this order one "qkv" is made: the part of the pattern that differs.
    """

    words: str
    sign: str
    names: _Names
    merged: tuple[str, ...] = ()


_CLIP = _Convention(
    "OpenAI's CLIP",
    "class_embedding",
    (
        (r"class_embedding$", "cls_token"),
        (r"positional_embedding$", "pos_embed"),
        (r"conv1\.", "patch_embed.proj."),
        (r"ln_pre\.", "norm_pre."),
        (r"ln_post\.", "norm."),
        (r"transformer\.resblocks\.(\d+)\.attn\.in_proj_", r"blocks.\1.attn.qkv."),
        (r"transformer\.resblocks\.(\d+)\.attn\.out_proj\.", r"blocks.\1.attn.proj."),
        (r"transformer\.resblocks\.(\d+)\.ln_([12])\.", r"blocks.\1.norm\2."),
        (r"transformer\.resblocks\.(\d+)\.mlp\.c_fc\.", r"blocks.\1.mlp.fc1."),
        (r"transformer\.resblocks\.(\d+)\.mlp\.c_proj\.", r"blocks.\1.mlp.fc2."),
        (r"transformer\.resblocks\.(\d+)\.", r"blocks.\1."),
    ),
)
_HUGGING_FACE_CLIP = _Convention(
    "Hugging Face's CLIP",
    "embeddings.class_embedding",
    (
        (r"embeddings\.class_embedding$", "cls_token"),
        (r"embeddings\.position_embedding\.weight$", "pos_embed"),
        (r"embeddings\.patch_embedding\.", "patch_embed.proj."),
        (r"pre_layrnorm\.", "norm_pre."),  # sic
        (r"post_layernorm\.", "norm."),
        (r"encoder\.layers\.(\d+)\.self_attn\.out_proj\.", r"blocks.\1.attn.proj."),
        (r"encoder\.layers\.(\d+)\.self_attn\.", r"blocks.\1.attn."),
        (r"encoder\.layers\.(\d+)\.layer_norm([12])\.", r"blocks.\1.norm\2."),
        (r"encoder\.layers\.(\d+)\.", r"blocks.\1."),
    ),
    merged=("q_proj", "k_proj", "v_proj"),
)
_HUGGING_FACE_SIGLIP = _Convention(
    "Hugging Face's SigLIP",
    "embeddings.patch_embedding.bias",  # CLIP's has none
    _HUGGING_FACE_CLIP.names,
    merged=_HUGGING_FACE_CLIP.merged,
)
_TORCHVISION = _Convention(
    "torchvision's ViT",
    "conv_proj.weight",
    (
        (r"class_token$", "cls_token"),
        (r"conv_proj\.", "patch_embed.proj."),
        (r"encoder\.pos_embedding$", "pos_embed"),
        (r"encoder\.ln\.", "norm."),
        (r"encoder\.layers\.encoder_layer_(\d+)\.ln_([12])\.", r"blocks.\1.norm\2."),
        (r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.in_proj_", r"blocks.\1.attn.qkv."),
        (r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.out_proj\.", r"blocks.\1.attn.proj."),
        (r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:0|linear_1)\.", r"blocks.\1.mlp.fc1."),
        (r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:3|linear_2)\.", r"blocks.\1.mlp.fc2."),
        (r"encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
    ),
)
_HUGGING_FACE = _Convention(
    "Hugging Face's ViT",
    "embeddings.patch_embeddings.projection.weight",
    (
        (r"embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
        (r"embeddings\.position_embeddings$", "pos_embed"),
        (r"embeddings\.register_tokens$", "register_tokens"),
        (r"embeddings\.", ""),
        (r"layernorm\.", "norm."),
        (r"pooler\.layernorm\.", "fc_norm."),
        (r"encoder\.relative_position_bias\.", "rel_pos_bias."),
        (r"encoder\.layer\.(\d+)\.attention\.attention\.relative_position_bias\.", r"blocks.\1.attn."),
        (r"encoder\.layer\.(\d+)\.lambda_([12])$", r"blocks.\1.gamma_\2"),
        (r"encoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)\.", r"blocks.\1.attn.\2."),
        (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.", r"blocks.\1.attn.proj."),
        (r"encoder\.layer\.(\d+)\.layernorm_before\.", r"blocks.\1.norm1."),
        (r"encoder\.layer\.(\d+)\.layernorm_after\.", r"blocks.\1.norm2."),
        (r"encoder\.layer\.(\d+)\.intermediate\.dense\.", r"blocks.\1.mlp.fc1."),
        (r"encoder\.layer\.(\d+)\.output\.dense\.", r"blocks.\1.mlp.fc2."),
        (r"encoder\.layer\.(\d+)\.layer_scale([12])\.lambda1$", r"blocks.\1.ls\2.gamma"),
        (r"encoder\.layer\.(\d+)\.mlp\.weights_in\.", r"blocks.\1.mlp.fc1."),
        (r"encoder\.layer\.(\d+)\.mlp\.weights_out\.", r"blocks.\1.mlp.fc2."),
        (r"encoder\.layer\.(\d+)\.", r"blocks.\1."),
    ),
    merged=("query", "key", "value"),
)
_MMPRETRAIN = _Convention(
    "mmpretrain",
    "patch_embed.projection.weight",
    (
        (r"patch_embed\.projection\.", "patch_embed.proj."),
        (r"ln1\.", "norm."),
        (r"ln2\.", "fc_norm."),
        (r"layers\.(\d+)\.ln([12])\.", r"blocks.\1.norm\2."),
        (r"layers\.(\d+)\.ffn\.layers\.0\.0\.", r"blocks.\1.mlp.fc1."),
        (r"layers\.(\d+)\.ffn\.layers\.1\.", r"blocks.\1.mlp.fc2."),
        (r"layers\.(\d+)\.attn\.gamma1\.weight$", r"blocks.\1.ls1.gamma"),
        (r"layers\.(\d+)\.ffn\.gamma2\.(?:weight|scale)$", r"blocks.\1.ls2.gamma"),
        (r"layers\.(\d+)\.", r"blocks.\1."),
    ),
)
# Pre-training that is told by what lies beside the encoder, and whose pixels are not those of the encoder's layout.
_VITMAE = "Hugging Face's ViTMAE"
_SIMMIM = "SimMIM"
_DINOV3 = _Convention(
    "DINOv3",
    "storage_tokens",
    (
        (r"storage_tokens$", "reg_token"),
        (r"(blocks\.\d+)\.ls([12])\.gamma$", r"\1.gamma_\2"),
        (r"(blocks\.\d+)\.mlp\.w1\.", r"\1.mlp.fc1_g."),
        (r"(blocks\.\d+)\.mlp\.w2\.", r"\1.mlp.fc1_x."),
        (r"(blocks\.\d+)\.mlp\.w3\.", r"\1.mlp.fc2."),
    ),
)
_DINOV2 = _Convention(
    "DINOv2",
    "",
    (
        (r"blocks\.\d+\.(\d+)\.", r"blocks.\1."),  # blocks in chunks, as its training code saves them
        (r"(blocks\.\d+)\.mlp\.w12\.", r"\1.mlp.fc1."),
        (r"(blocks\.\d+)\.mlp\.w3\.", r"\1.mlp.fc2."),
    ),
)


def under_timm_names(state: State, beside: Iterable[str] = ()) -> tuple[State, str]:
    """The weights with the names and shapes that timm gives them, and whose names they had; "" for timm's own.

    Args:
        state: of an encoder.
        beside: names in the same file that are no part of it.
    """
    known = (_CLIP, _TORCHVISION, _HUGGING_FACE_CLIP, _HUGGING_FACE_SIGLIP, _HUGGING_FACE, _MMPRETRAIN, _DINOV3)
    convention = next((c for c in known if c.sign in state), None)
    words = convention.words if convention else ""
    named = _renamed(state, convention or _DINOV2)
    if convention is not None and convention.merged:
        named = _merged(named, convention.merged)
    if convention in (_CLIP, _HUGGING_FACE_CLIP):
        named["cls_token"] = named["cls_token"].reshape(1, 1, -1)
    if convention in (_CLIP, _HUGGING_FACE_CLIP, _HUGGING_FACE_SIGLIP) and "pos_embed" in named:
        positions = named["pos_embed"]
        named["pos_embed"] = positions.unsqueeze(0) if positions.ndim == 2 else positions
    if convention is _DINOV3:
        _part_biases(named)
    if "register_tokens" in named and named.keys() >= {"cls_token", "pos_embed"}:
        _part_registers(named)
        words = words or _DINOV2.words
    if convention is _HUGGING_FACE and _is_vitmae(named, beside):
        words = _VITMAE
    if convention is None and "decoder.0.weight" in beside:
        words = _SIMMIM
    return named, words


def _is_vitmae(named: State, beside: Iterable[str]) -> bool:
    """Its decoder lies beside it; alone it is known by its table of positions, sines and cosines after a row of zeros
    for the class token, which no training has touched."""
    positions = named.get("pos_embed")
    sines = positions is not None and positions.ndim == 3 and not positions[:, 0].any() and bool(positions.any())
    return sines or any(name.startswith("decoder.decoder_layers.") for name in beside)


def _renamed(state: State, convention: _Convention) -> State:
    named: State = {}
    for name, tensor in state.items():
        for pattern, by in convention.names:
            name = re.sub(f"^{pattern}", by, name)
        named[name] = tensor
    return named


def _merged(state: State, parts: tuple[str, ...]) -> State:
    """Separate projections of query, key and value as the one that timm has."""
    merged: State = {}
    for name, tensor in state.items():
        block, found, kind = name.partition(f".attn.{parts[0]}.")
        if found:
            names = [f"{block}.attn.{part}.{kind}" for part in parts]
            if all(other in state for other in names):
                merged[f"{block}.attn.qkv.{kind}"] = torch.cat([state[other] for other in names])
                continue
            if names[1] not in state and names[2] in state:  # BEiT's key has no bias
                merged[f"{block}.attn.q_{kind}"], merged[f"{block}.attn.v_{kind}"] = tensor, state[names[2]]
                continue
        others = [f".attn.{part}." for part in parts[1:]]
        if any(other in name for other in others):
            continue
        merged[name] = tensor
    return merged


def _part_registers(state: State) -> None:
    """DINOv2 adds a position to the class token and none to its registers; timm keeps positions of patches alone."""
    state["reg_token"] = state.pop("register_tokens")
    positions = state["pos_embed"]
    state["cls_token"] = state["cls_token"] + positions[:, :1]
    state["pos_embed"] = positions[:, 1:]


def _part_biases(state: State) -> None:
    """DINOv3 has one bias of query, key and value and masks the key's; timm has two biases and none of the key."""
    for name in [name for name in state if name.endswith(".attn.qkv.bias")]:
        query, _, value = state.pop(name).chunk(3)
        block = name.removesuffix("qkv.bias")
        state[f"{block}q_bias"], state[f"{block}v_bias"] = query, value
