"""Random weights of tiny networks under the names of public code, and what it computes with them, in plain torch.

Everything here is written from the papers' equations: nothing of timm or of this program, which are held against it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]
WIDTH, DEPTH, HEADS, PATCH, SIZE = 128, 2, 2, 4, 16
GRID = SIZE // PATCH
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def drawn(seed: int, shapes: dict[str, tuple[int, ...]]) -> State:
    """Weights large enough that attention and norms are far from their first values."""
    g = torch.Generator().manual_seed(seed)
    return {
        name: 0.15 * torch.randn(shape, generator=g) + (0.8 if ".norm" in name else 0) for name, shape in shapes.items()
    }


def plain_vit(seed: int, layer_scale: bool = False, registers: int = 0) -> State:
    """A ViT as MAE, DINO and MoCo v3 name it; with layer scale and registers as DINOv2 does."""
    d = WIDTH
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, d), "pos_embed": (1, GRID**2 + 1, d),
        "patch_embed.proj.weight": (d, 3, PATCH, PATCH), "patch_embed.proj.bias": (d,),
        "norm.weight": (d,), "norm.bias": (d,),
    }  # fmt: skip
    if registers:
        shapes["register_tokens"] = (1, registers, d)
    for n in range(DEPTH):
        b = f"blocks.{n}."
        shapes |= {
            b + "norm1.weight": (d,), b + "norm1.bias": (d,), b + "norm2.weight": (d,), b + "norm2.bias": (d,),
            b + "attn.qkv.weight": (3 * d, d), b + "attn.qkv.bias": (3 * d,),
            b + "attn.proj.weight": (d, d), b + "attn.proj.bias": (d,),
            b + "mlp.fc1.weight": (4 * d, d), b + "mlp.fc1.bias": (4 * d,),
            b + "mlp.fc2.weight": (d, 4 * d), b + "mlp.fc2.bias": (d,),
        }  # fmt: skip
        if layer_scale:
            shapes |= {b + "ls1.gamma": (d,), b + "ls2.gamma": (d,)}
    return drawn(seed, shapes)


def beit_vit(seed: int, shared: bool = True) -> State:
    """BEiT: relative positions of all blocks, or of each, layer scale, and no bias of the key."""
    state = plain_vit(seed)
    del state["pos_embed"]
    rows = (2 * GRID - 1) ** 2 + 3
    more: dict[str, tuple[int, ...]] = {}
    if shared:
        more["rel_pos_bias.relative_position_bias_table"] = (rows, HEADS)
    for n in range(DEPTH):
        b = f"blocks.{n}."
        del state[b + "attn.qkv.bias"]
        more |= dict.fromkeys((b + "gamma_1", b + "gamma_2", b + "attn.q_bias", b + "attn.v_bias"), (WIDTH,))
        if not shared:
            more[b + "attn.relative_position_bias_table"] = (rows, HEADS)
    return {**state, **drawn(seed + 1, more)}


def as_clip(seed: int) -> State:
    """The visual half of CLIP, without its prefix."""
    theirs = {
        "cls_token": "class_embedding", "pos_embed": "positional_embedding", "patch_embed.proj.weight": "conv1.weight",
        "norm.weight": "ln_post.weight", "norm.bias": "ln_post.bias",
    }  # fmt: skip
    parts = (
        ("attn.qkv.", "attn.in_proj_"), ("attn.proj.", "attn.out_proj."), ("norm1", "ln_1"), ("norm2", "ln_2"),
        ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj"), ("blocks.", "transformer.resblocks."),
    )  # fmt: skip
    state: State = {}
    for name, tensor in plain_vit(seed).items():
        new = theirs.get(name, name)
        for ours, other in parts:
            new = new.replace(ours, other)
        state[new] = tensor
    del state["patch_embed.proj.bias"]
    state["class_embedding"] = state["class_embedding"].flatten()
    state["positional_embedding"] = state["positional_embedding"][0]
    more = drawn(seed + 1, {"ln_pre.weight": (WIDTH,), "ln_pre.bias": (WIDTH,), "proj": (WIDTH, 8)})
    return {**state, **more}


def siglip(seed: int) -> State:
    """The visual half of SigLIP as OpenCLIP has it, in timm's names, without its prefix: no class token, and behind the
    blocks attention pooling, which is no part of the tokens."""
    state = plain_vit(seed)
    del state["cls_token"]
    state["pos_embed"] = state["pos_embed"][:, 1:].contiguous()
    pooling = {"attn_pool.latent": (1, 1, WIDTH), "attn_pool.q.weight": (WIDTH, WIDTH), "attn_pool.q.bias": (WIDTH,),
               "attn_pool.kv.weight": (2 * WIDTH, WIDTH), "attn_pool.kv.bias": (2 * WIDTH,)}  # fmt: skip
    return {**state, **drawn(seed + 1, pooling)}  # type: ignore[arg-type]


def as_hugging_face_siglip(state: State) -> State:
    """The same with the names of Hugging Face's SiglipVisionModel, without their prefix."""
    parts = (
        ("patch_embed.proj.", "embeddings.patch_embedding."), ("blocks.", "encoder.layers."), (".norm", ".layer_norm"),
        (".attn.proj.", ".self_attn.out_proj."),
    )  # fmt: skip
    named: State = {"head.probe": state["attn_pool.latent"], "head.layernorm.weight": torch.ones(WIDTH)}
    for name, tensor in state.items():
        new = name.replace("norm.", "post_layernorm.") if name.startswith("norm.") else name
        for ours, theirs in parts:
            new = new.replace(ours, theirs)
        if ".attn.qkv." in name:
            for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                named[new.replace(".attn.qkv.", f".self_attn.{part}_proj.")] = piece.contiguous()
        elif name == "pos_embed":
            named["embeddings.position_embedding.weight"] = tensor[0]
        elif not name.startswith("attn_pool"):
            named[new] = tensor
    return named


