"""What a run has to say of its steps between two lines of the log: sums that stay on the device until they are read."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from dsdmae_cli import distributed

_SKIPPED = "skipped"


class Window:
    """Sums of losses and norms since the last record.

    Args:
        device: where the steps are done.

    Attributes:
        steps: how many there were, skipped ones included.
    """

    def __init__(self, device: torch.device) -> None:
        self.steps = 0
        # By the names of what was summed, in their order; the last entry counts the steps that were not skipped. A
        # method that names other losses now and then has a vector for each set of names.
        self._sums: dict[tuple[str, ...], Float[Tensor, " n"]] = {}
        self._one = torch.ones(1, device=device)

    def add(self, names: Sequence[str], values: Float[Tensor, " n"], skipped: Float[Tensor, ""]) -> None:
        """Add a step; of a skipped one only that it was skipped, for NaN is contagious."""
        added = torch.where(skipped > 0, 0.0, torch.cat([values, self._one]))
        before = self._before(key := tuple(names))
        self._sums[key] = added if before is None else before + added
        self.steps += 1

    def _before(self, key: tuple[str, ...]) -> Tensor | None:
        """The sums of these names so far; those of a checkpoint, which come in another order, are put into this one."""
        other = next((names for names in self._sums if names != key and sorted(names) == sorted(key)), None)
        if other is not None:
            *values, counted = self._sums.pop(other).unbind()
            self._sums[key] = torch.stack([*(values[other.index(name)] for name in key), counted])
        return self._sums.get(key)

    def read(self, also: Float[Tensor, ""]) -> tuple[dict[str, float], float]:
        """(means over the steps that counted and over all processes, the number `also`); the device is waited for once.

        Where all steps were skipped there is nothing to report but their number. The window is empty afterwards.

        Args:
            also: the same in all processes.
        """
        *told, number = distributed.mean_(torch.cat([*self._sums.values(), also.unsqueeze(0)])).tolist()
        found = self._means(told)
        self.steps, self._sums = 0, {}
        return found, number

    def peek(self) -> dict[str, float]:
        """The means of this process alone, and the sums go on."""
        return self._means(torch.cat(list(self._sums.values())).tolist()) if self._sums else {}

    def _means(self, told: list[float]) -> dict[str, float]:
        totals: dict[str, float] = {}
        counted, at = 0.0, 0
        for names in self._sums:
            for name in names:
                totals[name] = totals.get(name, 0.0) + told[at]
                at += 1
            counted += told[at]
            at += 1
        means = {name: total / counted for name, total in totals.items()} if counted else {}
        return {**means, _SKIPPED: self.steps - counted}

    # -- what a checkpoint needs

    def state(self, alone: bool = False) -> dict[str, Tensor]:
        """The sums by name, and "skipped": how many steps did not count. They are means over the processes, each of
        which goes on with them.

        Args:
            alone: only this process asks, and gets its own.
        """
        found: dict[str, Tensor] = {}
        for names, sums in self._sums.items():
            *values, counted = (sums if alone else distributed.mean_(sums.clone())).unbind()
            for name, value in zip(names, values, strict=True):
                found[name] = found[name] + value if name in found else value
            found[_SKIPPED] = found.get(_SKIPPED, torch.full_like(counted, self.steps)) - counted
        return found

    def restore(self, state: dict[str, Tensor], steps: int) -> None:
        """Go on with the sums of `state`."""
        self.steps, self._sums = steps, {}
        if state:
            names = tuple(sorted(name for name in state if name != _SKIPPED))  # a file has no order, and ranks exchange
            values = [state[name].to(self._one) for name in (*names, _SKIPPED)]
            values[-1] = steps - values[-1]
            self._sums[names] = torch.stack(values)
