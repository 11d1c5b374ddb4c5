"""Tiny methods, and the parts of second implementations of them: float64, one image at a time, from docs and papers."""

from __future__ import annotations

import math
from typing import Any

import torch
from helpers import settings
from torch import Tensor

from dsdmae_builtin.methods.mae import MAE
from dsdmae_cli.config.resolve import resolve
from dsdmae_cli.data.source import seeded
from dsdmae_cli.runs.build import build_method

CPU = torch.device("cpu")
SWIN = ("backbone.name=timm:swin_tiny_patch4_window7_224", "backbone.patch_size=2",
        "backbone.options={embed_dim=24, depths=[1, 1], num_heads=[1, 2], window_size=4}")  # fmt: skip
CONVNEXT = ("backbone.name=timm:test_convnext", "backbone.patch_size=1",
            "backbone.options={depths=[1, 1, 1, 1], dims=[16, 16, 24, 32]}")  # fmt: skip


def images(count: int = 4, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=seeded(CPU, seed)) * 2 - 1


def tiny(*more: str, name: str = "dsdmae", seed: int = 0) -> Any:
    """A tiny method whose weights are all away from their first values, biases and norms too."""
    method = build_method(resolve(settings("digits", *more, method=name).settings))
    generator = seeded(CPU, seed)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return method.eval()


def cut(image: Tensor, patch: int = 4) -> Tensor:
    """[3, h, w] -> [T, patch*patch*3], row by row, each patch as (row, column, channel)."""
    corners = [(y, x) for y in range(0, image.shape[1], patch) for x in range(0, image.shape[2], patch)]
    return torch.stack([image[:, y : y + patch, x : x + patch].permute(1, 2, 0).reshape(-1) for y, x in corners])


def layer_norm(x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    scale = (centred.pow(2).mean(dim=-1, keepdim=True) + 1e-6).sqrt()
    return centred / scale * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    size = q.shape[1] // heads
    mixed = []
    for h in range(heads):
        part = slice(h * size, (h + 1) * size)
        scores = (q[:, part] @ k[:, part].T / math.sqrt(size)).exp()
        mixed.append(scores / scores.sum(dim=1, keepdim=True) @ v[:, part])
    return torch.cat(mixed, dim=1)


def blocks(x: Tensor, w: dict[str, Tensor], prefix: str, heads: int) -> Tensor:
    """Pre-norm transformer blocks and the last norm over the tokens [T, d] of one image."""
    depth = len({name.split(".")[len(prefix.split("."))] for name in w if name.startswith(f"{prefix}.blocks.")})
    assert depth == 1
    for i in range(depth):
        at = f"{prefix}.blocks.{i}"
        q, k, v = linear(layer_norm(x, w, f"{at}.norm1"), w, f"{at}.attn.qkv").chunk(3, dim=-1)
        x = x + linear(attend(q, k, v, heads), w, f"{at}.attn.proj")
        hidden = linear(layer_norm(x, w, f"{at}.norm2"), w, f"{at}.mlp.fc1")
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        x = x + linear(hidden, w, f"{at}.mlp.fc2")
    return layer_norm(x, w, f"{prefix}.norm")


def positions(grid: int, width: int) -> Tensor:
    """MAE's 2-D sine-cosine table: columns in the first half of the features, rows in the second."""
    table = torch.zeros(grid * grid, width, dtype=torch.float64)
    quarter = width // 4
    for token in range(grid * grid):
        row, column = divmod(token, grid)
        for i in range(quarter):
            rate = 10000 ** (-i / quarter)
            for half, place in enumerate((column, row)):
                table[token, 2 * half * quarter + i] = math.sin(place * rate)
                table[token, (2 * half + 1) * quarter + i] = math.cos(place * rate)
    return table


def embed(image: Tensor, w: dict[str, Tensor], prefix: str) -> Tensor:
    kernel = w[f"{prefix}.patch_embed.proj.weight"].permute(0, 2, 3, 1).flatten(1)
    # A class token's position comes first in the table.
    return cut(image) @ kernel.T + w[f"{prefix}.patch_embed.proj.bias"] + w[f"{prefix}.pos_embed"][0, -16:]


def encode(tokens: Tensor, w: dict[str, Tensor], prefix: str) -> tuple[Tensor, Tensor]:
    """Some tokens of an image behind the class token, if there is one: (its features or none, theirs)."""
    first = torch.zeros(0, tokens.shape[1], dtype=tokens.dtype)
    if f"{prefix}.cls_token" in w:
        first = w[f"{prefix}.cls_token"][0] + w[f"{prefix}.pos_embed"][0, :1]
    encoded = blocks(torch.cat([first, tokens]), w, prefix, heads=2)
    return encoded[: len(first)], encoded[len(first) :]


def decode(latents: Tensor, class_token: Tensor, keep: Tensor, w: dict[str, Tensor], heads: int = 1) -> Tensor:
    """MAE's decoder on 16 places: a mask token where nothing was seen; the class token has no position there."""
    tokens = w["decoder.mask_token"][0].repeat(16, 1)
    tokens[keep] = linear(latents, w, "decoder.embed")
    tokens = tokens + positions(4, tokens.shape[1])
    tokens = torch.cat([linear(class_token, w, "decoder.embed"), tokens])
    decoded = blocks(tokens, w, "decoder.transformer", heads=heads)
    return linear(decoded[len(class_token) :], w, "decoder.transformer.project")


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum() / (a.pow(2).sum() * b.pow(2).sum()).sqrt()


def normalised(patches: Tensor) -> Tensor:
    spread = (patches - patches.mean(dim=1, keepdim=True)).pow(2).sum(dim=1, keepdim=True) / (patches.shape[1] - 1)
    return (patches - patches.mean(dim=1, keepdim=True)) / (spread + 1e-6).sqrt()


def standardised(tokens: Tensor) -> Tensor:
    """SdAE's (x - mean) / sqrt(var + 1e-6), with torch's (unbiased) variance as its code has it."""
    spread = (tokens - tokens.mean(dim=1, keepdim=True)).pow(2).sum(dim=1, keepdim=True) / (tokens.shape[1] - 1)
    return (tokens - tokens.mean(dim=1, keepdim=True)) / (spread + 1e-6).sqrt()


def mae_reference(method: MAE, clean: Tensor, kept: Tensor, masked: Tensor) -> float:
    w = {name: tensor.double() for name, tensor in method.state_dict().items()}
    heads = method.settings.decoder_heads if method.settings.decoder_heads != "auto" else 1
    per_image = []
    for image, keep, drop in zip(clean.double(), kept, masked, strict=True):
        assert sorted([*keep.tolist(), *drop.tolist()]) == list(range(16))
        class_token, latents = encode(embed(image, w, "backbone.vit")[keep], w, "backbone.vit")
        decoded = decode(latents, class_token, keep, w, heads)
        target = normalised(cut(image)) if method.settings.norm_pix_loss else cut(image)
        per_image.append((decoded - target)[drop].pow(2).mean(dim=1).mean())
    return float(sum(per_image) / len(per_image))
