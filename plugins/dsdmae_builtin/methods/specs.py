"""Settings and specs of the built-in methods, free of torch. The equations are in the file named after the method."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from dsdmae_builtin.methods.dsdmae_settings import DSdMAESettings, Momentum
from dsdmae_cli.plugins import MethodSpec, NamedSweep, Requirement
from dsdmae_cli.settings.models import (
    Auto,
    Fraction,
    MethodSettings,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    SpreadSettings,
)

Turn = Annotated[float, Field(ge=0, le=0.5)]


def _a_vocabulary(levels: tuple[int, ...]) -> tuple[int, ...]:
    words = math.prod(levels)
    if not 2 <= words <= 2**16:
        raise ValueError(f"these levels make {words} words; it may be 2 to 65536, as [8, 5, 5, 5] makes 1000")
    return levels


# Two levels would halve a channel far from where its values lie: nearly all would fall to one side.
Levels = Annotated[tuple[Annotated[int, Field(ge=3)], ...], AfterValidator(_a_vocabulary)]


class MaskedDecoderSettings(SpreadSettings):
    """What methods share that drop patches and decode all of them."""

    mask_ratio: Annotated[float, Field(gt=0, lt=1)] = Field(0.75, description="fraction of patches that are dropped")
    decoder_depth: PositiveInt = Field(4, description="blocks of the decoder (8 in the papers' ImageNet models)")
    decoder_dim: PositiveInt | Literal["auto"] = Field(
        "auto", description="width of the decoder, a multiple of 4; auto = the encoder's"
    )
    decoder_heads: PositiveInt | Auto = Field(
        "auto",
        description="the decoder's attention heads; auto = one for 64 features (16 in the papers' ImageNet models)",
    )

    def rounded(self, num_tokens: int) -> dict[str, float]:
        from dsdmae_cli.corruption import num_kept

        return {"mask_ratio": 1 - num_kept(self.mask_ratio, num_tokens) / num_tokens}


class MAESettings(MaskedDecoderSettings):
    """MAE (He et al. 2022)."""

    name: str = Field("mae", description="pre-training method plugin")
    norm_pix_loss: bool = Field(False, description="predict per-patch normalised pixels instead of raw ones")


class StrongViewSettings(SpreadSettings):
    """What strong views are made with, beside the crops that [data] draws."""

    jitter: tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat, Turn] = Field(
        (0.4, 0.4, 0.2, 0.1), description="largest change of brightness, contrast, saturation and hue (in turns)"
    )
    jitter_probability: Fraction = Field(0.8, description="fraction of images whose colours are jittered")
    grey_probability: Fraction = Field(0.2, description="fraction of images that lose their colour")


class MoCoV3Settings(StrongViewSettings):
    """MoCo v3 (Chen et al. 2021); two crops of each image, of [0.08, 1] of its area unless data.crop_scale says."""

    name: str = Field("mocov3", description="pre-training method plugin")
    temperature: PositiveFloat = Field(0.2, description="τ of the contrastive loss")
    hidden_dim: PositiveInt = Field(4096, description="width of the projector's and predictor's hidden layers")
    out_dim: PositiveInt = Field(256, description="width of what is compared")
    ema_momentum: tuple[Momentum, Momentum] = Field(
        (0.99, 1.0), description="first and last η of the momentum encoder's cosine schedule"
    )
    freeze_patch_embed: bool = Field(True, description="leave the patch embedding at its random initial weights")
    blur_probability: tuple[Fraction, Fraction] | Auto = Field(
        "auto", description="fraction of images that are blurred, in each view; auto = (1, 0.1), none up to 32 px"
    )
    solarize_probability: tuple[Fraction, Fraction] = Field(
        (0.0, 0.2), description="fraction of images that are solarised, in each view"
    )


class LeJEPASettings(MethodSettings):
    """LeJEPA (Balestriero & LeCun 2025); crops of [0.08, 1] of the image's area unless data.crop_scale says."""

    name: str = Field("lejepa", description="pre-training method plugin")
    views: Annotated[int, Field(ge=2)] = Field(4, description="strong views of each image, each a crop of its own")
    sigreg_weight: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.02, description="λ, weight of SIGReg; the views' distance from their mean has 1 - λ"
    )
    hidden_dim: PositiveInt = Field(2048, description="width of the projector's hidden layers")
    out_dim: PositiveInt = Field(16, description="width of what is drawn towards a Gaussian")
    jitter: tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat, Turn] = Field(
        (0.8, 0.8, 0.8, 0.2), description="largest change of brightness, contrast, saturation and hue (in turns)"
    )
    jitter_probability: Fraction = Field(0.8, description="fraction of views whose colours are jittered")
    grey_probability: Fraction = Field(0.2, description="fraction of views that lose their colour")
    blur_probability: Fraction | Auto = Field(
        "auto", description="fraction of views that are blurred; auto = 0.5, none up to 32 px"
    )
    solarize_probability: Fraction = Field(0.2, description="fraction of views that are solarised")


