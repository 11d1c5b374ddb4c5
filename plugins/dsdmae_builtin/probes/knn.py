"""The k-NN probe: neighbours among the training images vote, and nothing is trained."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from dsdmae_cli.evaluation.probes import ProbeData, ProbeResult, best_of, of_all
from dsdmae_cli.plugins import ProbeSpec
from dsdmae_cli.settings.judge import ProbeSection, one_or_more
from dsdmae_cli.settings.models import PositiveInt


class KnnSettings(ProbeSection):
    """The k-NN probe."""

    k: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = Field(
        (5, 10, 20, 50, 100), description="numbers of neighbours; the best on held-out images wins"
    )

    _one = field_validator("k", mode="before")(one_or_more)

    def without_choice(self) -> KnnSettings:
        return self.model_copy(update={"k": (1,)})


PROBE = ProbeSpec(
    summary="k nearest neighbours by cosine of centred features, votes weighted by exp(cosine/0.07)",
    build="dsdmae_builtin.probes.knn:fit",
    settings=KnnSettings,
)


def fit(settings: KnnSettings, data: ProbeData) -> ProbeResult:
    """Choose k by neighbours in the fitting part, then answer by neighbours among all training images."""
    import torch

    from dsdmae_cli.evaluation.knn import knn_probabilities
    from dsdmae_cli.evaluation.split import require_held_out

    features, labels = data.train_features, data.train_labels
    found = []
    splits = (data.split, *data.others) if len(settings.k) > 1 else ()
    for part in splits:
        require_held_out(part, "k", settings.k)
        near, held = (torch.from_numpy(indices) for indices in part)
        votes = knn_probabilities(
            features[near], labels[near], features[held], data.num_classes, settings.k, device=data.device
        )
        found.append({float(k): float((p.argmax(dim=1) == labels[held]).double().mean()) for k, p in votes.items()})
    held_out = of_all(found, [len(part.held) for part in splits])
    k = int(best_of(held_out)) if held_out else settings.k[0]
    votes = knn_probabilities(features, labels, data.test_features, data.num_classes, (k,), device=data.device)
    words = (
        f"the {k} nearest neighbours by cosine of centred {settings.pool}-pooled features, votes weighted by"
        f" exp(cosine/0.07); k{data.how_chosen(len(settings.k), 'with neighbours among', True)}"
    )
    return ProbeResult(votes[k].log(), words, ("k", k), held_out)
