"""When the processes of a run ask each other for signals: not after every step, since each time all wait for all."""

from __future__ import annotations

import time

from dsdmae_cli import distributed

_SECONDS = 1.0


class Asking:
    """After every `log_every` steps, and as often as steps take a second.

    All processes must come to the same answer or wait for each other in vain, so that it goes by steps and by no clock:
    in each exchange they agree on how many steps the fastest of them does in a second; then the next one is due.

    Args:
        log_every: steps between lines of the log, where they exchange figures anyway.
    """

    def __init__(self, log_every: int) -> None:
        self.log_every = log_every
        self.next = 0
        self.last: tuple[int, float] | None = None

    def due(self, step: int) -> bool:
        """Whether to ask after this step; a process alone may always look."""
        if distributed.world_size() == 1:
            return True
        if step < self.next and step % self.log_every:
            return False
        now = time.monotonic()
        before, then = self.last or (step, now)  # the first step of a process that goes on is not its thousandth
        self.last = step, now
        rate = int(_SECONDS * max(0, step - before) / max(now - then, 1e-3))
        self.next = step + distributed.highest(max(1, rate))
        return True
