"""What is seen of a run: two lines that hold at any width, what a log file is told by time, how long is left."""

from __future__ import annotations

import io
import re
import sys
import threading
from typing import Any

import pytest
from helpers import settings
from rich.console import Console

from dsdmae_cli.config.resolve import resolve
from dsdmae_cli.plugins import BrokenPlugin, discover
from dsdmae_cli.report import duration, print_result, tell, training
from dsdmae_cli.report.counted import Counted
from dsdmae_cli.report.lines import Figure, Pace, bar_line, fitting, percent, shortened, words_of
from dsdmae_cli.report.training import PlainReport, RichReport
from dsdmae_cli.runs.build import build_method
from dsdmae_cli.testing.methods import batch_of

METHODS = [plugin.name for plugin in discover("method") if not isinstance(plugin, BrokenPlugin)]
WIDTHS = (60, 80, 100, 200)
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Clock:
    """A clock that a test sets."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def record_of() -> Any:
    """The record of a step of a method, by its real losses, with everything a record can have."""
    made: dict[str, dict[str, Any]] = {}

    def record(name: str) -> dict[str, Any]:
        if name not in made:
            method = build_method(resolve(settings("digits", method=name).settings))
            losses = {key: value.item() for key, value in method(*batch_of(method)).items()}
            rest = {"grad_norm": 3.2, "skipped": 2.0, "lr": 1.5e-4, "images_per_second": 3.21}
            made[name] = {**losses, **rest}
        return made[name]

    return record


def on_terminal(width: int, encoding: str = "utf-8") -> tuple[RichReport, Clock, io.BytesIO]:
    written = io.BytesIO()
    file = io.TextIOWrapper(written, encoding=encoding, errors="replace", write_through=True)
    console = Console(file=file, width=width, height=24, force_terminal=True, highlight=False, color_system=None)
    clock = Clock()
    return RichReport(console, clock), clock, written


def shown(report: RichReport) -> list[str]:
    """The two lines as they are now."""
    return [line.plain for line in report.lines().split("\n", allow_blank=True)]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", METHODS)
def test_the_two_lines_hold_at_any_width(name: str, width: int, record_of: Any) -> None:
    report, clock, _ = on_terminal(width)
    report.start(400 * 390, 0, 390)
    try:
        report.ready()
        first, second = shown(report)
        assert first.startswith("epoch 1/400")
        assert "0.0%" in first
        assert "no step yet" in first
        assert second.startswith("before the first step")
        clock.now += 2.5
        report.stepped(1)
        assert report.wants_figures()
        report.figures(record_of(name))
        lines = shown(report)
        # From the first step on: 2.5 s for each of 155,999.
        assert "4 d 12 h left" in lines[0]
        assert f"loss {record_of(name)['loss']:.4f}" in lines[1]
        clock.now += 2.5 * 155_998
        report.stepped(155_999)
        lines = shown(report)
        assert "epoch 400/400" in lines[0]
        assert "99.9%" in lines[0]  # not 100% before it is done
        assert "2 s left" in lines[0]
        assert "━" in lines[0]
        for line in lines:
            assert len(line) < width
        assert "2 steps skipped" in lines[1]
        assert "3.2 images/s" in lines[1]
        if width == 200:
            parts = record_of(name).keys() - {"grad_norm", "skipped", "lr", "images_per_second"}
            assert all(f"{key} {record_of(name)[key]:.4f}" in lines[1] for key in parts)
            assert "lr 1.50e-04" in lines[1]
            assert "step 155999/156000" in lines[0]
            assert "so far" in lines[0]
        report.stepped(156_000)
        assert "100%" in shown(report)[0]
        assert "finishing" in shown(report)[0]
    finally:
        report.stop()


@pytest.mark.parametrize("width", WIDTHS)
def test_what_is_painted_keeps_within_the_terminal(width: int, record_of: Any) -> None:
    report, clock, written = on_terminal(width)
    report.start(4 * 39, 0, 39, 191)
    report.record({"step": 0, "epoch": 0.0, "knn": 0.25, "spread": 0.1, "rank": 31.2})
    report.ready()
    for step in range(1, 40):
        clock.now += 10
        report.stepped(step)
        if step % 10 == 0:
            report.record({"step": step, "epoch": step / 39, **record_of(METHODS[0]), "loss": 2.0})
        report.live.refresh()
    report.record({"step": 39, "epoch": 1.0, "knn": 0.5, "spread": 0.1, "rank": 28.9})
    report.epoch_ended(1)
    report.stop()
    painted = written.getvalue().decode()
    text = ESCAPE.sub("", painted)
    assert all(len(line.rstrip()) <= width for line in text.replace("\r", "\n").split("\n"))
    said = " ".join(painted.split())
    assert "before training k-NN 25.0% features vary in 31 directions of 191" in said
    before = " (before training 25.0%)" if width >= 100 else ""
    assert f"epoch 1/4 loss 2.0000 k-NN 50.0%{before} features vary in 29 directions of 191" in said
    assert width < 80 or "features vary in 29 directions of 191" in text


def test_a_terminal_without_the_bars_letters_gets_others() -> None:
    report, clock, _ = on_terminal(80, "ascii")
    report.start(10, 0, 5)
    clock.now += 1
    report.stepped(5)
    assert "#-" in shown(report)[0]
    report.stop()
    assert shown(report)[0].isascii()


@pytest.mark.parametrize("width", range(1, 48))
def test_narrower_than_its_words_is_cut_not_broken(width: int) -> None:
    line = bar_line("epoch 12/400", 0.5, "1 h 02 min left", width)
    assert len(line.rich("utf-8").plain) <= width
    assert len(fitting([Figure("loss 0.1234"), Figure("lr 1.50e-04", 2)], width)) <= width


def test_figures_yield_by_rank_and_keep_their_order() -> None:
    figures = [
        Figure("loss 1"),
        Figure("pixel 1", 3),
        Figure("feature 1", 4),
        Figure("lr 1", 2),
        Figure("9 images/s", 1),
    ]
    assert fitting(figures, 60) == "loss 1  pixel 1  feature 1  lr 1  9 images/s"
    assert fitting(figures, 40) == "loss 1  pixel 1  lr 1  9 images/s"
    assert fitting(figures, 30) == "loss 1  lr 1  9 images/s"
    assert fitting(figures, 20) == "loss 1  9 images/s"
    assert fitting(figures, 10) == "loss 1"


# How long is left


def test_the_first_step_counts_no_more_once_there_are_others() -> None:
    pace = Pace(100, 0, 0.0)
    assert pace.left(5.0) is None
    pace.stepped(1, 60.0)  # compilation
    assert pace.left(60.0) == pytest.approx(99 * 60)
    assert pace.left(70.0) == pytest.approx(99 * 60 - 10)
    pace.stepped(2, 61.0)
    assert pace.left(61.0) == pytest.approx(98)
    assert pace.left(1e9) == 0


def test_the_later_half_counts_and_no_more_than_some_samples_are_kept() -> None:
    pace = Pace(100_000, 50_000, 0.0)
    for step in range(1, 20_001):  # a second each, then two
        pace.stepped(50_000 + step, step if step <= 10_000 else 10_000 + 2 * (step - 10_000))
    assert pace.left(30_000.0) == pytest.approx(2 * 30_000, rel=0.02)
    assert len(pace.samples) < 300


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (59.6, "1 min 00 s"), (3599.6, "1 h 00 min"), (47 * 3600, "47 h 00 min"), (76 * 3600, "3 d 04 h")],
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_the_last_percent_is_not_given_before_the_end() -> None:
    assert [percent(share) for share in (0, 0.0004, 0.12345, 0.99999, 1)] == ["0.0%", "0.0%", "12.3%", "99.9%", "100%"]


# A log file


@pytest.mark.parametrize("name", METHODS)
def test_a_log_file_gets_lines_by_time(name: str, record_of: Any, capsys: pytest.CaptureFixture[str]) -> None:
    clock, report = Clock(), None
    report = PlainReport(clock)
    report.start(1000, 0, 100)
    report.ready()
    for step in range(1, 61):  # of a minute each, where a record is made of every tenth
        clock.now += 60
        report.stepped(step)
        if report.wants_figures():
            report.figures(record_of(name))
        if step % 10 == 0:
            report.record({"step": step, "epoch": step / 100, **record_of(name)})
    report.stop()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) >= 60
    loss = record_of(name)["loss"]
    assert lines[0].startswith(f"epoch 1/10  step 1/1000  0.1%  loss {loss:.4f}")
    assert lines[0].endswith("2 steps skipped (non-finite)  16 h 39 min left")
    assert all("\x1b" not in line and "lr 1.50e-04" in line for line in lines)


def test_a_log_file_is_not_flooded(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    report = PlainReport(clock)
    report.start(100_000, 0, 1000)
    for step in range(1, 100_001):  # ten an instant, 28 hours in all
        clock.now += 1
        report.stepped(step)
        if report.wants_figures():
            report.figures({"loss": 1.0, "lr": 1e-3})
        if step % 10 == 0:
            report.record({"step": step, "epoch": step / 1000, "loss": 1.0, "lr": 1e-3})
    report.stop()
    lines = capsys.readouterr().err.splitlines()
    assert 100_000 / 60 < len(lines) < 100_000 / 60 + 400
    assert lines[-1] == "epoch 100/100  step 100000/100000  100%  loss 1.0000  lr 1.00e-03"


def test_a_step_that_takes_long_is_not_silent(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    report = PlainReport(clock)
    report.start(100, 0, 10)
    for _ in range(600):  # ten minutes without a step
        clock.now += 1
        report.attend()
    report.stop()
    said = "epoch 1/10  step 0/100  still at work: no step has ended for "
    assert capsys.readouterr().err.splitlines() == [
        f"{said}1 min 00 s",
        f"{said}2 min 00 s",
        f"{said}4 min 00 s",
        f"{said}8 min 00 s",
    ]


def test_silence_is_watched_while_steps_are_waited_for_and_no_longer(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "_SILENT_SECONDS", 0.05)
    report = PlainReport()
    attended = threading.Event()
    monkeypatch.setattr(report, "attend", attended.set)
    report.start(100, 0, 10)
    assert attended.wait(30)
    (watching,) = [thread for thread in threading.enumerate() if thread.name == "dsdmae-report"]
    report.stop()
    watching.join(30)
    assert not watching.is_alive()


def test_steps_without_figures_are_told_as_steps(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    report = PlainReport(clock)
    report.start(100, 0, 10)
    for step in range(1, 7):
        clock.now += 30
        report.stepped(step)
        report.attend()
    report.stop()
    lines = capsys.readouterr().err.splitlines()
    assert [line[:28] for line in lines] == [f"epoch 1/10  step {n}/100  {n}.0%" for n in (2, 4, 6)]


def test_epochs_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    report = PlainReport(clock)
    report.start(30, 0, 10, 192)
    report.record({"step": 0, "epoch": 0.0, "rank": 25.2, "spread": 0.2})
    report.ready()
    for step in range(1, 31):
        clock.now += 1
        report.stepped(step)
        report.record({"step": step, "epoch": step / 10, "loss": float(step), "lr": 0.1, "skipped": 0.0})
        if step % 10 == 0:
            if step != 20:  # the second epoch is not looked at, and took no minute
                report.record({"step": step, "epoch": step / 10, "rank": 31.4, "spread": 0.2, "kept": 0.25})
            report.epoch_ended(step // 10)
    report.stop()
    lines = [line for line in capsys.readouterr().err.splitlines() if "step" not in line]
    assert lines == [
        "before training  features vary in 25 directions of 192",
        "epoch 1/3  loss 5.5000  features vary in 31 directions of 192  kept 0.25",
        "epoch 3/3  loss 20.5000  features vary in 31 directions of 192  kept 0.25",
    ]


def test_epochs_of_which_nothing_is_known_but_the_loss(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    report = PlainReport(clock)
    report.start(100, 0, 1)
    for epoch in range(1, 101):
        clock.now += 6
        report.stepped(epoch)
        report.record({"step": epoch, "epoch": float(epoch), "loss": 3.0, "lr": 0.1})
        report.epoch_ended(epoch)
    report.stop()
    lines = [line for line in capsys.readouterr().err.splitlines() if "step" not in line]
    assert lines == [f"epoch {epoch}/100  loss 3.0000" for epoch in range(10, 101, 10)]


# One thing after the other


@pytest.mark.parametrize("width", WIDTHS)
def test_a_long_name_leaves_room_for_the_bar(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted("denoising", 12, quiet=True)
    counted.begin("a-very-long-name-of-a-photograph-as-telephones-give-them-2026-11-27-010203.png")
    monkeypatch.setattr(counted, "began", counted.began - 3600)
    counted.advance(1, 2)
    line = counted.line(width - 1, "utf-8").plain
    assert len(line) < width
    assert line.startswith("denoising 1 of 12")
    assert "4.1%" in line
    assert line.endswith("23 h 00 min left")
    assert "─" in line


@pytest.mark.parametrize("width", WIDTHS)
def test_who_asks_to_stop_is_heard_before_the_step_ends(width: int, record_of: Any) -> None:
    report, _, _ = on_terminal(width)
    report.start(10, 1, 5)
    try:
        report.figures(record_of(METHODS[0]))
        assert "loss" in shown(report)[1]
        report.stopping = lambda: True
        assert shown(report)[1].startswith("stopping after this step, and saving")
        assert ("once more ends at once" in shown(report)[1]) == (width >= 80)
    finally:
        report.stop()


def test_a_log_file_hears_it_once(capsys: pytest.CaptureFixture[str]) -> None:
    report = PlainReport(Clock())
    report.start(100, 0, 10)
    report.stopping = lambda: True
    report.attend()
    report.attend()
    report.stop()
    said = capsys.readouterr().err.splitlines()
    assert said.count("stopping after this step, and saving; once more ends at once, unsaved") == 1


def test_of_a_handful_of_images_no_directions_are_told() -> None:
    record = {"step": 0, "epoch": 0.0, "knn": 0.5, "spread": 0.1, "rank": 1.0}
    assert words_of(record, 1) == ["k-NN 50.0%"]
    assert words_of(record, 4) == ["k-NN 50.0%", "features vary in 1 direction of 4"]
    assert words_of(record) == ["k-NN 50.0%", "features vary in 1 direction"]


def test_a_name_is_shortened_in_its_middle() -> None:
    assert shortened("photograph-of-a-street.png", 14) == "photogr…et.png"
    assert shortened("a.png", 14) == "a.png"


def test_a_result_on_a_terminal_ends_its_lines_between_words(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    path = f"/home/{'a' * 90}/encoder.safetensors"
    text = f"Better than untrained by {'many ' * 20}points.\ndata           {'word ' * 20}\nencoder        {path}"
    print_result({}, as_json=False, text=text)
    assert capsys.readouterr().out == f"{text}\n"  # a file
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    print_result({}, as_json=False, text=text)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"encoder        {path}"  # whole, for whoever copies it
    assert all(len(line) <= 60 for line in lines[:-1])
    assert " ".join(" ".join(lines).split()) == " ".join(text.split())
    assert next(line for line in lines if line.startswith(" ")).startswith(f"{'':<15}word")


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "cp1252"])
@pytest.mark.parametrize("errors", ["strict", "replace"])  # the program's own stdout is of the latter kind
def test_a_name_is_told_to_scripts_by_its_bytes(errors: str, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for as_data, expected in ((True, b"caf\xe9.png\n"), (False, b"caf\\udce9.png\n")):
        content = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(content, encoding, errors=errors))
        tell(b"caf\xe9.png".decode("utf-8", "surrogateescape"), as_data=as_data)
        assert content.getvalue() == expected
        monkeypatch.undo()


def test_what_an_encoding_lacks_is_no_question_mark_for_a_script(monkeypatch: pytest.MonkeyPatch) -> None:
    """`dsdmae config show > FILE` and `probe $(dsdmae runs best)` with a path that ASCII does not have."""
    content = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(content, "ascii", errors="replace"))
    tell("gr\u00fcn-\u03c3", as_data=True)
    assert content.getvalue() == "gr\u00fcn-\u03c3\n".encode()
