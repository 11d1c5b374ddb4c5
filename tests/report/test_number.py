"""Numbers of things in words, and lines that are told once."""

from __future__ import annotations

import pytest

from dsdmae_cli.report import number_of
from dsdmae_cli.report.training import PlainReport


@pytest.mark.parametrize(
    ("count", "thing", "words"),
    [(1, "epoch", "1 epoch"), (0, "image", "0 images"), (2, "pass", "2 passes"), (1400, "training image",
     "1,400 training images"), (1.0, "minute", "1 minute"), (0.5, "minute", "0.5 minutes"), (3, "class", "3 classes")],
)  # fmt: skip
def test_a_number_of_things(count: float, thing: str, words: str) -> None:
    assert number_of(count, thing) == words


def test_a_step_that_was_told_is_not_told_again_as_the_last(capsys: pytest.CaptureFixture[str]) -> None:
    report = PlainReport(lambda: 0.0)
    report.start(1, 0, 1)
    report.ready()
    report.stepped(1)
    figures = {"step": 1, "epoch": 1.0, "loss": 2.2371, "lr": 0.0}
    report.figures(figures)
    report.record(figures)
    report.stop()
    assert len(capsys.readouterr().err.splitlines()) == 1
