"""A probe in one file: ridge regression on one-hot labels. No torch at the top: `dsdmae plugins` reads this."""

from __future__ import annotations

from dsdmae_cli.evaluation.probes import ProbeData, ProbeResult, best_of
from dsdmae_cli.plugins import ProbeSpec
from dsdmae_cli.settings.judge import ProbeSection
from dsdmae_cli.settings.models import PositiveFloat
from pydantic import Field


class RidgeSettings(ProbeSection):
    """Ridge regression."""

    penalties: tuple[PositiveFloat, ...] = Field(
        (1e-3, 1e-2, 0.1, 1.0), description="on the squared weights; the best on held-out images wins"
    )

    def without_choice(self) -> RidgeSettings:
        return self.model_copy(update={"penalties": (0.1,)})


RIDGE = ProbeSpec(
    summary="ridge regression on one-hot labels, solved in closed form",
    build="dsdmae_example.ridge:fit",
    settings=RidgeSettings,
)


def fit(settings: RidgeSettings, data: ProbeData) -> ProbeResult:
    """Choose the penalty on the held-out images, solve anew on all training images."""
    import torch
    from torch import Tensor

    mean, std = data.train_features.mean(dim=0), data.train_features.std(dim=0).clamp(min=1e-6)
    targets = torch.nn.functional.one_hot(data.train_labels, data.num_classes).float()

    def answers(rows: Tensor, penalty: float, features: Tensor) -> Tensor:
        x, offset = (data.train_features[rows] - mean) / std, targets[rows].mean(dim=0)
        gram = x.T @ x / len(x) + penalty * torch.eye(x.shape[1])
        weights = torch.linalg.solve(gram, x.T @ (targets[rows] - offset) / len(x))
        return (features - mean) / std @ weights + offset

    fitting, held = (torch.from_numpy(part) for part in data.split)
    held_out: dict[float, float] = {}
    if len(settings.penalties) > 1:
        for penalty in settings.penalties:
            guesses = answers(fitting, penalty, data.train_features[held]).argmax(dim=1)
            held_out[penalty] = float((guesses == data.train_labels[held]).double().mean())
    penalty = best_of(held_out) if held_out else settings.penalties[0]
    logits = answers(torch.cat([fitting, held]), penalty, data.test_features)
    words = (
        f"ridge regression of one-hot labels on standardised {settings.pool}-pooled features, penalty"
        f" {penalty:g}{data.how_chosen(len(settings.penalties))}"
    )
    return ProbeResult(logits, words, ("penalty", penalty), held_out)
