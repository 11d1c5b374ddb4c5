"""The attentive probe: a cross-attention block with a learned query and a linear layer, on all tokens."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from dsdmae_cli.evaluation.probes import ProbeData, ProbeResult, number_of
from dsdmae_cli.plugins import ProbeSpec
from dsdmae_cli.settings.judge import ProbeSection, one_or_more
from dsdmae_cli.settings.models import PositiveFloat


class AttentiveSettings(ProbeSection):
    """The attentive probe."""

    learning_rates: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = Field(
        (1e-4, 3e-4, 1e-3, 3e-3),
        description="AdamW's rates, that are trained at once; the best on held-out images wins",
    )

    _one = field_validator("learning_rates", mode="before")(one_or_more)

    def without_choice(self) -> AttentiveSettings:
        return self.model_copy(update={"learning_rates": (1e-3,)})


PROBE = ProbeSpec(
    summary="a cross-attention block with a learned query and a linear layer on all tokens",
    build="dsdmae_builtin.probes.attentive:fit",
    settings=AttentiveSettings,
)


def fit(settings: AttentiveSettings, data: ProbeData) -> ProbeResult:
    """Train a head per rate on the fitting part, choose on the held-out part, train that one anew on both."""
    from dsdmae_cli.evaluation.attentive import DECAY, select_and_fit

    found = select_and_fit(data, settings.learning_rates)
    epochs = data.schedule.epochs
    words = (
        "one cross-attention block with a learned query and a linear layer on all tokens, backbone frozen in eval"
        f" mode; AdamW, weight decay {DECAY:g} of matrices, {number_of(epochs, 'epoch')}, batch {data.batch_size}, rate"
        f" {found.chosen:g}{data.how_chosen(len(settings.learning_rates))}; the last epoch is the result"
    )
    return ProbeResult(found.logits, words, ("learning rate", found.chosen), found.held_out, epochs=epochs)
