"""Settings and specs of the built-in methods, free of torch. The equations are in the file named after the method."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from dsdmae_cli.plugins import MethodSpec
from dsdmae_cli.settings.models import (
    MethodSettings,
    NonNegativeFloat,
    PositiveInt,
    PositiveShare,
    Share,
    ordered,
)

Momentum = Annotated[float, Field(ge=0, le=1)]


class DSdMAESettings(MethodSettings):
    """DSdMAE; defaults are the paper's, or docs/methods/dsdmae.md says why not."""

    mask_ratio: PositiveShare | tuple[PositiveShare, PositiveShare] = Field(
        0.9, description="share of patches that carry noise; a pair is drawn from once a batch"
    )
    noise: Literal["add", "replace", "mix"] = Field("add", description="x + σn, σn alone, or sqrt(1-σ²)x + σn")
    noise_std: NonNegativeFloat | tuple[NonNegativeFloat, NonNegativeFloat] = Field(
        1.0, description="σ of the Gaussian noise for pixels in [-1, 1]; a pair is drawn from once an image"
    )
    lambda_: Share = Field(0.6, alias="lambda", description="weight of the pixel loss; the feature loss has 1 - lambda")
    norm_pix_loss: bool = Field(False, description="restore per-patch normalised pixels instead of raw ones")
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
    teacher_start: Literal["student", "random"] = Field("student", description="the teacher's first weights")

    _range = field_validator("mask_ratio", "noise_std")(ordered)

    @model_validator(mode="after")
    def _mix_keeps_variance(self) -> DSdMAESettings:
        highest = self.noise_std[1] if isinstance(self.noise_std, tuple) else self.noise_std
        if self.noise == "mix" and highest > 1:
            raise ValueError(f"noise_std = {highest:g} is too large for noise = 'mix', which takes at most 1")
        return self


class MAESettings(MethodSettings):
    """MAE (He et al. 2022)."""

    name: str = Field("mae", description="pre-training method plugin")
    mask_ratio: Annotated[float, Field(gt=0, lt=1)] = Field(0.75, description="share of patches that are dropped")
    norm_pix_loss: bool = Field(False, description="predict per-patch normalised pixels instead of raw ones")
    decoder_depth: PositiveInt = Field(4, description="blocks of the decoder (8 in MAE's ImageNet models)")
    decoder_dim: PositiveInt | Literal["auto"] = Field(
        "auto", description="width of the decoder, a multiple of 4; auto = the encoder's"
    )


DSDMAE = MethodSpec(
    summary="denoise noisy patches and match a teacher's features; drops nothing",
    build="dsdmae_builtin.methods.dsdmae:build",
    settings=DSdMAESettings,
    paper="Xu & Stirenko 2023, doi:10.5815/ijigsp.2023.05.03",
)
MAE = MethodSpec(
    summary="drop most patches and restore their pixels",
    build="dsdmae_builtin.methods.mae:build",
    settings=MAESettings,
    needs_subset=True,
    paper="He et al. 2022, arXiv:2111.06377",
)
