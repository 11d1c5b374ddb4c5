"""Which of our backbones somebody's weights belong to, told by their shapes under timm's names. No torch here.

Plain ViTs become `vit-*`, BEiT's with a bias that all blocks share `beit-*`: most methods can go on with these. ViTs
with registers, a norm before the blocks or a bias in each block, rotary ones and ResNets become `timm:NAME`.

Shapes do not tell everything. Heads are taken to be 64 wide but for networks that are known to differ, and pixels to be
normalised as the published code of that layout does; both are said, with the setting that changes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from typing import Any

from dsdmae_builtin.backbones import (
    BEiTViTBaseSettings,
    BEiTViTSettings,
    BEiTViTSmallSettings,
    TimmSettings,
    ViTBaseSettings,
    ViTGiantSettings,
    ViTHugeSettings,
    ViTLargeSettings,
    ViTSettings,
    ViTSmallSettings,
)
from dsdmae_cli.plugins import Recognized

Shapes = Mapping[str, tuple[int, ...]]

# (features, blocks) of published ViTs whose heads are not 64 wide: ViT-H, ViT-g, ViT-G, SigLIP's shape-optimised one
# and its giant, of whose size DINOv2's is too, with heads of 64. Of DINOv3's the largest; its H+ has ViT-H's size.
_SIGLIP_ALONE = {(1152, 27): 16, (1536, 40): 16}
_HEADS = {(1280, 32): 16, (1408, 40): 16, (1664, 48): 16, **_SIGLIP_ALONE}
_DINOV3_HEADS = {(1280, 32): 20, (4096, 40): 32}
_VITS = {
    192: ViTSettings, 384: ViTSmallSettings, 768: ViTBaseSettings, 1024: ViTLargeSettings, 1280: ViTHugeSettings,
    1408: ViTGiantSettings,
}  # fmt: skip
_BEITS = {192: BEiTViTSettings, 384: BEiTViTSmallSettings, 768: BEiTViTBaseSettings}
_MOST_CHANNELS = 256  # of images, as the settings have it
_HUGGING_FACE = "Hugging Face"
_SIGLIP_OF_HUGGING_FACE = "Hugging Face's SigLIP"
# Pre-trained on pixels by ImageNet's mean and std in a layout of others, who have them in [-1, 1]: SimMIM's
# data_simmim.py, ViTMAE's image processor, and BEiT v2 (its PRETRAINING.md) say so.
_VITMAE, _SIMMIM, _MMPRETRAIN = "Hugging Face's ViTMAE", "SimMIM", "mmpretrain"
_PIXELS = {True: "pixels in [-1, 1]", False: "pixels by ImageNet's mean and std"}
_CHANGES = "(backbone.normalization changes it)"
# timm's ResNets: (bottleneck, blocks of each stage, output and input channels of the first block's second layer).
_RESNETS: dict[tuple[bool, tuple[int, ...], int, int], str] = {
    (False, (2, 2, 2, 2), 64, 64): "resnet18",
    (False, (3, 4, 6, 3), 64, 64): "resnet34",
    (True, (2, 2, 2, 2), 64, 64): "resnet26",
    (True, (3, 4, 6, 3), 64, 64): "resnet50",
    (True, (3, 4, 23, 3), 64, 64): "resnet101",
    (True, (3, 8, 36, 3), 64, 64): "resnet152",
    (True, (3, 4, 6, 3), 128, 128): "wide_resnet50_2",
    (True, (3, 4, 23, 3), 128, 128): "wide_resnet101_2",
    (True, (3, 4, 6, 3), 128, 4): "resnext50_32x4d",
    (True, (3, 4, 23, 3), 256, 8): "resnext101_32x8d",
}
# timm's with the same names and shapes, which blur before they halve; no weight tells them apart.
RESNET_TWINS = {"resnet18": ("resnetblur18",), "resnet50": ("resnetaa50", "resnetblur50")}


@dataclass(frozen=True)
class _Transformer:
    """What shapes tell of any vision transformer under timm's names."""

    shapes: Shapes
    width: int
    channels: int
    patch: int
    depth: int
    hidden: int

    @property
    def mlp_ratio(self) -> float:
        return self.hidden / self.width

    def has(self, name: str) -> bool:
        return name in self.shapes

    @property
    def class_token(self) -> bool:
        return self.has("cls_token")

    @property
    def embeds_class_token(self) -> bool:
        """Whether the table of positions has one for the class token: unless it is a square without one."""
        tokens = self.shapes["pos_embed"][-2] - self.has("dist_token")
        return self.class_token and (_is_square(tokens - 1) or not _is_square(tokens))

    @property
    def image_size(self) -> int | None:
        """Of square images, by the table of positions; None where there is none, or it is of other images."""
        if not self.has("pos_embed"):
            return None
        side = isqrt(self.positions)
        return side * self.patch if _is_square(self.positions) and side > 1 else None

    @property
    def positions(self) -> int:
        """Patches that the table of positions is for."""
        return self.shapes["pos_embed"][-2] - self.embeds_class_token - self.has("dist_token")

    def is_siglip(self, origin: str) -> bool:
        """Attention pooling behind the blocks, or a size that nobody else has; its pixels are in [-1, 1]."""
        named = self.has("attn_pool.latent") or origin == _SIGLIP_OF_HUGGING_FACE
        alone = (self.width, self.depth) in _SIGLIP_ALONE
        return self.has("pos_embed") and not self.class_token and (named or alone)

    def heads(self) -> tuple[int, str]:
        """The number of attention heads, and how it was found."""
        size = self.width, self.depth
        rotary = not self.has("pos_embed") and self.has("reg_token")
        known = _DINOV3_HEADS if rotary else _HEADS
        if size in known and not (size == (1536, 40) and self.class_token):
            return known[size], "as published"
        if self.width == 384 and self.has("head.1.running_mean"):  # MoCo v3's projector; DeiT's ViT-S has six
            return 12, "as MoCo v3's ViT-S has them"
        most = max(self.width // 64, 1)
        return max(n for n in range(1, most + 1) if self.width % n == 0), "guessed: 64 features a head"

    def words(self, key: str, *more: str) -> str:
        number, how = self.heads()
        parts = [
            f"{self.depth} block{'s' if self.depth > 1 else ''} of width {self.width}",
            f"{number} head{'s' if number > 1 else ''} ({how}; {key} changes it)",
            f"patches of {self.patch} px{_of(self.channels)}",
            f"MLP ratio {self.mlp_ratio:.3g}",
            "a class token" if self.class_token else "no class token",
            f"images of {self.image_size} px" if self.image_size else "",
            f"positions for {self.positions} patches" if self.has("pos_embed") and not self.image_size else "",
            "layer scale" if self.has("blocks.0.ls1.gamma") else "",
            *more,
        ]
        return ", ".join(part for part in parts if part)


def _transformer(shapes: Shapes) -> _Transformer | None:
    """None for what is no vision transformer with square patches."""
    stem = shapes.get("patch_embed.proj.weight", ())
    depth = sum(name.startswith("blocks.") and name.endswith(".norm1.weight") for name in shapes)
    hidden = shapes.get("blocks.0.mlp.fc1.weight", shapes.get("blocks.0.mlp.fc1_g.weight", ()))
    if len(stem) != 4 or stem[2] != stem[3] or not depth or len(hidden) != 2:
        return None
    if stem[1] > _MOST_CHANNELS:  # a hybrid's, whose patches are of a convolutional network's features
        return None
    if len(shapes.get("pos_embed", (1, 1, 1))) != 3:
        return None
    return _Transformer(shapes, stem[0], stem[1], stem[2], depth, hidden[0])


def vit(shapes: Shapes, origin: str) -> Recognized | None:
    """A plain ViT as MAE, DINO, DINOv2, MoCo v3, DeiT, torchvision and Hugging Face publish them."""
    found = _transformer(shapes)
    if found is None or not found.has("pos_embed") or not found.has("blocks.0.attn.qkv.bias"):
        return None
    other = ("norm_pre.weight", "reg_token", "blocks.0.attn.q_norm.weight", "blocks.0.gamma_1", "dist_token")
    if any(found.has(name) for name in other) or not found.has("patch_embed.proj.bias"):
        return None
    if found.shapes["blocks.0.mlp.fc1.weight"][0] != shapes.get("blocks.0.mlp.fc2.weight", (0, 0))[1]:
        return None  # a gated MLP
    if found.width % 4 or found.is_siglip(origin) or found.embeds_class_token != found.class_token:
        return None
    # Google's ViTs, which Hugging Face has most of, see pixels in [-1, 1]; MAE's and DINOv2's there do not.
    plain = origin.startswith(_HUGGING_FACE) and origin != _VITMAE and not found.has("blocks.0.ls1.gamma")
    plain = plain and not _has_decoder(shapes)
    number, _ = found.heads()
    kind = _VITS.get(found.width, ViTSettings if found.width < 768 else ViTBaseSettings)
    settings = kind(
        name=str(kind.model_fields["name"].default), patch_size=found.patch, embed_dim=found.width, depth=found.depth,
        num_heads=number, mlp_ratio=found.mlp_ratio, pos_embed="learn", class_token=found.class_token,
        layer_scale=1e-5 if found.has("blocks.0.ls1.gamma") else None, normalization="none" if plain else "imagenet",
        in_chans=found.channels,
    )  # fmt: skip
    renamed, also = _final_norm(shapes)
    # mmpretrain has Google's ViTs too, under the same names.
    others = " to none, as the ViTs from Google's weights there want it" if origin == _MMPRETRAIN else ""
    changes = _CHANGES.removesuffix(")") + others + ")"
    words = found.words("backbone.num_heads", f"{_PIXELS[plain]} {changes}", *also)
    return Recognized(settings=settings, image_size=found.image_size, words=words, renamed=renamed)


def beit(shapes: Shapes, origin: str) -> Recognized | None:
    """BEiT's ViT as it is pre-trained: one table of relative positions, layer scale, no absolute positions."""
    found = _transformer(shapes)
    table = shapes.get("rel_pos_bias.relative_position_bias_table")
    if found is None or table is None or found.has("pos_embed") or not found.has("blocks.0.gamma_1"):
        return None
    kind = _BEITS.get(found.width, BEiTViTSettings if found.width < 768 else BEiTViTBaseSettings)
    size, plain = _size_of_bias(table, found.patch), origin != _SIMMIM and not _is_beit_v2(shapes)
    settings = kind(
        name=str(kind.model_fields["name"].default), patch_size=found.patch, embed_dim=found.width, depth=found.depth,
        num_heads=table[1], mlp_ratio=found.mlp_ratio, layer_scale=0.1, in_chans=found.channels,
        normalization="none" if plain else "imagenet",
    )  # fmt: skip
    renamed, also = _final_norm(shapes)
    words = ", ".join([
        f"{found.depth} blocks of width {found.width}", f"{table[1]} heads",
        f"patches of {found.patch} px{_of(found.channels)}", f"MLP ratio {found.mlp_ratio:.3g}", f"images of {size} px",
        "relative positions that all blocks share", "layer scale", f"{_PIXELS[plain]} {_CHANGES}", *also,
    ])  # fmt: skip
    return Recognized(settings=settings, image_size=size, words=words, renamed=renamed)


def _is_beit_v2(shapes: Shapes) -> bool:
    """By the blocks that only its pre-training has; fine-tuned it cannot be told from the first."""
    return any(name.startswith("cls_pt_layers.") for name in shapes)


def timm(shapes: Shapes, origin: str) -> Recognized | None:
    """What timm has and our own backbones have not."""
    if vit(shapes, origin) or beit(shapes, origin):
        return None
    return _resnet(shapes) or _timm_beit(shapes, origin) or _dinov3(shapes) or _timm_vit(shapes, origin)


def _resnet(shapes: Shapes) -> Recognized | None:
    stem = shapes.get("conv1.weight", ())
    second = shapes.get("layer1.0.conv2.weight", ())
    if len(stem) != 4 or stem[2:] != (7, 7) or len(second) != 4:
        return None
    stages = tuple(
        len({name.split(".")[1] for name in shapes if name.startswith(f"layer{stage}.")}) for stage in (1, 2, 3, 4)
    )
    bottleneck = "layer1.0.conv3.weight" in shapes
    name = _RESNETS.get((bottleneck, stages, second[0], second[1]))
    if name is None:
        return None
    twins = " or ".join(f"--backbone timm:{twin}" for twin in RESNET_TWINS.get(name, ()))
    also = f"; weights of a network that blurs before it halves have the same names: for these give {twins}"
    words = f"{name}{_of(stem[1])}, {_PIXELS[False]} {_CHANGES}{also if twins else ''}"
    settings = TimmSettings(name=f"timm:{name}", pretrained=False, normalization="timm", in_chans=stem[1])
    return Recognized(settings=settings, image_size=None, words=words)


def _timm_beit(shapes: Shapes, origin: str) -> Recognized | None:
    """BEiT as it is fine-tuned: a table of relative positions in each block, or absolute ones beside any table."""
    found = _transformer(shapes)
    in_blocks = shapes.get("blocks.0.attn.relative_position_bias_table")
    table = in_blocks or shapes.get("rel_pos_bias.relative_position_bias_table")
    if found is None or not found.has("blocks.0.attn.q_bias"):
        return None
    if table is None and not found.has("pos_embed"):
        return None
    size = _size_of_bias(table, found.patch) if table else found.image_size
    heads, how = (table[1], "") if table else found.heads()
    options = {
        **_sizes(found, heads),
        "init_values": 0.1 if found.has("blocks.0.gamma_1") else None,
        "use_abs_pos_emb": found.has("pos_embed"),
        "use_rel_pos_bias": in_blocks is not None,
        "use_shared_rel_pos_bias": found.has("rel_pos_bias.relative_position_bias_table"),
        "global_pool": "token",
    }
    kinds = (
        (in_blocks is not None, "relative positions in each block"),
        (options["use_shared_rel_pos_bias"], "relative positions that all blocks share"),
        (options["use_abs_pos_emb"], "absolute positions"),
    )
    plain = origin != _SIMMIM
    renamed, also = _final_norm(shapes)
    words = ", ".join([
        f"{found.depth} blocks of width {found.width}",
        f"{heads} heads" + (f" ({how}; backbone.options changes it)" if how else ""),
        f"patches of {found.patch} px{_of(found.channels)}", f"images of {size} px",
        *(kind for there, kind in kinds if there), f"{_PIXELS[plain]} {_CHANGES}", *also,
    ])  # fmt: skip
    # Of the two, which are one network, the second sees pixels by ImageNet's mean and std.
    name = "beit_base_patch16_224" if plain else "beitv2_base_patch16_224"
    return _as_timm(name, found, options, size, words, renamed)


def _dinov3(shapes: Shapes) -> Recognized | None:
    """A ViT with rotary positions and registers."""
    found = _transformer(shapes)
    if found is None or found.has("pos_embed") or not found.has("reg_token") or not found.has("blocks.0.gamma_1"):
        return None
    number, _ = found.heads()
    registers = shapes["reg_token"][1]
    options = {**_sizes(found, number), "num_reg_tokens": registers, "qkv_bias": found.has("blocks.0.attn.q_bias")}
    if found.has("blocks.0.mlp.fc1_g.weight"):
        options["swiglu_mlp"] = True
    words = found.words("backbone.options", f"{registers} registers", "rotary positions, for images of any size")
    return _as_timm("vit_base_patch16_dinov3", found, options, None, words, {})


def _timm_vit(shapes: Shapes, origin: str) -> Recognized | None:
    """ViTs with registers (DINOv2), a norm before the blocks (CLIP), attention pooling behind them (SigLIP), or without
    biases of query, key and value."""
    found = _transformer(shapes)
    if found is None or not found.has("blocks.0.attn.qkv.weight"):
        return None
    if not found.has("pos_embed") or found.has("blocks.0.gamma_1"):
        return None
    if found.has("norm_pre.weight") and (found.has("attn_pool.latent") or found.has("attn_pool.probe")):
        return None  # Perception Encoder's, which has CLIP's shapes and rotary positions beside them
    number, _ = found.heads()
    options: dict[str, Any] = {**_sizes(found, number), "class_token": found.class_token, "fc_norm": False}
    options["global_pool"] = "token" if found.class_token else "avg"
    more = []
    if found.class_token and not found.embeds_class_token:
        options["no_embed_class"] = True
    if found.has("blocks.0.ls1.gamma"):
        options["init_values"] = 1e-5
    if not found.has("blocks.0.attn.qkv.bias"):
        options["qkv_bias"] = False
        more.append("no bias of query, key and value")
    if found.has("blocks.0.attn.q_norm.weight"):
        options["qk_norm"] = True
    if found.has("reg_token"):
        options["reg_tokens"] = shapes["reg_token"][1]
        more.append(f"{shapes['reg_token'][1]} registers")
    gated = found.hidden != shapes.get("blocks.0.mlp.fc2.weight", (0, found.hidden))[1]
    if found.has("norm_pre.weight"):
        name = "vit_base_patch32_clip_quickgelu_224"
        plain = "vit_base_patch32_clip_224"
        more.append(f"QuickGELU as OpenAI's (open_clip's own without it: backbone.name=timm:{plain})")
    elif found.is_siglip(origin):
        name = "vit_base_patch16_siglip_gap_224"
        tanh = origin == _SIGLIP_OF_HUGGING_FACE or not _exact_in_timm(found)
        more.append("GELU by tanh" if tanh else "GELU as timm has it for this size (others have it by tanh)")
        if tanh:
            options["act_layer"] = "gelu_tanh"
    elif found.has("dist_token"):
        name = "deit_base_distilled_patch16_224"
        more.append("a token for distillation")
    elif gated:
        name = "vit_giant_patch14_dinov2"
        more.append("a gated MLP (SwiGLU)")
    else:
        name = "vit_base_patch14_dinov2"
    renamed, also = _final_norm(shapes)
    words = found.words("backbone.options", *more, "pixels as timm's model wants them", *also)
    return _as_timm(name, found, options, found.image_size, words, renamed)


def _sizes(found: _Transformer, num_heads: int) -> dict[str, Any]:
    return {
        "embed_dim": found.width,
        "depth": found.depth,
        "num_heads": num_heads,
        "mlp_ratio": found.mlp_ratio,
    }


def _as_timm(
    name: str, found: _Transformer, options: dict[str, Any], size: int | None, words: str, renamed: Mapping[str, str]
) -> Recognized:
    kept = {key: value for key, value in options.items() if value is not None}
    settings = TimmSettings(
        name=f"timm:{name}",
        patch_size=found.patch,
        pretrained=False,
        normalization="timm",
        options=kept,
        in_chans=found.channels,
    )
    return Recognized(settings=settings, image_size=size, words=f"timm's {name} with {words}", renamed=renamed)


def _exact_in_timm(found: _Transformer) -> bool:
    """Whether timm's SigLIP of these shapes has the exact GELU; that of its authors and of Hugging Face is tanh's."""
    if found.patch == 14:
        return found.width == 1152
    return found.patch == 16 and (found.width == 768 or (found.width == 1024 and found.image_size != 512))


def _is_square(number: int) -> bool:
    return isqrt(number) ** 2 == number


def _of(channels: int) -> str:
    """What to say of images that are not RGB."""
    return "" if channels == 3 else f" of {channels} channel{'s' if channels > 1 else ''}"


def _size_of_bias(table: tuple[int, ...], patch: int) -> int:
    """The side in pixels of the images that a table of relative positions is for: n x n patches have (2n - 1)^2 + 3."""
    return (isqrt(table[0] - 3) + 1) // 2 * patch


def _final_norm(shapes: Shapes) -> tuple[dict[str, str], list[str]]:
    """A network fine-tuned on pooled features has its last norm behind the pooling, and none before it."""
    if "norm.weight" in shapes or "fc_norm.weight" not in shapes:
        return {}, []
    return {f"fc_norm.{kind}": f"norm.{kind}" for kind in ("weight", "bias") if f"fc_norm.{kind}" in shapes}, [
        "its norm of pooled features is that of each token here"
    ]


def _has_decoder(shapes: Shapes) -> bool:
    return any(name.startswith("decoder") for name in shapes)
