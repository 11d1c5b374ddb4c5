"""Numbers of things in words, and lines that are told once."""

from __future__ import annotations

import numpy as np
import pytest

from dsdmae_cli.report import number_of
from dsdmae_cli.report.counted import Counted
from dsdmae_cli.report.training import PlainReport


@pytest.mark.parametrize(
    ("count", "thing", "words"),
    [(1, "epoch", "1 epoch"), (0, "image", "0 images"), (2, "pass", "2 passes"), (50, "epoch", "50 epochs"),
     (2, "patch", "2 patches"), (1400, "training image",
     "1,400 training images"), (1.0, "minute", "1 minute"), (0.5, "minute", "0.5 minutes"), (3, "class", "3 classes"),
     (np.int64(1234567), "image", "1,234,567 images")],
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


@pytest.mark.parametrize("columns", [40, 60])
def test_a_line_of_a_picture_breaks_no_word(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "den/bicycle_10.png  512x512 RGB, camera noise or JPEG, about 2.4 of 255: removed, 1.4 s"
    counted = Counted("denoising", 2, quiet=False)
    counted.note(text, to_stdout=True)
    assert capsys.readouterr().out == f"{text}\n"  # a file's lines are whole
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))
    counted.note(text, to_stdout=True)
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= columns for line in lines)
    assert " ".join(lines).split() == text.split()
