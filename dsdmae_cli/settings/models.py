"""Every setting that does not belong to one plugin: its type, range, default and meaning, written once.

Help texts, error messages and docs/settings.md are made from the descriptions here. A plugin's own settings subclass
DataSettings, BackboneSettings or MethodSettings. How values are gathered from presets, files, the environment and
flags is in config/compose.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializeAsAny,
    field_validator,
    model_validator,
)

from dsdmae_cli.settings.ranges import as_range
from dsdmae_cli.settings.size import as_sides

Auto = Literal["auto"]
PositiveInt = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveFraction = Annotated[float, Field(gt=0, le=1)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


def ordered(pair: object) -> object:
    """A field validator for ranges: the first of a pair must not be above the second."""
    if isinstance(pair, tuple) and pair[0] > pair[1]:
        raise ValueError(f"a range runs from low to high; write [{pair[1]}, {pair[0]}]")
    return pair


ValueRange = tuple[Finite, Finite]
# Of all channels, or of each one.
Ranges = ValueRange | Annotated[tuple[ValueRange, ...], Field(min_length=1)]
MOST_CHANNELS = 256
Channels = Annotated[int, Field(ge=1, le=MOST_CHANNELS)]
Side = Annotated[int, Field(ge=4, le=4096)]
# Of a square, or height and width.
ImageSize = Annotated[Side | tuple[Side, Side], BeforeValidator(as_sides)]


def _is_range(value: object) -> object:
    pairs = value if isinstance(value, tuple) and isinstance(value[0], tuple) else (value,)
    for pair in pairs:
        if isinstance(pair, tuple) and not pair[0] < pair[1]:
            raise ValueError("a range runs from low to high, as 0,4095")
    return value


def _as_bands(value: object) -> object:
    if isinstance(value, str) and value != "auto":
        return tuple(part.strip() for part in value.strip("[] ").split(","))
    return value


def _are_bands(value: object) -> object:
    if isinstance(value, tuple) and not 1 <= len(value) <= MOST_CHANNELS:
        raise ValueError(f"it takes 1 to {MOST_CHANNELS} bands, counted from 1, as [4,3,2]")
    return value


class Section(BaseModel):
    """A frozen table of settings that refuses unknown keys; the word "none" switches an optional setting off.

    Attributes:
        written_before: what settings that came later amount to where they were written down without them, for those
            whose default is something else: runs go on, and are judged, as they began.
    """

    written_before: ClassVar[Mapping[str, Any]] = {}
    model_config = ConfigDict(
        frozen=True, extra="forbid", populate_by_name=True, validate_default=True, coerce_numbers_to_str=True
    )

    @model_validator(mode="before")
    @classmethod
    def _none_is_a_word(cls, values: Any) -> Any:
        # TOML has no null, so that "none" must be sayable in files, variables and flags alike.
        if not isinstance(values, dict):
            return values
        optional = {
            alias
            for name, field in cls.model_fields.items()
            if NoneType in get_args(field.annotation)
            for alias in (name, field.alias)
        }
        return {k: None if v == "none" and k in optional else v for k, v in values.items()}


class DataSettings(Section):
    """What the run learns from and how each image is prepared."""

    written_before: ClassVar = {"channels": 3}

    dataset: str = Field("digits", description="dataset plugin, or the path of your own images: a folder or an archive")
    data_dir: Path | None = Field(
        None, description="folder that holds (or receives) the dataset's files; none = the user cache"
    )
    download: bool = Field(True, description="fetch a missing dataset from its official address")
    image_size: ImageSize | Auto = Field(
        "auto",
        description="what the network sees, in pixels: the side of a square, or HEIGHT,WIDTH; auto = the dataset's own",
    )
    crop_scale: tuple[PositiveFraction, PositiveFraction] | Auto | None = Field(
        "auto",
        description="random resized crop: smallest and largest fraction of the area; none = no crop; auto = what the"
        " method needs, else the dataset's own",
    )
    crop_ratio: tuple[PositiveFloat, PositiveFloat] = Field(
        (3 / 4, 4 / 3),
        description="random resized crop: narrowest and widest width/height, in units of image_size's own",
    )
    crop_from: Annotated[int, Field(ge=4, le=4096)] | None = Field(
        None,
        description="instead: bring each image to a square of this side once, and cut random windows of image_size"
        " pixels out of it, which are not rescaled; none = off",
    )
    channels: Channels | Auto = Field(
        "auto",
        description="channels that the network sees: 3 = RGB, grey repeated; 1 = grey; any other number = pictures of"
        " so many bands; auto = 3, or the bands of most pictures where these are neither grey nor RGB",
    )
    range: Annotated[Ranges | Auto | None, BeforeValidator(as_range), AfterValidator(_is_range)] = Field(
        "auto",
        description="values that are black and white in pictures of more than 8 bits: LOW,HIGH, one such pair a"
        " channel, or a number of bits; auto = one range for all pictures, by a sample of them, and one a channel where"
        " there are others than grey or RGB; none = what the format says, 0..65535",
    )
    bands: Annotated[tuple[PositiveInt, ...] | Auto, BeforeValidator(_as_bands), AfterValidator(_are_bands)] = Field(
        "auto",
        description="which bands of a picture are its channels, in this order, counted from 1: three are red, green and"
        " blue, one is grey; auto = all of them",
    )
    interpolation: Literal["bicubic", "bilinear"] = Field("bicubic", description="resampling of crops, antialiased")
    flip: bool | Auto = Field("auto", description="mirror half of the images left to right")
    shift: CountOrZero | Auto = Field("auto", description="random translation, in pixels each way, edges repeated")
    placement: Literal["auto", "resident", "streaming"] = Field(
        "auto",
        description="keep the decoded dataset on the device, or decode while training; auto = if it fits",
    )
    workers: CountOrZero | Auto = Field("auto", description="processes that decode images when streaming")
    holdout: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.05, description="fraction held out for evaluation when a folder has no test split"
    )
    strict: bool = Field(False, description="stop at the first unreadable image instead of skipping it")
    max_unreadable: Fraction = Field(
        0.01,
        description="fraction of unreadable images above which the run stops (a single one is always allowed)",
    )

    _ranges = field_validator("crop_scale", "crop_ratio")(ordered)


class BackboneSettings(Section):
    """The network that is pre-trained."""

    name: str = Field("vit-tiny", description="backbone plugin, NAME or NAME:ARGUMENT; `dsdmae plugins` lists them")
    patch_size: PositiveInt | Auto = Field(
        "auto", description="side of a patch in pixels; auto = a 16x16 grid up to 128 px, else 16"
    )
    in_chans: Channels | Auto = Field("auto", description="channels of the images it takes; auto = data.channels")
    drop_path: Fraction = Field(0.0, description="stochastic depth rate of the last block")

    def without_weights(self) -> BackboneSettings:
        """The same network built without fetching published weights, because its weights come from elsewhere."""
        return self.model_copy(update={"pretrained": False}) if "pretrained" in type(self).model_fields else self


class MethodSettings(Section):
    """The task that the network learns from."""

    name: str = Field("dsdmae", description="pre-training method plugin")

    def rounded(self, num_tokens: int) -> dict[str, float]:
        """Settings that a method rounds, and to what: a share of the patches to whole ones. A sweep takes settings for
        the same computation, and runs it once, where they are equal after that.

        Args:
            num_tokens: patches of an image.
        """
        return {}

    def for_backbone(self, encodes_subset: bool, num_tokens: int | None) -> Self:
        """The same with every "auto" decided that depends on the backbone.

        Args:
            encodes_subset: as the backbone's spec has it.
            num_tokens: patches of an image; None where the architecture decides that.

        Raises:
            SettingsError: the two do not go together.
        """
        return self


class SpreadSettings(MethodSettings):
    """Of methods that take the regularisers in dsdmae_cli/methods/spreading.py."""

    uniformity_weight: NonNegativeFloat = Field(
        0.0, description="weight of U-MAE's term against pooled features that all point one way; 0.01 in its paper"
    )
    sigreg_weight: NonNegativeFloat = Field(
        0.0, description="weight of LeJEPA's term that draws pooled features towards an isotropic Gaussian"
    )


class OptimSettings(Section):
    """AdamW or Muon with linear warm-up and cosine decay, updated every step."""

    optimizer: Literal["adamw", "muon"] = Field(
        "adamw",
        description="what moves the weights; muon = along each weight matrix's momentum with all its singular values"
        " made alike, at AdamW's rates; biases, norms and tokens stay AdamW's",
    )
    base_lr: PositiveFloat = Field(
        1.5e-4, description="learning rate for a batch of 256; scaled by batch/256 unless lr is given"
    )
    lr: PositiveFloat | Auto = Field(
        "auto",
        description="peak learning rate; auto = base_lr x batch/256, and a tenth of it where train.start is given",
    )
    min_lr: NonNegativeFloat = Field(0.0, description="learning rate at the end")
    warmup_epochs: NonNegativeFloat | Auto = Field(
        "auto",
        description="epochs of linear warm-up; auto = 4% of the epochs (20 of 500), 10% where train.start is given",
    )
    weight_decay: NonNegativeFloat = Field(0.05, description="decoupled decay; biases and norms have none")
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        (0.9, 0.95), description="AdamW's momentum terms"
    )
    clip_grad: PositiveFloat | None = Field(None, description="largest gradient norm; none = no clipping")

    @property
    def optimizer_name(self) -> str:
        """As people write it."""
        return {"adamw": "AdamW", "muon": "Muon"}[self.optimizer]


# Said in the same words by every command.
SEED: Any = Field(0, description="seed of weights, order, masks, noise and augmentation")
DEVICE: Any = Field("auto", description="auto, cpu, cuda, cuda:N or mps; auto = the fastest at hand")
PRECISION: Any = Field("auto", description="auto = bf16 where the hardware has it, else fp16 on CUDA, else fp32")
Precision = Literal["auto", "bf16", "fp16", "fp32"]


def _as_names(value: object) -> object:
    """As people type a list of words: tensorboard, or [tensorboard, other:project]."""
    if isinstance(value, str):
        return [name.strip(" \"'") for name in value.strip("[] ").split(",") if name.strip()]
    return value


Names = Annotated[tuple[str, ...], BeforeValidator(_as_names)]
TRACKERS: Any = Field((), description="tracker plugins that are told the run's figures, for example [tensorboard]")


class LoopSettings(Section):
    """How long, how fast and where."""

    epochs: PositiveInt = Field(500, description="passes over the training images")
    batch_size: PositiveInt = Field(256, description="images per optimiser step, over all processes")
    micro_batch: PositiveInt | Auto = Field(
        "auto", description="images per forward pass; the rest of the batch is accumulated"
    )
    seed: CountOrZero = SEED
    device: str = DEVICE
    precision: Precision = PRECISION
    compile: bool | Auto = Field("auto", description="torch.compile; auto = on CUDA only")
    checkpoint_activations: bool = Field(
        False, description="keep each block's input alone and compute the rest anew: less memory, a third more work"
    )
    shard: Literal["auto", "none", "full"] = Field(
        "auto",
        description="full = of several processes each keeps a slice of all weights, gradients and moments, and of the"
        " teacher; none = each keeps all; auto = full on CUDA where they do not fit",
    )
    log_every: PositiveInt = Field(10, description="steps between lines of metrics.jsonl")
    checkpoint_every: PositiveInt | Auto = Field(
        "auto", description="epochs between checkpoints; auto = ten times a run"
    )
    keep_checkpoints: Annotated[int, Field(ge=2)] = Field(2, description="newest checkpoints kept")
    max_nonfinite: PositiveInt = Field(
        20, description="steps in a row with a non-finite loss or gradient before the run stops"
    )
    trackers: Names = TRACKERS


class TrainSettings(LoopSettings):
    """How long, how fast and where a backbone is pre-trained."""

    start: str | None = Field(
        None,
        description="weights to begin with: a run, a file, or published ones such as timm:NAME and hf:OWNER/NAME; none"
        " = new ones, drawn from the seed",
    )
    knn_every: PositiveInt | Auto | None = Field(
        "auto", description="epochs between k-NN scores where labels exist; auto = ten times a run"
    )
    knn_images: PositiveInt = Field(
        5000, description="labelled training images that k-NN may look at (and as many test images)"
    )


# May differ between a run and its resumption: none of them changes what is computed on the same device.
MAY_CHANGE_ON_RESUME = frozenset(
    {
        "data.data_dir",
        "data.download",
        "data.workers",
        "train.checkpoint_activations",
        "train.device",
        "train.keep_checkpoints",
        "train.shard",
        "train.trackers",
    }
)


class Settings(BaseModel):
    """All settings of a run; each section is an instance of its plugin's own class."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: SerializeAsAny[DataSettings]
    backbone: SerializeAsAny[BackboneSettings]
    method: SerializeAsAny[MethodSettings]
    optim: OptimSettings
    train: TrainSettings

    def without_weights(self) -> Self:
        """The same run built without fetching published weights, because its weights come from elsewhere."""
        return self.model_copy(update={"backbone": self.backbone.without_weights()})
