"""The linear probe of patches: a 1x1 convolution on frozen, normalised patch tokens, upsampled to pixels."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from dsdmae_cli.evaluation.dense import DenseData, DenseResult
from dsdmae_cli.evaluation.probes import number_of
from dsdmae_cli.plugins import ProbeSpec
from dsdmae_cli.settings.judge import DenseProbeSection, one_or_more
from dsdmae_cli.settings.models import PositiveFloat, PositiveInt


class SegmentSettings(DenseProbeSection):
    """The linear probe of patches."""

    learning_rates: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = Field(
        (3e-3, 1e-2, 3e-2, 0.1, 0.3),
        description="AdamW's rates, that are trained at once; the best on held-out images wins",
    )
    points: PositiveInt = Field(256, description="pixels of each window that a step learns from, drawn anew each time")

    _one = field_validator("learning_rates", mode="before")(one_or_more)

    def without_choice(self) -> SegmentSettings:
        return self if len(self.learning_rates) == 1 else self.model_copy(update={"learning_rates": (0.03,)})


PROBE = ProbeSpec(
    summary="segmentation: a linear layer on normalised patch tokens, upsampled to the pixels of a mask",
    build="dsdmae_builtin.probes.segment:fit",
    settings=SegmentSettings,
    dense=True,
)


def fit(settings: SegmentSettings, data: DenseData) -> DenseResult:
    """Train a head per rate on the fitting part, choose on the held-out part, train that one anew on both."""
    from dsdmae_cli.evaluation.dense_linear import select_and_fit

    found = select_and_fit(data, settings.learning_rates, settings.points)
    epochs, batch = data.schedule.epochs, min(data.batch_size, len(data.tokens))
    words = (
        "a linear layer on patch tokens of unaugmented images, normalised by their mean and variance, logits"
        f" upsampled bilinearly, backbone frozen in eval mode; AdamW, {number_of(epochs, 'epoch')}, batch {batch}"
        " windows of"
        f" {settings.points} random pixels, rate {found.chosen:g}{data.how_chosen(len(settings.learning_rates))}; the"
        " last epoch is the result"
    )
    return DenseResult(
        found.answer, words, ("learning rate", found.chosen), found.held_out, found.notes,
        epochs=epochs, curves=found.selection,
    )  # fmt: skip
