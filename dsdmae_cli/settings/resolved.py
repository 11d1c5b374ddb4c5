"""Settings in which every "auto" that settings and specs alone decide has been decided: the same classes, with types
that no longer admit the word.

config/resolve.py makes them, once, at the beginning of a command; what runs after it takes these. Device, precision,
compilation and micro-batch wait for the hardware and become a runtime.Runtime.
"""

from __future__ import annotations

from functools import cache
from typing import Any, TypeVar

from pydantic import SerializeAsAny, create_model

from dsdmae_cli.settings.judge import (
    FinetuneOptimSettings,
    FinetuneSettings,
    FinetuneTrainSettings,
    ProbeSettings,
    ProbeTrainSettings,
)
from dsdmae_cli.settings.models import (
    Channels,
    CountOrZero,
    DataSettings,
    ImageSize,
    LoopSettings,
    NonNegativeFloat,
    OptimSettings,
    PositiveFloat,
    PositiveFraction,
    PositiveInt,
    Ranges,
    Section,
    Settings,
    TrainSettings,
)


class ResolvedSection(Section):
    """A section without "auto"."""

    def __reduce__(self) -> tuple[Any, ...]:
        # The class of a plugin's section is made on the fly (see `narrowed`) and cannot be found by its name.
        first, *others = type(self).__bases__
        if type(self).__module__ != _MADE:
            return super().__reduce__()  # type: ignore[return-value]
        return _remade, (first, others[0], {name: getattr(self, name) for name in type(self).model_fields})


class ResolvedData(ResolvedSection, DataSettings):
    """[data]: side of the images and augmentation are known."""

    image_size: ImageSize
    crop_scale: tuple[PositiveFraction, PositiveFraction] | None
    flip: bool
    shift: CountOrZero
    channels: Channels
    range: Ranges | None


class ResolvedOptim(ResolvedSection, OptimSettings):
    """[optim]: peak rate and warm-up are numbers."""

    lr: PositiveFloat
    warmup_epochs: NonNegativeFloat


class ResolvedFinetuneOptim(ResolvedOptim, FinetuneOptimSettings):
    """[optim] of fine-tuning."""

    warmup_epochs: NonNegativeFloat


class ResolvedLoop(ResolvedSection, LoopSettings):
    """What every [train] has: the interval of checkpoints is known."""

    checkpoint_every: PositiveInt


class ResolvedTrain(ResolvedLoop, TrainSettings):
    """[train] of pre-training."""

    knn_every: PositiveInt | None


class ResolvedFinetuneTrain(ResolvedLoop, FinetuneTrainSettings):
    """[train] of fine-tuning."""

    score_every: PositiveInt


class ResolvedProbeTrain(ResolvedSection, ProbeTrainSettings):
    """[train] of a probe; its batch depends on how many features there are, and stays "auto" until they are."""

    warmup_epochs: NonNegativeFloat


class ResolvedSettings(Settings):
    """All settings of a pre-training run."""

    data: SerializeAsAny[ResolvedData]
    optim: ResolvedOptim
    train: ResolvedTrain


class ResolvedFinetuneSettings(FinetuneSettings):
    """All settings of `dsdmae finetune`."""

    data: SerializeAsAny[ResolvedData]
    optim: ResolvedFinetuneOptim
    train: ResolvedFinetuneTrain


class ResolvedProbeSettings(ProbeSettings):
    """All settings of `dsdmae probe`."""

    data: SerializeAsAny[ResolvedData]
    train: ResolvedProbeTrain


R = TypeVar("R", bound=ResolvedSection)
_MADE = f"{__name__}.made"


def decided(section: Section, narrow: type[R], values: dict[str, Any]) -> R:
    """A section as its narrower class, with `values` in place of "auto".

    Raises:
        pydantic.ValidationError: an "auto" is left, which is a mistake of the caller's.
    """
    there = {name: getattr(section, name) for name in type(section).model_fields}
    return narrowed(narrow, type(section)).model_validate(there | values)


@cache
def narrowed(narrow: type[R], own: type[Section]) -> type[R]:
    """`narrow`, with the keys that a plugin's own class has beside those of all its kind."""
    if issubclass(narrow, own):
        return narrow
    if issubclass(own, narrow):
        return own
    return create_model(own.__name__, __base__=(narrow, own), __module__=_MADE)  # type: ignore[arg-type]


def _remade(narrow: type[R], own: type[Section], values: dict[str, Any]) -> R:
    return narrowed(narrow, own).model_validate(values)
