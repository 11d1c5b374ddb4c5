"""What the plugins are and which settings they have. No torch here: `dsdmae plugins` reads this."""

from typing import Annotated, Literal

from dsdmae_cli.plugins import BackboneSpec, DatasetSpec, MethodSpec
from dsdmae_cli.settings.models import (
    BackboneSettings,
    DataSettings,
    MethodSettings,
    PositiveFraction,
    PositiveInt,
)
from pydantic import Field

GRATING_SIZE = 32


class MixerSettings(BackboneSettings):
    """An MLP-Mixer."""

    width: Annotated[int, Field(ge=4, multiple_of=4)] = Field(
        96, description="features per token, a multiple of 4"
    )
    depth: PositiveInt = Field(4, description="number of blocks")
    token_width: PositiveInt = Field(64, description="hidden width of the perceptron over tokens")


MIXER = BackboneSpec(
    summary="MLP-Mixer: perceptrons over tokens and over features in turn",
    build="dsdmae_example.mixer:build",
    settings=MixerSettings,
)


class GratingsSettings(DataSettings):
    """Sinusoidal gratings."""

    num_images: PositiveInt = Field(2000, description="training images; the test split has a fifth as many")


GRATINGS = DatasetSpec(
    summary="coloured gratings of four orientations, 32x32, computed by the program",
    build="dsdmae_example.gratings:build",
    settings=GratingsSettings,
    image_size=GRATING_SIZE,
    # A mirror turns 45 degrees into 135, and the label would be wrong.
    augment={"crop_scale": (0.2, 1.0), "flip": False, "shift": 0},
)


TABLE = DatasetSpec(
    summary="image files whose classes are in PATH/train.csv and PATH/test.csv (columns file, class)",
    build="dsdmae_example.table:build",
    argument="PATH",
    image_size=64,
)


class ColourSettings(MethodSettings):
    """Colourisation."""

    mask_ratio: PositiveFraction = Field(0.75, description="fraction of the patches that lose their colour")
    loss: Literal["l1", "l2"] = Field("l2", description="absolute or squared error of a pixel")


COLOUR = MethodSpec(
    summary="give grey patches their colours back",
    build="dsdmae_example.colour:Colour",
    settings=ColourSettings,
    paper="Zhang, Isola, Efros 2016, Colorful Image Colorization (arXiv:1603.08511)",
)
