"""Efficient probing: learned queries gather all tokens, for methods whose features are spread over the patches."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from dsdmae_cli.evaluation.probes import ProbeData, ProbeResult, number_of
from dsdmae_cli.plugins import ProbeSpec
from dsdmae_cli.settings.judge import CLASS_WEIGHTS, ClassWeights, ProbeSection, one_or_more
from dsdmae_cli.settings.models import Auto, PositiveFloat, PositiveInt

# Base rates that hold the best one for most features, and the one to take where there is nothing to choose on.
_RATES = {"lars": (0.5, 2.0, 10.0), "sgd": (1e-2, 0.1, 1.0), "adamw": (1e-4, 3e-4, 1e-3)}
_CUSTOMARY = {"lars": 2.0, "sgd": 0.1, "adamw": 3e-4}


class EPSettings(ProbeSection):
    """Efficient probing."""

    queries: PositiveInt = Field(32, description="learned queries, each with its own slice of the values")
    optimizer: Literal["lars", "sgd", "adamw"] = Field("lars", description="optimiser")
    learning_rates: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] | Auto = Field(
        "auto",
        description="base rates (for a batch of 256) that are trained at once; the best on held-out images wins; auto ="
        " three that suit the optimiser",
    )

    class_weights: ClassWeights = CLASS_WEIGHTS

    _one = field_validator("learning_rates", mode="before")(one_or_more)

    def without_choice(self) -> EPSettings:
        return self.model_copy(update={"learning_rates": (_CUSTOMARY[self.optimizer],)})


PROBE = ProbeSpec(
    summary="efficient probing: learned queries gather all tokens, BatchNorm and a linear layer read what they gather",
    build="dsdmae_builtin.probes.ep:fit",
    settings=EPSettings,
)


def fit(settings: EPSettings, data: ProbeData) -> ProbeResult:
    """Train a head per rate on the fitting part, choose on the held-out part, train that one anew on both."""
    from dsdmae_cli.evaluation.efficient import select_and_fit

    rates = _RATES[settings.optimizer] if settings.learning_rates == "auto" else settings.learning_rates
    found = select_and_fit(data, rates, settings.queries, settings.optimizer, settings.class_weights == "balanced")
    epochs, optimizer = data.schedule.epochs, settings.optimizer.upper()
    words = (
        f"efficient probing (Psomas et al. 2025): {settings.queries} learned queries over all tokens of unaugmented"
        f" images, BatchNorm without affine terms and a linear layer, backbone frozen in eval mode; {optimizer},"
        f" {number_of(epochs, 'epoch')}, batch {data.batch_size}, base rate"
        f" {found.chosen:g}{data.how_chosen(len(rates))}"
        f"{data.how_weighted(settings.class_weights)}; the last epoch is the result"
    )
    return ProbeResult(found.logits, words, ("base learning rate", found.chosen), found.held_out, epochs=epochs)
