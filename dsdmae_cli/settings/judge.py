"""Settings of the commands that judge a backbone: `dsdmae finetune` and `dsdmae probe`. Those of pre-training, and the
sections that all share, are in models.py; those of a single probe are in its plugin, whose class extends ProbeSection.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SerializeAsAny, field_validator, model_validator

from dsdmae_cli.settings.models import (
    DEVICE,
    PRECISION,
    SEED,
    TRACKERS,
    Auto,
    BackboneSettings,
    CountOrZero,
    DataSettings,
    Fraction,
    LoopSettings,
    Names,
    NonNegativeFloat,
    OptimSettings,
    PositiveFloat,
    PositiveFraction,
    PositiveInt,
    Precision,
    Section,
)

# SUBJECTs that are words: random weights, and no network at all.
SCRATCH, PIXELS = "scratch", "pixels"

ClassWeights = Literal["balanced"] | None
_CLASS_WEIGHTS = (
    "weights of the classes in the loss: balanced = n / (k n_c) for n_c of n images and k classes; none = every image"
    " counts alike"
)
CLASS_WEIGHTS = Field(None, description=_CLASS_WEIGHTS)


def are_blocks(value: str) -> bool:
    """Whether this is a value of probe.blocks."""
    return re.fullmatch(r"last|all|[1-9]\d*|last:[1-9]\d*", value) is not None


def _some_blocks(value: str) -> str:
    if not are_blocks(value):
        raise ValueError("it takes last, all, a number from 1 up, or last:N")
    return value


def _blocks_of_a_head(value: str) -> str:
    if not are_blocks(value) or value == "all":
        raise ValueError("it takes last, a number from 1 up, or last:N")
    return value


class FinetuneSection(Section):
    """What is trained on labels, and how its images and labels are softened."""

    start: str = Field(
        "scratch",
        description="a run's directory, a file of weights or a folder with one, published weights such as timm:NAME"
        " and hf:OWNER/NAME, or scratch",
    )
    task: Literal["classify", "segment"] = Field(
        "classify", description="what is learned: the class of each image, or of each pixel of images with masks"
    )
    pool: Literal["mean", "cls"] = Field(
        "mean",
        description="what the head reads: the mean of all tokens, or the class token; to segment it reads every token",
    )
    blocks: Annotated[str, AfterValidator(_blocks_of_a_head)] = Field(
        "last",
        description="which blocks' tokens the head reads, to segment: last (the final features), a number (1 = the"
        " first), or last:N (the last N side by side)",
    )
    head_std: PositiveFloat = Field(2e-5, description="standard deviation of the head's initial weights")
    mixup: NonNegativeFloat = Field(0.0, description="alpha of mixup; 0 = off")
    cutmix: NonNegativeFloat = Field(0.0, description="alpha of CutMix; 0 = off; with both, each batch takes one")
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="fraction of a label given to all classes"
    )
    rand_augment: str | None = Field(None, description="timm's RandAugment policy, as rand-m9-mstd0.5-inc1; none = off")
    random_erasing: Fraction = Field(0.0, description="fraction of images of which a rectangle becomes noise")
    ema: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None,
        description="momentum of an average of the weights, which is then what is judged, in step t at most"
        " (1+t)/(10+t); none = off",
    )
    class_weights: ClassWeights = Field(None, description=f"{_CLASS_WEIGHTS}; to segment, pixels are what is counted")
    labels: PositiveFraction = Field(
        1.0,
        description="fraction of each class's training labels that is used, drawn by the seed as in a probe; to"
        " segment, of the images",
    )
    validation: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0,
        description="fraction of the training images held out, every class alike (to segment, any images), to watch the"
        " training",
    )
    select: Literal["last", "best"] = Field(
        "last", description="the result: the last epoch, or the one best on the held-out share; never the best on test"
    )

    @model_validator(mode="after")
    def _only_of_images(self) -> FinetuneSection:
        """What pairs images, moves them about or pools them has no meaning for labels of pixels here."""
        if self.task != "segment" and self.blocks != "last":
            raise ValueError(
                f"finetune.blocks = {self.blocks!r} is for finetune.task = 'segment'; the class of an image is read off"
                " the final features"
            )
        if self.task == "segment":
            off = {"mixup": 0, "cutmix": 0, "rand_augment": None, "pool": "mean"}
            given = [f"finetune.{key} = {getattr(self, key)!r}" for key in off if getattr(self, key) != off[key]]
            if given:
                raise ValueError(
                    f"{', '.join(given)} {'are' if len(given) > 1 else 'is'} for whole images, and finetune.task ="
                    " 'segment' labels pixels; leave that out (--preset segment has nothing of the kind)"
                )
        return self

    @model_validator(mode="after")
    def _best_of_what(self) -> FinetuneSection:
        if self.select == "best" and self.validation == 0:
            raise ValueError(
                "finetune.select = 'best' needs images to choose by; set finetune.validation, for example to 0.1"
            )
        return self


class FinetuneOptimSettings(OptimSettings):
    """The optimiser of fine-tuning."""

    base_lr: PositiveFloat = Field(
        1e-3, description="learning rate for a batch of 256; scaled by batch/256 unless lr is given"
    )
    warmup_epochs: NonNegativeFloat | Auto = Field(
        "auto", description="epochs of linear warm-up; auto = 5% of the epochs"
    )
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        (0.9, 0.999), description="AdamW's momentum terms"
    )
    layer_decay: PositiveFraction = Field(
        1.0, description="factor on the learning rate from each block to the one before it; 1 = none"
    )


class FinetuneTrainSettings(LoopSettings):
    """How long, how fast and where a network is fine-tuned."""

    epochs: PositiveInt = Field(100, description="passes over the training images")
    batch_size: PositiveInt = Field(128, description="images per optimiser step, over all processes")
    score_every: PositiveInt | Auto = Field(
        "auto",
        description="epochs between scores on the held-out share; auto = every epoch up to 50, else every second",
    )


class FinetuneSettings(BaseModel):
    """All settings of `dsdmae finetune`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: SerializeAsAny[DataSettings]
    backbone: SerializeAsAny[BackboneSettings]
    finetune: FinetuneSection
    optim: FinetuneOptimSettings
    train: FinetuneTrainSettings


