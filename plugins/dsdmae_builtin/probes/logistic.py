"""The logistic probe: multinomial logistic regression on standardised features."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from dsdmae_cli.evaluation.probes import ProbeData, ProbeResult
from dsdmae_cli.plugins import ProbeSpec
from dsdmae_cli.settings.judge import CLASS_WEIGHTS, ClassWeights, ProbeSection, one_or_more
from dsdmae_cli.settings.models import PositiveFloat


class LogisticSettings(ProbeSection):
    """The logistic probe."""

    c: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = Field(
        (0.001, 0.01, 0.1, 1.0, 10.0),
        description="inverse strengths of the L2 penalty (scikit-learn's C); the best on held-out images wins",
    )

    class_weights: ClassWeights = CLASS_WEIGHTS

    _one = field_validator("c", mode="before")(one_or_more)

    def without_choice(self) -> LogisticSettings:
        return self.model_copy(update={"c": (1.0,)})


PROBE = ProbeSpec(
    summary="logistic regression by L-BFGS with an L2 penalty on standardised features",
    build="dsdmae_builtin.probes.logistic:fit",
    settings=LogisticSettings,
)


def fit(settings: LogisticSettings, data: ProbeData) -> ProbeResult:
    """Fit each C on the fitting part, choose on the held-out part, fit that one anew on both."""
    from dsdmae_cli.evaluation import logistic

    found = logistic.select_and_fit(
        data.train_features, data.train_labels, data.split, data.test_features, data.num_classes, settings.c,
        data.device, balanced=settings.class_weights == "balanced", others=data.others,
    )  # fmt: skip
    words = (
        f"logistic regression (L-BFGS, L2) on standardised {settings.pool}-pooled features, C = {found.chosen:g}"
        f"{data.how_chosen(len(settings.c), by_others=True)}{data.how_weighted(settings.class_weights)}"
    )
    return ProbeResult(found.logits, words, ("C", found.chosen), found.held_out, found.notes)
