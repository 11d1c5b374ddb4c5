"""What a command has opened once serves all of it: the listing of a folder, whoever asks for it. No torch here.

A run asks for its images several times: their size before it begins, the training split, the test split. Within
`opened_once` the first answer is kept; outside nothing is, so that a Python session of days never sees a folder as it
was.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

T = TypeVar("T")

_kept: ContextVar[dict[Hashable, Any] | None] = ContextVar("kept", default=None)


@contextmanager
def opened_once() -> Iterator[None]:
    """Until the block ends, `shared` gives the same object for the same question; within another one, until that ends.

    The command line enters it once a command.
    """
    if _kept.get() is not None:
        yield
        return
    token = _kept.set({})
    try:
        yield
    finally:
        _kept.reset(token)


def shared(make: Callable[..., T], *arguments: Hashable) -> T:
    """`make(*arguments)`; within `opened_once` the object that the first such call made.

    It stays in memory until the block ends: for listings, not for pixels. What `make` raises is not kept.
    """
    kept = _kept.get()
    if kept is None:
        return make(*arguments)
    key = (make, *arguments)
    if key not in kept:
        kept[key] = make(*arguments)
    return kept[key]