def one_or_more(value: object) -> object:
    """A validator to run before a field that is a list of numbers: a single number stands for a list of one."""
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else value


class ProbeSection(Section):
    """How frozen features are judged."""

    start: str = Field(
        "scratch",
        description="a run's directory, a file of weights or a folder with one, published weights such as timm:NAME"
        " and hf:OWNER/NAME, scratch or pixels",
    )
    kind: str = Field("linear", description="probe plugin; linear is MAE's protocol")
    pool: Literal["mean", "cls", "max", "mean+cls"] = Field(
        "mean", description="what is probed: mean or largest of the patch tokens, the class token, or two of them"
    )
    blocks: Annotated[str, AfterValidator(_some_blocks)] = Field(
        "last",
        description="after which block features are taken: last, a number (1 = the first), last:N (the last N side by"
        " side), or all (the block that is best on held-out images)",
    )
    teacher: bool = Field(False, description="probe the moving average that the run's method kept, not the student")
    input_noise: NonNegativeFloat = Field(
        0.0, description="σ of Gaussian noise on the images that are probed, for pixels in [-1, 1]"
    )
    validation: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.1, description="fraction of the training images on which a probe chooses its settings, every class alike"
    )
    few_shot: tuple[PositiveFraction, ...] = Field(
        (), description="shares of the training labels to probe with, for example [0.01, 0.05, 0.1]; empty = all labels"
    )
    draws: PositiveInt = Field(5, description="repeated draws of the labels of a few-shot probe")
    cache: bool = Field(True, description="keep features in the user cache, so that the next probe starts with them")

    @field_validator("few_shot", mode="before")
    @classmethod
    def _shares(cls, value: object) -> object:
        """ "1,5,10%" for [0.01, 0.05, 0.1]."""
        if isinstance(value, str) and value.endswith("%"):
            try:
                return [float(part.removesuffix("%")) / 100 for part in value.split(",")]
            except ValueError:
                raise ValueError("it takes shares of the labels, as 0.01,0.1 or 1,10%") from None
        return one_or_more(value)

    def without_choice(self) -> ProbeSection:
        """These settings with one customary value of whatever the probe would choose, for where nothing is held out.

        A probe that chooses overrides it.
        """
        return self


class DenseProbeSection(ProbeSection):
    """How frozen features of patches are judged, by labels of pixels."""

    scale: PositiveFloat | Literal["fit"] = Field(
        "fit",
        description="factor on pictures before windows of data.image_size pixels are laid over them; fit = what makes a"
        " picture just cover the window; a picture is never made smaller than that",
    )
    stride: PositiveFraction = Field(
        2 / 3, description="largest step between windows that overlap, as a share of the window's side"
    )
    train_images: PositiveInt = Field(
        5000,
        description="most training images that are learned from, a random choice of more; their tokens are in memory",
    )


class ProbeTrainSettings(Section):
    """How long and where a probe is trained."""

    epochs: PositiveInt = Field(90, description="passes over the features")
    batch_size: PositiveInt | Auto = Field(
        "auto", description="images per step; auto = 1024, or what gives 16 steps an epoch where images are few"
    )
    warmup_epochs: NonNegativeFloat | Auto = Field("auto", description="epochs of linear warm-up; auto = 10 of 90")
    seed: CountOrZero = SEED
    device: str = DEVICE
    precision: Precision = PRECISION
    trackers: Names = TRACKERS


class ProbeSettings(BaseModel):
    """All settings of `dsdmae probe`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: SerializeAsAny[DataSettings]
    backbone: SerializeAsAny[BackboneSettings]
    probe: SerializeAsAny[ProbeSection]
    train: ProbeTrainSettings
