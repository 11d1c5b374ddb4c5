"""Runs whose steps or rates are too few or low to change anything."""

from __future__ import annotations

from typing import Any

from dsdmae_cli.engine import Trainer
from dsdmae_cli.optim import reach

_MANY_STEPS = 100_000
_TOO_LITTLE = 2e-4  # a hundredth of what weights begin with


def too_little(settings: Any, trainer: Trainer) -> str | None:
    """What such a run is told before it begins; None for any other."""
    steps = trainer.total_steps
    if steps > _MANY_STEPS:
        return None
    far = reach(settings.optim, steps, trainer.steps_per_epoch)
    if far == 0:
        one = "the only step has" if steps == 1 else f"all {steps} steps have"
        return f"{one} a learning rate of 0 (warm-up), so that nothing is learned; give more --epochs"
    if far < _TOO_LITTLE:
        return (
            f"in {steps} steps at rates up to {settings.optim.lr:.2g} a weight moves by {far:.1g} at most, and"
            " weights begin at 0.02: next to nothing is learned; give more --epochs or a higher --lr"
        )
    return None