class MSASettings(StrongViewSettings, MAESettings):
    """MSA (Zhu et al. 2025), re-implemented from the abstract: docs/methods/msa.md says what is our reading."""

    name: str = Field("msa", description="pre-training method plugin")
    contrastive_weight: NonNegativeFloat = Field(
        0.1, description="weight of the contrastive loss beside the pixel loss"
    )
    temperature: PositiveFloat = Field(0.2, description="τ of the contrastive loss")
    symmetric: bool = Field(
        True, description="contrast both ways: each of the teacher's keys has to find its query, too"
    )
    hidden_dim: PositiveInt = Field(4096, description="width of the projector's and predictor's hidden layers")
    out_dim: PositiveInt = Field(256, description="width of what is compared")
    ema_momentum: tuple[Momentum, Momentum] = Field(
        (0.99, 1.0), description="first and last η of the teacher's cosine schedule"
    )
    blur_probability: Fraction | Auto = Field(
        "auto", description="fraction of strong views that are blurred; auto = 0.5, none up to 32 px"
    )
    solarize_probability: Fraction = Field(0.2, description="fraction of strong views that are solarised")


class SdAESettings(MaskedDecoderSettings):
    """SdAE (Chen et al. 2022); defaults are the public code's, or docs/methods/sdae.md says why not."""

    name: str = Field("sdae", description="pre-training method plugin")
    folds: PositiveInt = Field(3, description="groups of masked patches that the teacher reads one by one")
    cosine: Literal["token", "channel"] = Field(
        "token", description="what one cosine spans: a token's features, or one feature over a fold (the public code)"
    )
    ema_momentum: tuple[Momentum, Momentum] = Field(
        (0.96, 0.99), description="first and last η of the teacher's cosine schedule"
    )
    ema_every: Literal["step", "epoch"] = Field("epoch", description="when the teacher moves")
    teacher_start: Literal["student", "random"] = Field("random", description="the teacher's initial weights")


class TSCAESettings(MAESettings):
    """TSCAE (2023), re-implemented from the abstract: docs/methods/tscae.md says what is our reading."""

    name: str = Field("tscae", description="pre-training method plugin")
    mask_ratio: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.75, description="fraction of patches that the teacher does not see, and the student alone sees"
    )
    contrastive_weight: NonNegativeFloat = Field(
        0.1, description="weight of the contrastive loss beside the pixel loss"
    )
    temperature: PositiveFloat = Field(0.2, description="τ of the contrastive loss")