def as_hugging_face(state: State) -> State:
    """A plain ViT with the names of Hugging Face's ViTModel."""
    parts = (
        ("patch_embed.proj", "embeddings.patch_embeddings.projection"), ("cls_token", "embeddings.cls_token"),
        ("pos_embed", "embeddings.position_embeddings"), (".attn.proj", ".attention.output.dense"),
        (".norm1", ".layernorm_before"), (".norm2", ".layernorm_after"), (".mlp.fc1", ".intermediate.dense"),
        (".mlp.fc2", ".output.dense"), ("blocks.", "encoder.layer."),
    )  # fmt: skip
    named: State = {}
    for name, tensor in state.items():
        if ".attn.qkv." in name:
            for part, piece in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                new = name.replace("blocks.", "encoder.layer.").replace(".attn.qkv.", f".attention.attention.{part}.")
                named[new] = piece.contiguous()
            continue
        new = name.replace("norm.", "layernorm.") if name.startswith("norm.") else name
        for ours, theirs in parts:
            new = new.replace(ours, theirs)
        named[new] = tensor
    return named


def as_hugging_face_beit(state: State) -> State:
    """BEiT with the names of Hugging Face's BeitModel."""
    named: State = {}
    for name, tensor in as_hugging_face({name: t for name, t in state.items() if "_bias" not in name}).items():
        named[name.replace("gamma_", "lambda_")] = tensor
    for name, tensor in state.items():
        new = name.replace("blocks.", "encoder.layer.").replace(".attn.", ".attention.attention.")
        if name.endswith(("q_bias", "v_bias")):
            named[new.replace("q_bias", "query.bias").replace("v_bias", "value.bias")] = tensor
        elif name.startswith("rel_pos_bias"):
            named["encoder.relative_position_bias.relative_position_bias_table"] = tensor
        elif name.endswith("bias_table"):
            named[new.replace("attention.relative", "attention.relative_position_bias.relative")] = tensor
    return named


def as_hugging_face_clip(state: State) -> State:
    """The visual half of CLIP (as_clip) with the names of Hugging Face's CLIPVisionModel, without their prefix."""
    parts = (
        ("conv1.", "embeddings.patch_embedding."), ("positional_embedding", "embeddings.position_embedding.weight"),
        ("class_embedding", "embeddings.class_embedding"), ("ln_pre.", "pre_layrnorm."),
        ("ln_post.", "post_layernorm."),
        ("transformer.resblocks.", "encoder.layers."), (".ln_", ".layer_norm"), (".attn.", ".self_attn."),
        (".c_fc.", ".fc1."), (".c_proj.", ".fc2."),
    )  # fmt: skip
    named: State = {}
    for name, tensor in state.items():
        new = name
        for ours, theirs in parts:
            new = new.replace(ours, theirs)
        if "in_proj_" in new:
            for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                named[new.replace("in_proj_", f"{part}_proj.")] = piece.contiguous()
        elif name != "proj":
            named[new] = tensor
    return named


