"""k-NN accuracy of the features as they are now, where images have labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from dsdmae_cli.data.run_data import Labelled
from dsdmae_cli.evaluation.knn import knn_accuracy
from dsdmae_cli.runs.observers.features import features_of

if TYPE_CHECKING:
    from dsdmae_cli.runs.run import Run


class NearestNeighbours:
    """A watcher of features (features.Watcher).

    Args:
        bank: labelled training images.
        queries: labelled held-out images, the ones that are watched.
    """

    def __init__(self, bank: Labelled, queries: Labelled) -> None:
        self.bank, self.queries = bank, queries

    def measure(self, run: Run, features: Float[Tensor, "n d"]) -> dict[str, float]:
        """Fraction of the queries that the vote of their neighbours gets right."""
        return {
            "knn": knn_accuracy(features_of(run, self.bank.images), self.bank.labels, features, self.queries.labels)
        }

    def judge(self, run: Run, record: dict[str, float]) -> None:
        """Nothing to warn of."""
