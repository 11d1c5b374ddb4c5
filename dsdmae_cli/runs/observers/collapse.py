"""Whether the features of different images grow alike: logged, and warned of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from dsdmae_cli.evaluation.collapse import Spread, collapse_warning, feature_spread

if TYPE_CHECKING:
    from dsdmae_cli.runs.run import Run


class Collapse:
    """A watcher of features (features.Watcher)."""

    num_images = 0
    before: Spread | None = None  # when the run began

    def measure(self, run: Run, features: Float[Tensor, "n d"]) -> dict[str, float]:
        """Spread and rank."""
        found, self.num_images = feature_spread(features), len(features)
        return {"spread": found["spread"], "rank": found["rank"]}

    def judge(self, run: Run, record: dict[str, float]) -> None:
        """Warn where they fell since the run began."""
        if not run.method.learns_features:
            return
        if self.before is None:  # its file grows with the run, and is read once
            first = next((r for r in run.directory.metrics() if "rank" in r), record)
            self.before = Spread(spread=first["spread"], rank=first["rank"])
        warning = collapse_warning(Spread(spread=record["spread"], rank=record["rank"]), self.before, self.num_images)
        if warning is not None:
            run.report.warn(f"epoch {record['epoch']:.4g}: {warning}")
