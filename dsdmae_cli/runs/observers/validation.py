"""Scores on a held-out share of the training images, of a run that learns from labels; the best one may be kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dsdmae_cli.runs.observers.base import Observer

if TYPE_CHECKING:
    from dsdmae_cli.runs.run import Run


class Validation(Observer):
    """Scores the network every few epochs and after the last.

    Args:
        score: of the network as it is now, on images that are not trained on; a share from 0 to 1.
        every: epochs.
        keep: writes down the network as it is now; called when it is the best so far. None = it need not be kept.
        metric: what the score is; records have an accuracy as "validation", and anything else by its own name.

    Attributes:
        best: {"epoch", metric} of the best so far.
    """

    def __init__(
        self, score: Callable[[], float], every: int, keep: Callable[[], None] | None, metric: str = "accuracy"
    ) -> None:
        self.score, self.every, self.keep, self.metric = score, every, keep, metric
        self.best: dict[str, Any] | None = None

    def epoch_ended(self, run: Run, epoch: int, last: bool) -> None:
        if not (last or epoch % self.every == 0):
            return
        with run.trainer.gathered():
            self._score(run, epoch)

    def _score(self, run: Run, epoch: int) -> None:
        score = self.score()
        name = "validation" if self.metric == "accuracy" else self.metric
        run.log({"step": run.trainer.step, "epoch": float(epoch), name: score})
        if self.best is None or score > self.best[self.metric]:
            self.best = {"epoch": epoch, self.metric: score}
            if self.keep is not None and run.main:
                self.keep()

    def state(self) -> dict[str, Any]:
        return {"best": self.best}

    def restore(self, state: dict[str, Any]) -> None:
        self.best = state["best"]
