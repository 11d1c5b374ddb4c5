"""MAE's linear probe: BatchNorm without affine terms and a linear layer on pooled features."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from dsdmae_cli.evaluation.probes import ProbeData, ProbeResult, number_of
from dsdmae_cli.plugins import ProbeSpec
from dsdmae_cli.settings.judge import CLASS_WEIGHTS, ClassWeights, ProbeSection, one_or_more
from dsdmae_cli.settings.models import Auto, PositiveFloat

_CUSTOMARY = {"lars": 0.1, "sgd": 0.1, "adamw": 1e-3}  # LARS's is MAE's own


class LinearSettings(ProbeSection):
    """The linear probe."""

    optimizer: Literal["lars", "sgd", "adamw"] = Field("lars", description="optimiser")
    learning_rates: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] | Auto = Field(
        "auto",
        description="base rates (for a batch of 256) that are trained at once; the best on held-out images wins; auto ="
        " ten that suit the optimiser",
    )

    class_weights: ClassWeights = CLASS_WEIGHTS

    _one = field_validator("learning_rates", mode="before")(one_or_more)

    def without_choice(self) -> LinearSettings:
        return self.model_copy(update={"learning_rates": (_CUSTOMARY[self.optimizer],)})


PROBE = ProbeSpec(
    summary="BatchNorm without affine terms and a linear layer on pooled features, MAE's protocol",
    build="dsdmae_builtin.probes.linear:fit",
    settings=LinearSettings,
)


def fit(settings: LinearSettings, data: ProbeData) -> ProbeResult:
    """Train a head per rate on the fitting part, choose on the held-out part, train that one anew on both."""
    from dsdmae_cli.evaluation import linear

    schedule = data.schedule
    rates = linear.BASE_LRS[settings.optimizer] if settings.learning_rates == "auto" else settings.learning_rates
    protocol = linear.Protocol(
        settings.optimizer, schedule.epochs, schedule.warmup_epochs, data.batch_size, seed=schedule.seed,
        balanced=settings.class_weights == "balanced",
    )  # fmt: skip
    found = linear.select_and_fit(
        data.train_features, data.train_labels, data.split, data.test_features, data.num_classes, rates, protocol,
        data.device, data.report, data.others,
    )  # fmt: skip
    words = (
        f"BatchNorm without affine terms and a linear layer on {settings.pool}-pooled features of unaugmented images,"
        f" backbone frozen in eval mode; {settings.optimizer.upper()}, {number_of(schedule.epochs, 'epoch')}, batch"
        f" {data.batch_size}, base rate {found.chosen:g}{data.how_chosen(len(rates), by_others=True)}"
        f"{data.how_weighted(settings.class_weights)}; the last epoch is the result"
    )
    return ProbeResult(
        found.logits, words, ("base learning rate", found.chosen), found.held_out, found.notes,
        epochs=schedule.epochs, curves=found.selection,
    )  # fmt: skip