class MaskFeatSettings(SpreadSettings):
    """MaskFeat (Wei et al. 2022)."""

    name: str = Field("maskfeat", description="pre-training method plugin")
    mask_ratio: Annotated[float, Field(gt=0, lt=1)] = Field(0.4, description="fraction of patches that are masked")
    mask: Literal["block", "random"] = Field("block", description="mask rectangles of patches, or single ones")
    gaussian: bool = Field(True, description="weight gradients by a Gaussian around the middle of their patch")

    def rounded(self, num_tokens: int) -> dict[str, float]:
        from dsdmae_cli.corruption import whole

        return {"mask_ratio": whole(self.mask_ratio, num_tokens) / num_tokens}


class TokenizerSettings(MethodSettings):
    """A tokenizer with finite scalar quantisation (Mentzer et al. 2023)."""

    name: str = Field("tokenizer", description="pre-training method plugin")
    levels: Levels = Field(
        (8, 5, 5, 5), description="values of each channel of the quantiser; their product is the vocabulary"
    )
    decoder_depth: PositiveInt = Field(2, description="blocks of the decoder to pixels")


class TokenSettings(SpreadSettings):
    """What methods share that predict the words of a tokenizer."""

    tokenizer: Path | Auto = Field(
        "auto",
        description="run directory of `dsdmae tokenizer`; auto = one of these images, trained before the run if there"
        " is none yet",
    )
    tokenizer_epochs: PositiveInt | Auto = Field(
        "auto", description="epochs that auto trains one for; auto = a tenth of the run's, and 1000 steps at least"
    )
    levels: Levels = Field(
        (8, 5, 5, 5), description="values of each channel of auto's quantiser; their product is the vocabulary"
    )


class BEiTSettings(TokenSettings):
    """BEiT (Bao et al. 2022)."""

    name: str = Field("beit", description="pre-training method plugin")
    mask_ratio: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.4, description="fraction of patches that are masked, in blocks"
    )

    def rounded(self, num_tokens: int) -> dict[str, float]:
        from dsdmae_cli.corruption import whole

        return {"mask_ratio": whole(self.mask_ratio, num_tokens) / num_tokens}


class CAESettings(TokenSettings):
    """CAE (Chen et al. 2022)."""

    name: str = Field("cae", description="pre-training method plugin")
    mask_ratio: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.5, description="fraction of patches that are masked, in blocks"
    )
    regressor_depth: PositiveInt = Field(4, description="cross-attention blocks from visible to masked patches")
    decoder_depth: PositiveInt = Field(4, description="self-attention blocks from predicted latents to words")
    alignment_weight: NonNegativeFloat = Field(
        2.0, description="weight of the squared error of predicted latents beside the cross-entropy"
    )
    layer_scale: PositiveFloat = Field(0.1, description="first factor of every branch of regressor and decoder")

    def rounded(self, num_tokens: int) -> dict[str, float]:
        from dsdmae_cli.corruption import whole

        return {"mask_ratio": min(whole(self.mask_ratio, num_tokens), num_tokens - 1) / num_tokens}


_COMPARED = 128  # fewest images of a batch whose losses compare them, where nobody says it
_COLOUR = {"jitter_probability": 0.0, "grey_probability": 0.0}

