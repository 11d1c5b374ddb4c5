"""The k-NN probe of patches: neighbours among training patches vote with the labels under them; nothing is trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from pydantic import Field, field_validator

from dsdmae_cli.evaluation.dense import DenseData, DenseResult
from dsdmae_cli.evaluation.probes import best_of
from dsdmae_cli.plugins import ProbeSpec
from dsdmae_cli.settings.judge import DenseProbeSection, one_or_more
from dsdmae_cli.settings.models import PositiveInt

_TEMPERATURE = 0.07


class SegmentKnnSettings(DenseProbeSection):
    """The k-NN probe of patches."""

    k: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = Field(
        (1, 3, 10, 30, 100), description="numbers of neighbours; the best on held-out images wins"
    )
    patches: PositiveInt = Field(20_000, description="most training patches that vote, a random choice of more")

    _one = field_validator("k", mode="before")(one_or_more)

    def without_choice(self) -> SegmentKnnSettings:
        return self if len(self.k) == 1 else self.model_copy(update={"k": (10,)})


PROBE = ProbeSpec(
    summary="segmentation: k nearest training patches by cosine vote with the labels under them",
    build="dsdmae_builtin.probes.segment_knn:fit",
    settings=SegmentKnnSettings,
    dense=True,
)


def fit(settings: SegmentKnnSettings, data: DenseData) -> DenseResult:
    """Choose k by neighbours in the fitting part, then answer by neighbours among all training images."""
    import torch

    from dsdmae_cli.evaluation.dense_knn import PatchBank, bank_of
    from dsdmae_cli.evaluation.split import require_held_out

    def answer(bank: PatchBank, k: int) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda tokens: bank.votes(tokens, k, _TEMPERATURE)

    held_out: dict[float, float] = {}
    if len(settings.k) > 1:
        require_held_out(data.split, "k", settings.k, of_classes=False)
        near = bank_of(data, data.windows(torch.from_numpy(data.split.fit)), settings.patches)
        held_out = {k: data.held_out_iou(answer(near, k)) for k in settings.k}
    k = int(best_of(held_out)) if held_out else settings.k[0]
    bank = bank_of(data, torch.arange(len(data.tokens)), settings.patches)
    words = (
        f"the {k} nearest of {len(bank)} training patches by cosine of centred tokens, votes weighted by"
        f" exp(cosine/{_TEMPERATURE:g}), each with the distribution of labels under it, upsampled bilinearly;"
        f" k{data.how_chosen(len(settings.k), 'with neighbours among')}"
    )
    return DenseResult(answer(bank, k), words, ("k", k), held_out)