def as_hugging_face_mae(state: State) -> State:
    """A plain ViT as Hugging Face's ViTMAEForPreTraining saves it, its decoder beside it."""
    beside = {"mask_token": torch.zeros(1, 1, 8), "decoder_embed.weight": torch.zeros(8, WIDTH),
              "decoder_layers.0.layernorm_before.weight": torch.ones(8)}  # fmt: skip
    encoder = {f"vit.{name}": tensor for name, tensor in as_hugging_face(state).items()}
    return encoder | {f"decoder.{name}": tensor for name, tensor in beside.items()}


def as_simmim(state: State) -> State:
    """SimMIM's ViT, which is BEiT's (beit_vit), with the layer that restores pixels."""
    beside = {
        "encoder.mask_token": torch.zeros(1, 1, WIDTH),
        "decoder.0.weight": torch.zeros(3 * PATCH**2, WIDTH, 1, 1),
    }
    return {f"encoder.{name}": tensor for name, tensor in state.items()} | beside


def as_mmpretrain(state: State) -> State:
    """A plain ViT, with layer scale or without, with the names of mmpretrain's VisionTransformer and its classifier."""
    parts = (
        ("patch_embed.proj.", "patch_embed.projection."), ("blocks.", "layers."), (".norm", ".ln"),
        (".mlp.fc1.", ".ffn.layers.0.0."), (".mlp.fc2.", ".ffn.layers.1."),
        (".ls1.gamma", ".attn.gamma1.weight"), (".ls2.gamma", ".ffn.gamma2.scale"),
    )  # fmt: skip
    named: State = {"head.fc.weight": torch.zeros(3, WIDTH)}
    for name, tensor in state.items():
        new = name.replace("norm.", "ln1.") if name.startswith("norm.") else name
        for ours, theirs in parts:
            new = new.replace(ours, theirs)
        named[f"backbone.{new}"] = tensor
    return named


def distilled_vit(seed: int) -> State:
    """DeiT with its token for distillation behind the class token, each with a position."""
    state = plain_vit(seed)
    more = drawn(seed + 1, {"dist_token": (1, 1, WIDTH), "pos_embed": (1, GRID**2 + 2, WIDTH)})
    return {**state, **more, "head.weight": torch.zeros(3, WIDTH), "head_dist.weight": torch.zeros(3, WIDTH)}