DSDMAE = MethodSpec(
    summary="denoise noisy patches and match a teacher's features; can drop patches, need not",
    build="dsdmae_builtin.methods.dsdmae:build",
    settings=DSdMAESettings,
    # In the words of the paper's Table 3.
    named_sweeps={"heads": NamedSweep(setting="lambda", values={"both": None, "decoder": "1", "regressor": "0"})},
    any_channels=True,
    rectangles=True,
    paper="Xu & Stirenko 2023, doi:10.5815/ijigsp.2023.05.03",
)
MAE = MethodSpec(
    summary="drop most patches and restore their pixels",
    build="dsdmae_builtin.methods.mae:build",
    settings=MAESettings,
    needs_subset=True,
    any_channels=True,
    rectangles=True,
    paper="He et al. 2022, arXiv:2111.06377",
)
MOCOV3 = MethodSpec(
    summary="tell images apart: two strong views of each, a momentum encoder, a contrastive loss",
    build="dsdmae_builtin.methods.mocov3:build",
    settings=MoCoV3Settings,
    augment={"crop_scale": (0.08, 1.0)},
    any_channels=True,
    rectangles=True,
    fewest_in_batch=_COMPARED,
    colour={**_COLOUR, "solarize_probability": (0.0, 0.0)},
    paper="Chen et al. 2021, arXiv:2104.02057",
)
LEJEPA = MethodSpec(
    summary="strong views of an image lie together, and all of them like a Gaussian; no teacher",
    build="dsdmae_builtin.methods.lejepa:build",
    settings=LeJEPASettings,
    augment={"crop_scale": (0.08, 1.0)},
    any_channels=True,
    rectangles=True,
    fewest_in_batch=_COMPARED,
    colour={**_COLOUR, "solarize_probability": 0.0},
    paper="Balestriero & LeCun 2025, arXiv:2511.08544",
)
MSA = MethodSpec(
    summary="MAE whose pooled features match a teacher's of a strong view (re-implemented from the abstract)",
    build="dsdmae_builtin.methods.msa:build",
    settings=MSASettings,
    needs_subset=True,
    any_channels=True,
    rectangles=True,
    fewest_in_batch=_COMPARED,
    colour={**_COLOUR, "solarize_probability": 0.0},
    paper="Zhu et al. 2025, IEEE TNNLS 36(5), 9550-9564 (re-implemented from the abstract)",
)
SDAE = MethodSpec(
    summary="drop most patches and match the features that a teacher sees in folds of them",
    build="dsdmae_builtin.methods.sdae:build",
    settings=SdAESettings,
    needs_subset=True,
    any_channels=True,
    rectangles=True,
    paper="Chen et al. 2022, arXiv:2208.00449",
)
TSCAE = MethodSpec(
    summary="restore most patches and match an encoding of them alone (re-implemented from the abstract)",
    build="dsdmae_builtin.methods.tscae:build",
    settings=TSCAESettings,
    needs_subset=True,
    any_channels=True,
    rectangles=True,
    fewest_in_batch=_COMPARED,
    paper="TSCAE, 2023 (re-implemented from the abstract)",
)
MASKFEAT = MethodSpec(
    summary="predict histograms of oriented gradients of masked blocks",
    build="dsdmae_builtin.methods.maskfeat:build",
    settings=MaskFeatSettings,
    needs_mask_token=True,
    any_channels=True,
    rectangles=True,
    paper="Wei et al. 2022, arXiv:2112.09133",
)
_TOKENIZER = Requirement(
    method="tokenizer",
    setting="tokenizer",
    epochs="tokenizer_epochs",
    preset="tokenizer",
    passed_on=("levels",),
    command="dsdmae tokenizer",
)
BEIT = MethodSpec(
    summary="predict the visual words of masked blocks; trains a tokenizer of the same images first",
    build="dsdmae_builtin.methods.beit:build",
    settings=BEiTSettings,
    needs_mask_token=True,
    requires=_TOKENIZER,
    any_channels=True,
    rectangles=True,
    paper="Bao et al. 2022, arXiv:2106.08254",
)
CAE = MethodSpec(
    summary="predict latents of masked blocks from visible patches, and their visual words from these",
    build="dsdmae_builtin.methods.cae:build",
    settings=CAESettings,
    needs_subset=True,
    requires=_TOKENIZER,
    any_channels=True,
    rectangles=True,
    paper="Chen et al. 2022, arXiv:2202.03026",
)
TOKENIZER = MethodSpec(
    summary="a vocabulary of visual words for BEiT and CAE: an autoencoder with a quantised bottleneck",
    build="dsdmae_builtin.methods.tokenizer:build",
    settings=TokenizerSettings,
    any_channels=True,
    rectangles=True,
    paper="Mentzer et al. 2023, arXiv:2309.15505 (the quantiser)",
)
