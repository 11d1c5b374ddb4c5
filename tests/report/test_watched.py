"""Things that are gone through one after the other, with how far it is: on a log file, and for nobody."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from dsdmae_cli.report import Report
from dsdmae_cli.report.training import PlainReport


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[int]], Iterator[int]]:
    """Gives things, each after four seconds of a clock of its own."""
    now = [0.0]
    monkeypatch.setattr("dsdmae_cli.report.counted.time.monotonic", lambda: now[0])

    def things(given: list[int]) -> Iterator[int]:
        for thing in given:
            now[0] += 4
            yield thing

    return things


def test_a_line_now_and_then(slow: Callable[[list[int]], Iterator[int]], capfd: pytest.CaptureFixture[str]) -> None:
    given = [10, 20, 10, 30, 20, 10]
    assert list(PlainReport().watched(slow(given), "features of", "100 images", 100, lambda thing: thing)) == given
    assert capfd.readouterr().err == "features of 100 images: 40%, 18 s left\n"


def test_nothing_for_nobody(slow: Callable[[list[int]], Iterator[int]], capfd: pytest.CaptureFixture[str]) -> None:
    assert list(Report().watched(slow([1] * 9), "features of", "9 images", 9)) == [1] * 9
    assert capfd.readouterr() == ("", "")
