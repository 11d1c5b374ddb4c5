"""What tests of the command line share: a command run in this process, and one that must be refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from helpers import Run, cli


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """`dsdmae WORDS` in this process."""
    return lambda *words: cli(capfd, *words)


@pytest.fixture
def refused(run: Run) -> Callable[..., str]:
    """`dsdmae WORDS`, which must fail on one line of stderr and exit with 2; the line."""

    def refused(*words: object) -> str:
        done = run(*words)
        assert (done.code, done.out) == (2, "")
        [line] = done.err.splitlines()
        assert line.startswith("dsdmae: error: ")
        return line.removeprefix("dsdmae: error: ")

    return refused