def as_dinov3(state: State) -> State:
    """timm's names of a DINOv3 ViT as its own code has them."""
    named: State = {"mask_token": torch.zeros(1, WIDTH), "rope_embed.periods": torch.ones(WIDTH // HEADS // 4)}
    for name, tensor in state.items():
        if name.endswith(".q_bias"):
            value = state[name.replace("q_bias", "v_bias")]
            block = name.removesuffix("q_bias")
            named[f"{block}qkv.bias"] = torch.cat([tensor, torch.randn_like(tensor), value])
            named[f"{block}qkv.bias_mask"] = torch.full((3 * WIDTH,), torch.nan)
        elif not name.endswith(".v_bias"):
            new = name.replace("reg_token", "storage_tokens")
            named[new.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma")] = tensor
    return named


# -- what is computed


def normalised(images: Tensor) -> Tensor:
    """Images in [-1, 1] by ImageNet's mean and standard deviation."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return ((images + 1) / 2 - mean) / std


def vit_tokens(w: State, images: Tensor, approximate: str = "none") -> Tensor:
    """Dosovitskiy et al. 2021, eq. 1 to 4, before the first token is singled out; Darcet et al. 2024 for registers; the
    GELU of Hendrycks and Gimpel 2016, or its approximation by tanh there; Touvron et al. 2021 for a second token."""
    x = _patches(w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], images)
    if "cls_token" in w:
        x = torch.cat([w[name].expand(len(x), -1, -1) for name in ("cls_token", "dist_token") if name in w] + [x], 1)
    x = x + w["pos_embed"]
    if "register_tokens" in w:
        x = torch.cat([x[:, :1], w["register_tokens"].expand(len(x), -1, -1), x[:, 1:]], 1)
    for n in range(DEPTH):
        p = _under(w, f"blocks.{n}.")
        one, two = p.get("ls1.gamma", torch.tensor(1.0)), p.get("ls2.gamma", torch.tensor(1.0))
        y = _norm(x, p["norm1.weight"], p["norm1.bias"])
        y = _attention(y @ p["attn.qkv.weight"].T + p["attn.qkv.bias"])
        x = x + one * (y @ p["attn.proj.weight"].T + p["attn.proj.bias"])
        y = _norm(x, p["norm2.weight"], p["norm2.bias"]) @ p["mlp.fc1.weight"].T + p["mlp.fc1.bias"]
        x = x + two * (F.gelu(y, approximate=approximate) @ p["mlp.fc2.weight"].T + p["mlp.fc2.bias"])
    return _norm(x, w["norm.weight"], w["norm.bias"])


def beit_tokens(w: State, images: Tensor) -> Tensor:
    """Bao et al. 2022, with the relative positions of its released code, and absolute ones where there are any."""
    x = _patches(w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], images)
    x = torch.cat([w["cls_token"].expand(len(x), -1, -1), x], 1) + w.get("pos_embed", torch.tensor(0.0))
    shared = w.get("rel_pos_bias.relative_position_bias_table")
    for n in range(DEPTH):
        p = _under(w, f"blocks.{n}.")
        bias = torch.cat([p["attn.q_bias"], torch.zeros(WIDTH), p["attn.v_bias"]])
        y = _norm(x, p["norm1.weight"], p["norm1.bias"]) @ p["attn.qkv.weight"].T + bias
        table = shared if shared is not None else p.get("attn.relative_position_bias_table")
        y = _attention(y, table[relative_index()].permute(2, 0, 1) if table is not None else 0.0)
        x = x + p["gamma_1"] * (y @ p["attn.proj.weight"].T + p["attn.proj.bias"])
        y = _norm(x, p["norm2.weight"], p["norm2.bias"]) @ p["mlp.fc1.weight"].T + p["mlp.fc1.bias"]
        x = x + p["gamma_2"] * (F.gelu(y) @ p["mlp.fc2.weight"].T + p["mlp.fc2.bias"])
    return _norm(x, w["norm.weight"], w["norm.bias"])


def clip_tokens(w: State, images: Tensor) -> Tensor:
    """Radford et al. 2021: a norm before the blocks, QuickGELU, no bias of the patch embedding."""
    x = _patches(w["conv1.weight"], None, images)
    x = torch.cat([w["class_embedding"].expand(len(x), 1, -1), x], 1) + w["positional_embedding"]
    x = _norm(x, w["ln_pre.weight"], w["ln_pre.bias"], 1e-5)
    for n in range(DEPTH):
        p = _under(w, f"transformer.resblocks.{n}.")
        y = _norm(x, p["ln_1.weight"], p["ln_1.bias"], 1e-5) @ p["attn.in_proj_weight"].T + p["attn.in_proj_bias"]
        x = x + _attention(y) @ p["attn.out_proj.weight"].T + p["attn.out_proj.bias"]
        y = _norm(x, p["ln_2.weight"], p["ln_2.bias"], 1e-5) @ p["mlp.c_fc.weight"].T + p["mlp.c_fc.bias"]
        x = x + (y * torch.sigmoid(1.702 * y)) @ p["mlp.c_proj.weight"].T + p["mlp.c_proj.bias"]
    return _norm(x, w["ln_post.weight"], w["ln_post.bias"], 1e-5)


def relative_index() -> Tensor:
    """Row of BEiT's table for each pair of tokens: 2-D offsets, and the last three for the class token."""
    n, span = GRID * GRID, 2 * GRID - 1
    index = torch.empty(n + 1, n + 1, dtype=torch.long)
    for a in range(n):
        for b in range(n):
            rows, columns = a // GRID - b // GRID + GRID - 1, a % GRID - b % GRID + GRID - 1
            index[a + 1, b + 1] = rows * span + columns
    index[0, :], index[:, 0], index[0, 0] = span**2, span**2 + 1, span**2 + 2
    return index


def _under(state: State, prefix: str) -> State:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _patches(weight: Tensor, bias: Tensor | None, images: Tensor) -> Tensor:
    return F.conv2d(images, weight, bias, stride=PATCH).flatten(2).transpose(1, 2)


def _norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-6) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    return (x - mean) / (x.var(-1, correction=0, keepdim=True) + eps).sqrt() * weight + bias


def _attention(qkv: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    b, t, _ = qkv.shape
    q, k, v = (part.reshape(b, t, HEADS, -1).transpose(1, 2) for part in qkv.chunk(3, -1))
    weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5 + bias).softmax(-1)
    return (weights @ v).transpose(1, 2).reshape(b, t, -1)
