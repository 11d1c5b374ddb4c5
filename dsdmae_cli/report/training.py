"""What is seen of training: two lines that change in place on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from dsdmae_cli.report import Report, heard, say, shown
from dsdmae_cli.report.lines import GAP, Figure, Pace, bar_line, duration, figures_of, fitting, percent, words_of

# Seconds between figures that are asked for on the way, in a log file and on a terminal.
_PLAIN_SECONDS, _LIVE_SECONDS = 10.0, 2.0
# After so long a log file hears that all is well; so often it is told of an epoch that nothing was looked at after.
_SILENT_SECONDS = _EPOCH_SECONDS = 60.0
# A step may take a minute, and whoever hears nothing presses Ctrl-C again, which loses it.
_STOPPING = (Figure("stopping after this step, and saving"), Figure("once more ends at once, unsaved", 1))


class _Telling(Report):
    """What a terminal and a log file are told alike: a line for an epoch, in words.

    Args:
        clock: seconds.
        least: seconds between figures that are asked for.
    """

    quiet = False

    def __init__(self, least: float, clock: Callable[[], float] | None = None) -> None:
        self.clock = clock or (lambda: time.monotonic())
        self.least = least
        self.total = self.step = 0
        self.steps_per_epoch = 1
        self.directions: int | None = None
        self.pace = Pace(0, 0, self.clock())
        self.now: dict[str, Any] = {}  # the newest figures
        self.first: dict[str, Any] | None = None  # the look before training
        self.look: dict[str, Any] = {}  # what was found since the last line of an epoch
        self.losses = (0.0, 0)  # their sum and the number of steps since then
        self.recorded = 0  # the step of the newest record
        self.asked: float | None = None
        self.told_epoch = self.clock()

    def start(self, total_steps: int, step: int, steps_per_epoch: int, directions: int | None = None) -> None:
        self.total, self.step, self.recorded, self.steps_per_epoch = total_steps, step, step, steps_per_epoch
        self.directions, self.asked, self.now, self.losses = directions, None, {}, (0.0, 0)
        self.pace = Pace(total_steps, step, self.clock())

    def ready(self) -> None:
        self.pace = Pace(self.total, self.step, self.clock())

    def stepped(self, step: int) -> None:
        self.step = step
        self.pace.stepped(step, self.clock())

    def wants_figures(self) -> bool:
        return self.asked is None or self.clock() - self.asked >= self.least

    def figures(self, record: dict[str, Any]) -> None:
        self.asked, self.now = self.clock(), record

    def record(self, record: dict[str, Any]) -> None:
        if "lr" in record:
            self.now = record
            steps = record["step"] - self.recorded
            self.recorded = record["step"]
            if "loss" in record:
                self.losses = (self.losses[0] + record["loss"] * steps, self.losses[1] + steps)
        elif record["step"] == 0:
            self.first = record
            self.note(GAP.join(["before training", *words_of(record, self.directions)]))
        else:
            self.look |= record

    def epoch_ended(self, epoch: int) -> None:
        """A line where something was looked at; and once a minute, where epochs are told only by their loss."""
        if not self.look and self.clock() - self.told_epoch < _EPOCH_SECONDS:
            return
        total, steps = self.losses
        loss = total / steps if steps else self.now.get("loss")
        parts = [f"epoch {self.epoch(epoch * self.steps_per_epoch - 1)}"]
        parts += [f"loss {loss:.4f}"] if loss is not None else []
        # What it was before training stands above, and yields first.
        whole, least = (GAP.join([*parts, *words_of(self.look, self.directions, one)]) for one in (self.first, None))
        self.note(whole if self.columns is None or len(whole) <= self.columns else least)
        self.look, self.losses, self.told_epoch = {}, (0.0, 0), self.clock()

    @property
    def columns(self) -> int | None:
        """How many fit into a line; None = a file, where any number does."""
        return None

    def epoch(self, step: int) -> str:
        """The epoch that a step (counted from 0) belongs to, and how many there are."""
        epochs = self.total // self.steps_per_epoch
        return f"{min(step // self.steps_per_epoch + 1, epochs)}/{epochs}"

    def left(self) -> str:
        """The time left in words; empty before the first step and after the last."""
        seconds = self.pace.left(self.clock())
        return "" if seconds is None or self.step >= self.total else f"{duration(seconds)} left"


class PlainReport(_Telling):
    """Lines for a log file: epochs in words, and by time, so that no step and no look is silent for long."""

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        super().__init__(_PLAIN_SECONDS, clock)
        self.began = self.said = self.clock()
        self.said_step = 0
        self.told: tuple[int, Any] | None = None  # the step and loss of the newest line of figures
        self._over: threading.Event | None = None
        self._patience, self._told_stopping = _SILENT_SECONDS, False

    def start(self, total_steps: int, step: int, steps_per_epoch: int, directions: int | None = None) -> None:
        super().start(total_steps, step, steps_per_epoch, directions)
        self.stop()
        self.told = None
        self.began = self.said = self.clock()
        self.said_step = step
        self._patience, self._told_stopping = _SILENT_SECONDS, False
        self._over = threading.Event()
        threading.Thread(target=self._watch, args=(self._over,), name="dsdmae-report", daemon=True).start()

    def _watch(self, over: threading.Event) -> None:
        """A line where nothing has been said for a minute: how far it is, or, where no step has ended for one minute,
        for two, four, ..., that all is well and only takes long."""
        while not over.wait(_SILENT_SECONDS / 4):
            self.attend()

    def attend(self) -> None:
        """What the watching thread does four times a minute."""
        silent = self.clock() - self.said
        if self.stopping() and not self._told_stopping:
            self._told_stopping = True
            say("; ".join(figure.text for figure in _STOPPING))
        if silent < _SILENT_SECONDS:
            self._patience = _SILENT_SECONDS
        elif self.step != self.said_step:  # of what has steps and no figures, as a probe's
            self._tell()
        elif silent >= self._patience:
            self._patience *= 2
            say(f"{self._where()}{GAP}still at work: no step has ended for {duration(silent)}")

    def wants_figures(self) -> bool:
        """After the first step, then every ten seconds, and of a long run once a minute."""
        self.least = min(60.0, max(_PLAIN_SECONDS, (self.clock() - self.began) / 60))
        return super().wants_figures()

    def figures(self, record: dict[str, Any]) -> None:
        super().figures(record)
        self._tell()

    def record(self, record: dict[str, Any]) -> None:
        due = self.wants_figures() or record["step"] == self.total
        super().record(record)
        if "lr" in record and due:
            self.asked = self.clock()
            if self.told != (self.step, record.get("loss")):
                self._tell()

    def _where(self) -> str:
        return f"epoch {self.epoch(max(self.step - 1, 0))}{GAP}step {self.step}/{self.total}"

    def _tell(self) -> None:
        share = f"{percent(self.step / self.total)}" if self.total else ""
        parts = [self._where(), share, *(figure.text for figure in figures_of(self.now)), self.left()]
        self.told = (self.step, self.now.get("loss"))
        self.note(GAP.join(filter(None, parts)))

    def note(self, text: str) -> None:
        self.said, self.said_step = self.clock(), self.step
        say(shown(text, one_line=True))

    def stop(self) -> None:
        if self._over is not None:
            self._over.set()
            self._over = None


class RichReport(_Telling):
    """Two lines on a terminal that change in place: what is never given up, and figures that yield by width."""

    def __init__(self, console: Any = None, clock: Callable[[], float] | None = None) -> None:
        from rich.console import Console

        super().__init__(_LIVE_SECONDS, clock)
        self.console = console or Console(stderr=True, highlight=False)
        self.live: Any = None
        self.began = self.clock()

    def start(self, total_steps: int, step: int, steps_per_epoch: int, directions: int | None = None) -> None:
        from rich.live import Live

        super().start(total_steps, step, steps_per_epoch, directions)
        self.stop()
        self.began = self.clock()
        self.live = Live(
            get_renderable=self.lines, console=self.console, refresh_per_second=4, transient=True,
            vertical_overflow="crop",
        )  # fmt: skip
        self.live.start()

    @property
    def columns(self) -> int | None:
        return int(self.console.width)

    def lines(self) -> Any:
        """The two lines as they are now."""
        from rich.text import Text

        # A terminal whose last column is filled may begin a new line.
        width = max(self.console.width - 1, 1)
        passed = duration(self.clock() - self.began)
        share = self.step / self.total if self.total else 0.0
        tail = "finishing" if self.step >= self.total else self.left() or "no step yet"
        extras = (f"step {self.step}/{self.total}", f"{passed} so far")
        bar = bar_line(f"epoch {self.epoch(self.step)}", share, tail, width, extras)
        figures = (
            [*_STOPPING] if self.stopping() else figures_of(self.now) or [Figure(f"before the first step{GAP}{passed}")]
        )
        return Text("\n", no_wrap=True, overflow="crop").join(
            (bar.rich(self.console.encoding), Text(fitting(figures, width)))
        )

    def record(self, record: dict[str, Any]) -> None:
        super().record(record)
        if "lr" in record:
            self.asked = self.clock()

    def note(self, text: str) -> None:
        with heard():
            # A path that is longer than the line can be copied only where the terminal itself breaks it.
            longest = max(map(len, text.split()), default=0)
            self.console.print(shown(text, one_line=True), markup=False, soft_wrap=longest > self.console.width)

    def stop(self) -> None:
        if self.live is not None:
            with heard():
                self.live.stop()
            self.live = None
