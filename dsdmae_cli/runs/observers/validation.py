"""Accuracy on a held-out share of the training images, of a run that learns from labels; the best one may be kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dsdmae_cli.runs.observers.base import Observer

if TYPE_CHECKING:
    from dsdmae_cli.runs.run import Run


class Validation(Observer):
    """Scores the network every few epochs and after the last.

    Args:
        accuracy: of the network as it is now, on images that are not trained on.
        every: epochs.
        keep: writes down the network as it is now; called when it is the best so far. None = it need not be kept.

    Attributes:
        best: {"epoch", "accuracy"} of the best so far.
    """

    def __init__(self, accuracy: Callable[[], float], every: int, keep: Callable[[], None] | None) -> None:
        self.accuracy, self.every, self.keep = accuracy, every, keep
        self.best: dict[str, Any] | None = None

    def epoch_ended(self, run: Run, epoch: int, last: bool) -> None:
        if not (last or epoch % self.every == 0):
            return
        accuracy = self.accuracy()
        run.log({"step": run.trainer.step, "epoch": float(epoch), "validation": accuracy})
        if self.best is None or accuracy > self.best["accuracy"]:
            self.best = {"epoch": epoch, "accuracy": accuracy}
            if self.keep is not None and run.main:
                self.keep()

    def state(self) -> dict[str, Any]:
        return {"best": self.best}

    def restore(self, state: dict[str, Any]) -> None:
        self.best = state["best"]
