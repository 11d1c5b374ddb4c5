"""Settings of DSdMAE, free of torch. The equations are in dsdmae.py."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from dsdmae_cli.errors import SettingsError
from dsdmae_cli.settings.models import (
    Auto,
    Fraction,
    NonNegativeFloat,
    PositiveFraction,
    PositiveInt,
    SpreadSettings,
    ordered,
)

Momentum = Annotated[float, Field(ge=0, le=1)]
Dropout = Annotated[float, Field(ge=0, lt=1)]
Correlation = Annotated[float, Field(ge=0, lt=1)]
# As many as MAE leaves out, but for what an image of few patches keeps (docs/methods/dsdmae.md).
_DROPOUT = 0.75
_READ = 8

JpegQuality = Annotated[float, Field(ge=1, le=100)]


class DSdMAESettings(SpreadSettings):
    """DSdMAE; defaults are the paper's, or docs/methods/dsdmae.md says why not."""

    written_before: ClassVar = {"noise_correlation": 0.0, "patch_dropout": 0.0}

    mask_ratio: PositiveFraction | tuple[PositiveFraction, PositiveFraction] = Field(
        0.75,
        description="fraction of the patches that are read which carry noise; a pair is drawn from once a micro-batch",
    )
    patch_dropout: Dropout | Auto = Field(
        "auto",
        description="fraction of patches, others in each image and step, that neither student nor teacher reads; auto ="
        " 0.75, but eight patches are read, where the backbone can encode a subset of them and the heads are"
        " transformers; else 0",
    )
    noise: Literal["add", "replace", "mix", "photograph"] = Field(
        "add",
        description="x + σn, σn alone, sqrt(1-σ²)x + σn, or what happens to photographs: white noise, a camera's, JPEG",
    )
    noise_std: NonNegativeFloat | tuple[NonNegativeFloat, NonNegativeFloat] | Auto = Field(
        "auto",
        description="σ of the Gaussian noise for pixels in [-1, 1]; a pair is drawn from by noise_law; auto = [0.05, 5]"
        " ([0.05, 1] for mix), uniform in ln σ, for each patch; of a photograph's white noise [0, 0.45] for each image",
    )
    noise_law: Literal["uniform", "loguniform", "lognormal"] | Auto = Field(
        "auto",
        description="how σ is drawn from a pair: uniform, uniform in ln σ, or ln σ normal with the pair one standard"
        " deviation to either side; auto = loguniform with noise_std = auto, else uniform",
    )
    noise_per: Literal["image", "patch"] | Auto = Field(
        "auto",
        description="what a drawn σ holds for: an image or a patch; auto = patch with noise_std = auto, else image",
    )
    noise_correlation: Correlation | Auto = Field(
        "auto",
        description="of Gaussian noise at neighbouring pixels of a patch, and of its channels; 0 = white, through which"
        " the colour of a large patch can be told; auto = 0.95 with noise_std = auto, else 0",
    )
    noise_clip: bool = Field(False, description="cut noisy pixels to the valid range, as every 8-bit file has been")
    photograph_shares: tuple[Fraction, Fraction, Fraction] = Field(
        (0.4, 0.45, 0.15),
        description="noise = photograph: shares of images with clipped white noise, a camera's noise, JPEG alone",
    )
    photograph_shot: tuple[PositiveFraction, PositiveFraction] = Field(
        (1e-4, 1.2e-2),
        description="noise = photograph: a sensel's variance at full light, uniform in its logarithm between these",
    )
    photograph_jpeg: tuple[JpegQuality, JpegQuality] = Field(
        (30, 95), description="noise = photograph: lowest and highest quality of JPEG after noise, uniform between"
    )
    photograph_jpeg_alone: tuple[JpegQuality, JpegQuality] = Field(
        (10, 95), description="noise = photograph: the same where JPEG is all that happens"
    )
    lambda_: Fraction = Field(
        0.6, alias="lambda", description="weight of the pixel loss; the feature loss has 1 - lambda"
    )
    norm_pix_loss: bool = Field(False, description="restore per-patch normalised pixels instead of raw ones")
    residual: bool = Field(False, description="the decoder predicts what to add to the noisy pixels")
    pixel_weight: Literal["none", "noise"] = Field(
        "none", description="factor of an image's pixel loss; noise = 1/(σ² + 0.01), so that weak noise counts too"
    )
    heads: Literal["transformer", "conv"] = Field(
        "transformer",
        description="decoder and regressor: self-attention over noisy tokens, or 3x3 convolutions on the grid",
    )
    cosine: Literal["token", "global", "channel"] = Field(
        "token", description="what one cosine spans: a token's features, the whole image, or one feature"
    )
    target_norm: Literal["none", "token"] = Field("none", description="standardise the teacher's tokens, as SdAE does")
    decoder_depth: PositiveInt = Field(4, description="blocks of the pixel decoder")
    regressor_depth: PositiveInt = Field(2, description="blocks of the feature regressor")
    ema_momentum: tuple[Momentum, Momentum] = Field(
        (0.96, 0.99), description="first and last η of the teacher's cosine schedule"
    )
    ema_every: Literal["step", "epoch"] = Field("step", description="when the teacher moves")
    teacher_start: Literal["student", "random"] = Field("student", description="the teacher's initial weights")

    _range = field_validator("mask_ratio", "noise_std", "photograph_shot", "photograph_jpeg", "photograph_jpeg_alone")(
        ordered
    )

    def rounded(self, num_tokens: int) -> dict[str, float]:
        from dsdmae_cli.corruption import whole

        read = self.num_read(num_tokens)
        dropout = {"patch_dropout": 1 - read / num_tokens}
        if isinstance(self.mask_ratio, tuple):  # drawn anew for each batch, and rounded then
            return dropout
        return {**dropout, "mask_ratio": whole(self.mask_ratio, read) / read}

    def for_backbone(self, encodes_subset: bool, num_tokens: int | None) -> DSdMAESettings:
        if self.patch_dropout == "auto":
            drops = encodes_subset and self.heads == "transformer"
            most = _DROPOUT if num_tokens is None else min(_DROPOUT, max(0.0, 1 - _READ / num_tokens))
            return self.model_copy(update={"patch_dropout": most if drops else 0.0})
        if self.patch_dropout and not encodes_subset:
            raise SettingsError(
                f"method.patch_dropout = {self.patch_dropout:g} leaves patches out, and the backbone cannot encode a"
                " subset of them; give 0 or auto, or use a ViT"
            )
        return self

    def num_read(self, num_tokens: int) -> int:
        """Of so many patches of an image, those that are read in training; one at least."""
        dropout = 0.0 if self.patch_dropout == "auto" else self.patch_dropout
        return max(1, round((1 - dropout) * num_tokens))

    @property
    def std(self) -> float | tuple[float, float]:
        """noise_std, decided."""
        if self.noise_std != "auto":
            return self.noise_std
        if self.noise == "photograph":
            return (0.0, 0.45)
        return (0.05, 1.0) if self.noise == "mix" else (0.05, 5.0)

    @property
    def law(self) -> Literal["uniform", "loguniform", "lognormal"]:
        """noise_law, decided."""
        if self.noise_law != "auto":
            return self.noise_law
        return "loguniform" if self.noise_std == "auto" and self.noise != "photograph" else "uniform"

    @property
    def per_patch(self) -> bool:
        """noise_per, decided: whether each patch has a level of its own."""
        auto = self.noise_std == "auto" and self.noise != "photograph"
        return self.noise_per == "patch" or (self.noise_per == "auto" and auto)

    @property
    def correlation(self) -> float:
        """noise_correlation, decided."""
        if self.noise_correlation != "auto":
            return self.noise_correlation
        return 0.95 if self.noise_std == "auto" and self.noise != "photograph" else 0.0

    @model_validator(mode="after")
    def _residual_of_pixels(self) -> DSdMAESettings:
        if self.residual and self.norm_pix_loss:
            raise ValueError("residual = true adds to raw pixels and norm_pix_loss = true has none; switch one off")
        return self

    @model_validator(mode="after")
    def _a_photograph(self) -> DSdMAESettings:
        if self.noise != "photograph":
            return self
        for name, value, allowed in (
            ("noise_law", self.noise_law, "uniform"),
            ("noise_per", self.noise_per, "image"),
            ("noise_correlation", self.noise_correlation, 0),
        ):
            if value not in ("auto", allowed):
                raise ValueError(f"{name} = {value!r} does not go with noise = 'photograph', which has {allowed!r}")
        total = sum(self.photograph_shares)
        if not math.isclose(total, 1, abs_tol=1e-6):
            raise ValueError(f"photograph_shares sum to {total:g} and must to 1, as [0.4, 0.45, 0.15]")
        return self

    @model_validator(mode="after")
    def _law_of_a_range(self) -> DSdMAESettings:
        if isinstance(self.std, tuple):
            if self.law != "uniform" and self.std[0] == 0:
                raise ValueError(f"noise_law = '{self.noise_law}' has no σ of 0; let noise_std begin above it, as 0.05")
            return self
        for name, value in (("noise_law", self.noise_law), ("noise_per", self.noise_per)):
            if value not in ("auto", "uniform", "image"):
                raise ValueError(f"{name} = '{value}' draws from a range and noise_std is one number; give it a pair")
        return self

    @model_validator(mode="after")
    def _mix_keeps_variance(self) -> DSdMAESettings:
        highest = self.std[1] if isinstance(self.std, tuple) else self.std
        if self.noise == "mix" and self.law == "lognormal":
            raise ValueError("noise_law = 'lognormal' has no highest σ and noise = 'mix' takes at most 1")
        if self.noise == "mix" and highest > 1:
            raise ValueError(f"noise_std = {highest:g} is too large for noise = 'mix', which takes up to 1, as 0.05,1")
        return self
