"""The few files of many that were used last, kept open."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class KeptOpen(Generic[T]):
    """What was opened last, by number. Threads may share it; a process that it is sent to opens files of its own.

    Whoever reads holds what it got, so that another thread may let go of it meanwhile.

    Args:
        most: how many are kept.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._prepare()

    def _prepare(self) -> None:
        self._lock = threading.Lock()
        self._open: OrderedDict[int, T] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {"most": self.most}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.most = state["most"]
        self._prepare()

    def get(self, number: int, opened: Callable[[int], T]) -> T:
        """The open file of this number; `opened` opens it where it is not."""
        with self._lock:
            if number not in self._open:
                self._open[number] = opened(number)
                if len(self._open) > self.most:
                    self._open.popitem(last=False)
            self._open.move_to_end(number)
            return self._open[number]
