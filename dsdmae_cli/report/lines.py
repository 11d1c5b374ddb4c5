"""The lines of a progress display at any width, how long is left, and the figures of a record in words.

Nothing here writes: training.py and counted.py do, to a terminal or to a log file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

GAP = "  "
# Columns of a bar: below the least there is none, above the most it says no more.
_LEAST_BAR, _BAR, _MOST_BAR = 4, 16, 40
_SAMPLES = 256
_FEWEST_DIRECTIONS = 4  # that there could be: of a handful of held-out images their number says nothing
# Entries of a record that are no figures of the training itself, or are told in words of their own.
_NO_PARTS = {"step", "epoch", "loss", "lr", "images_per_second", "grad_norm", "skipped"}
_LOOKED_AT = {"step", "epoch", "knn", "spread", "rank", "validation", "mean_iou"}


def duration(seconds: float) -> str:
    """1 h 02 min, 3 min 04 s, 12 s; 3 d 04 h from two days on."""
    whole = round(seconds)
    if whole >= 48 * 3600:
        return f"{whole // 86400} d {whole % 86400 // 3600:02d} h"
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    if whole >= 60:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole} s"


def percent(share: float) -> str:
    """A share of the work: with a decimal, so that it moves in long runs too; 100% is said of what is done alone."""
    return "100%" if share >= 1 else f"{int(1000 * share) / 10:.1f}%"


class Pace:
    """How long the steps that are left will take, from the first one on.

    The later half of the steps so far counts: the first one is slow (memory, compilation), a machine may get busier,
    and looks at the features, checkpoints and pictures lie among the steps.

    Args:
        total: steps of the whole.
        done: steps that were done before.
        now: seconds, of any clock that is then used throughout.
    """

    def __init__(self, total: int, done: int, now: float) -> None:
        self.total, self.first, self.done = total, done, done
        self.began = self.latest = now
        self.samples = [(done, now)]
        self.seconds_per_step: float | None = None

    def stepped(self, done: int, now: float) -> None:
        """So many steps are done now."""
        if done <= self.done:
            return
        self.done, self.latest = done, now
        half = self.first + (done - self.first) // 2
        while len(self.samples) > 1 and self.samples[1][0] <= half:
            del self.samples[0]
        step, then = self.samples[0]
        self.seconds_per_step = max(now - then, 0.0) / (done - step)
        if done - self.samples[-1][0] >= max(1, (self.total - self.first) // _SAMPLES):
            self.samples.append((done, now))

    def left(self, now: float) -> float | None:
        """Seconds until the end; None before the first step. It counts down while a step takes its time."""
        if self.seconds_per_step is None:
            return None
        return max(0.0, self.seconds_per_step * (self.total - self.done) - (now - self.latest))


class Bar(NamedTuple):
    """A line with a bar in it; an empty bar where there is no room for one."""

    before: str
    full: int
    empty: int
    after: str

    def rich(self, encoding: str) -> Any:
        """For a terminal of an encoding, as rich's Text."""
        from rich.text import Text

        full, empty = "━─" if encoding.lower().startswith("utf") else "#-"
        parts = (self.before, (full * self.full, "bar.complete"), (empty * self.empty, "bar.back"), self.after)
        return Text.assemble(*parts, no_wrap=True, overflow="crop")


def bar_line(head: str, share: float, tail: str, width: int, extras: Sequence[str] = ()) -> Bar:
    """What is never given up: what is done, a bar, the percentage and the tail (the time left).

    Args:
        share: of the work that is done.
        width: columns; the line takes no more.
        extras: what is added where there is room beside a bar of good length, the first ones first.
    """
    number = f"{percent(share):>6}"

    def room(after: str) -> int:
        return width - len(head) - len(after) - len(GAP)

    after = GAP.join((number, tail) if tail else (number,))
    for extra in extras:
        longer = GAP.join((after, extra))
        if room(longer) >= _BAR:
            after = longer
    columns = min(_MOST_BAR, room(after) - 1)
    if columns < _LEAST_BAR:
        return Bar(f"{head}{GAP}{after.lstrip()}"[:width], 0, 0, "")
    full = min(columns, int(share * columns))
    return Bar(head + GAP, full, columns - full, f" {after}")


@dataclass(frozen=True)
class Figure:
    """A figure of a line.

    Attributes:
        text: as it is shown.
        rank: of figures that do not fit, the one with the highest rank yields first.
    """

    text: str
    rank: int = 0


def fitting(figures: Sequence[Figure], width: int) -> str:
    """The figures in one line of at most `width` columns, in their order."""
    kept = list(figures)
    while len(kept) > 1 and len(GAP.join(figure.text for figure in kept)) > width:
        kept.remove(max(reversed(kept), key=lambda figure: figure.rank))
    return GAP.join(figure.text for figure in kept)[: max(width, 0)]


def figures_of(record: dict[str, Any]) -> list[Figure]:
    """A record of training as figures: loss, its parts, learning rate, speed, what was skipped."""
    found = [Figure(f"loss {record['loss']:.4f}")] if "loss" in record else []
    parts = [name for name in record if name not in _NO_PARTS]
    found += [Figure(f"{name} {record[name]:.4f}", 3 + place) for place, name in enumerate(parts)]
    if "lr" in record:
        found.append(Figure(f"lr {record['lr']:.2e}", 2))
    if "images_per_second" in record:
        speed = record["images_per_second"]
        found.append(Figure(f"{speed:,.0f} images/s" if speed >= 10 else f"{speed:.1f} images/s", 1))
    if record.get("skipped"):
        found.append(Figure(f"{record['skipped']:.0f} steps skipped (non-finite)"))
    return found


def in_directions(rank: float) -> str:
    """A number of directions, rounded."""
    return f"{rank:.0f} direction{'' if round(rank) == 1 else 's'}"


def words_of(record: dict[str, Any], directions: int | None = None, first: dict[str, Any] | None = None) -> list[str]:
    """What a look at held-out images found, in words.

    Args:
        directions: in how many the features could vary.
        first: the look before training, for what it had found.
    """
    found = []
    for key, word in (("knn", "k-NN"), ("validation", "validation accuracy"), ("mean_iou", "validation mean IoU")):
        if key in record:
            before = f" (before training {first[key]:.1%})" if first and key in first else ""
            found.append(f"{word} {record[key]:.1%}{before}")
    if "rank" in record and (directions is None or directions >= _FEWEST_DIRECTIONS):
        of = f" of {directions}" if directions else ""
        found.append(f"features vary in {in_directions(record['rank'])}{of}")
    return [*found, *(f"{name} {record[name]:.4g}" for name in record if name not in _LOOKED_AT)]


def shortened(text: str, width: int) -> str:
    """A text in at most `width` columns (7 at least), its middle left out where it is longer."""
    if len(text) <= width:
        return text
    ends = max(width - 1, 6)
    return f"{text[: ends - ends // 2]}…{text[-(ends // 2) :]}"
