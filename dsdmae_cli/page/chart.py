"""Lines and points as SVG: in a page by its colours, or a file of its own.

No matplotlib: a page is made anew while a run trains, and its figures follow light and dark. Nothing is told apart by
colour alone: marks and dashes differ too.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Literal

from dsdmae_cli.page import ticks
from dsdmae_cli.page.palette import LIGHT, style
from dsdmae_cli.report import shown

Mark = Literal["circle", "square", "triangle", "diamond", "cross", "star", "dash", ""]
MARKS: tuple[Mark, ...] = ("circle", "square", "triangle", "diamond", "cross")
Point = tuple[float, float]
QUIET = 7  # the colour of what others are compared with
_DASHES = ("", "6 3", "2 3", "8 3 2 3")
_WIDTH, _TOP, _RIGHT, _LINE, _LETTER = 400.0, 30.0, 14.0, 16.0, 6.6
_PLOT_HEIGHT = 190.0
# From a point to the single values that it is the mean of.
_BESIDE = 9.0
# Letters of a name below a tick, and in the legend; degrees by which names are turned that would touch.
_MOST_LETTERS, _LONGEST, _TURN = 26, 58, 35

Written = Callable[[str], str]


@dataclass(frozen=True)
class Series:
    """What has one colour.

    Attributes:
        name: in the legend; empty = not there.
        points: x and y, in the order of x.
        half: of the interval around each point; None = none.
        dots: single values, beside the points that are their means.
        line: join the points.
        colour: number of its colour, and of its dashes unless `dashes` says otherwise.
    """

    name: str
    points: Sequence[Point]
    half: Sequence[float | None] = ()
    dots: Sequence[Point] = ()
    line: bool = True
    mark: Mark = ""
    colour: int = 0
    dashes: int | None = None

    @property
    def finite(self) -> list[Point]:
        """Points and ends of intervals that can be drawn."""
        found = [*self.points, *self.dots]
        for (x, y), half in zip(self.points, self.half, strict=False):
            found += [(x, y - half), (x, y + half)] if half is not None else []
        return [point for point in found if all(map(math.isfinite, point))]


@dataclass(frozen=True)
class Rule:
    """A line from one side to the other, or, where `until` is given, a band of x."""

    name: str
    at: float
    until: float | None = None
    vertical: bool = False
    colour: int = QUIET


@dataclass(frozen=True)
class Chart:
    """A figure.

    Attributes:
        key: name of its file, without suffix.
        title: what is drawn, with its unit.
        names: what stands below x = 0, 1, 2, ... where x is no number.
        at: where ticks of numbers stand, where they are few and given.
        x_from: where the axis begins; None = by the points.
        limits: lowest and highest y that may be, whatever intervals reach.
    """

    key: str
    title: str
    x: str
    series: Sequence[Series] = ()
    rules: Sequence[Rule] = ()
    names: Sequence[str] = ()
    at: Sequence[tuple[float, str]] = ()
    log_x: bool = False
    log_y: bool = False
    x_from: float | None = None
    limits: tuple[float, float] = (-math.inf, math.inf)
    note: str = ""

    @property
    def drawable(self) -> bool:
        """Whether there is a point."""
        return any(series.finite for series in self.series)

    def words(self) -> str:
        """The figure for who does not see it: each series by its first and last value."""
        said = []
        for series in self.series:
            points = [p for p in series.points if all(map(math.isfinite, p))]
            if points:
                name = f"{series.name}: " if series.name else ""
                (x0, y0), (x1, y1) = points[0], points[-1]
                said.append(f"{name}{y0:.4g} at {self._at(x0)}, {y1:.4g} at {self._at(x1)}")
        said += [f"{rule.name}" for rule in self.rules if rule.name]
        return f"{self.title} against {self.x}. {'; '.join(said)}"

    def _at(self, x: float) -> str:
        return self.names[int(x)] if self.names and 0 <= int(x) < len(self.names) else f"{x:.4g}"

    def svg(self, written: Written = str, *, alone: bool = False) -> str:
        """SVG text; empty where there is nothing to draw.

        Args:
            written: what is made of every text before it is escaped (document.py takes paths of the machine out).
            alone: a file of its own, with its colours and ground.
        """
        return _Drawing(self, written).svg(alone) if self.drawable else ""


class _Drawing:
    """One chart on its way to SVG."""

    def __init__(self, chart: Chart, written: Written) -> None:
        self.chart = chart
        self.written = written
        found = [point for series in chart.series for point in series.finite]
        xs, ys = [x for x, _ in found], [y for _, y in found]
        for rule in chart.rules:
            (xs if rule.vertical else ys).extend(end for end in (rule.at, rule.until) if end is not None)
        self.log_x, self.log_y = chart.log_x and min(xs) > 0, chart.log_y and min(ys) > 0
        edge = 0.04 if not chart.at else 0.08
        self.x0, self.x1 = (-0.5, len(chart.names) - 0.5) if chart.names else self._x_range(xs, edge)
        low, high = ticks.padded(ys, log=self.log_y)
        low, high = max(low, chart.limits[0]), min(high, chart.limits[1])
        self.y0, self.y1 = (low, high) if low < high else ticks.padded(ys, log=self.log_y)
        self.y_ticks = (ticks.logarithmic if self.log_y else ticks.linear)(self.y0, self.y1)
        self.left = 16 + max(_width(ticks.label(tick)) for tick in self.y_ticks)
        self.right, self.top, self.bottom = _WIDTH - _RIGHT, _TOP, _TOP + _PLOT_HEIGHT

    def said(self, text: str) -> str:
        """A text from outside, fit to be shown; not escaped yet."""
        return shown(self.written(text), one_line=True)

    def _x_range(self, xs: list[float], edge: float) -> tuple[float, float]:
        low, high = ticks.padded(xs, log=self.log_x, share=edge)
        begin = self.chart.x_from
        return (low, high) if begin is None else (begin, high if max(xs) > begin else begin + 1)

    def px(self, x: float) -> float:
        """Pixel of a value along the bottom."""
        low, high, x = (math.log10(v) for v in (self.x0, self.x1, x)) if self.log_x else (self.x0, self.x1, x)
        return self.left + (x - low) / (high - low) * (self.right - self.left)

    def py(self, y: float) -> float:
        """Pixel of a value upward."""
        y = min(max(y, self.y0), self.y1)
        low, high, y = (math.log10(v) for v in (self.y0, self.y1, y)) if self.log_y else (self.y0, self.y1, y)
        return self.bottom - (y - low) / (high - low) * (self.bottom - self.top)

    def svg(self, alone: bool) -> str:
        below, height = self._bottom()
        key, height = self._legend(height + 8)
        parts = [*self._bands(), *self._grid(), *self._rules()]
        for series in self.chart.series:
            parts += self._series(series)
        parts += [*below, *key]
        size = f'viewBox="0 0 {_WIDTH:g} {height:g}"'
        label = escape(self.said(self.chart.words()))
        body = f"{_text('t', 0, 16, self.said(self.chart.title))}{''.join(parts)}"
        if not alone:
            return f'<svg class="chart" {size} role="img" aria-label="{label}">{body}</svg>'
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" {size} width="{2 * _WIDTH:g}"'
            f' height="{2 * height:g}" role="img" aria-label="{label}"><style>{style(alone=True)}</style>'
            f'<rect class="ground" width="100%" height="100%"/><g transform="translate(8 4) scale(.965)">{body}</g>'
            "</svg>"
        )

    # -- axes

    def _grid(self) -> Iterator[str]:
        for tick in self.y_ticks:
            y = self.py(tick)
            yield f'<path class="g" d="M{self.left:.1f} {y:.1f}H{self.right:.1f}"/>'
            yield _text("e", self.left - 6, y + 4, ticks.label(tick))

    def _bottom(self) -> tuple[list[str], float]:
        """The axis, its numbers or names, what they are; and where all of it ends."""
        named = [(float(i), name) for i, name in enumerate(self.chart.names)] or list(self.chart.at)
        if not named:
            inner = (ticks.logarithmic if self.log_x else ticks.linear)(self.x0, self.x1)
            named = [(tick, ticks.label(tick)) for tick in inner]
        places = [(self.px(x), _cut(self.said(name))) for x, name in named]
        widths = [_width(name) for _, name in places]
        turned = not _apart([(px, wide) for (px, _), wide in zip(places, widths, strict=True)])
        y = self.bottom
        parts = [f'<path class="a" d="M{self.left:.1f} {y:.1f}H{self.right:.1f}"/>']
        for px, name in places:
            parts.append(f'<path class="a" d="M{px:.1f} {y:.1f}v4"/>')
            parts.append(_turned(px + 4, y + 14, name) if turned else _text("m", px, y + 18, name))
        end = y + 22 + (max(widths) * math.sin(math.radians(_TURN)) if turned else 0)
        parts.append(_text("m q", (self.left + self.right) / 2, end + 12, self.said(self.chart.x)))
        return parts, end + 18

    def _legend(self, top: float) -> tuple[list[str], float]:
        entries = [(series.name, self._sample(series)) for series in self.chart.series if series.name]
        entries += [(rule.name, _sample_of(rule)) for rule in self.chart.rules if rule.name]
        entries += [(self.chart.note, "")] if self.chart.note else []
        parts, x, y = [], 0.0, top + 6
        for name, sample in entries:
            text, indent = _cut(self.said(name), _LONGEST), 30 if sample else 0
            wide = indent + _width(text) + 16
            if x and x + wide > _WIDTH:
                x, y = 0.0, y + _LINE + 2
            parts.append(f'<g transform="translate({x:.1f} {y:.1f})">{sample}{_text("l", indent, 4, text)}</g>')
            x += wide
        return parts, (y + 10 if entries else top)

    def _sample(self, series: Series) -> str:
        drawn = series.line and self._path(series.points)
        line = f'<path class="n s{_of(series.colour)}" {_dashed(series)} d="M0 0H22"/>' if drawn else ""
        mark = _marked(series)
        return line + (_mark(mark, 11, 0, series.colour) if mark else "")

    # -- content

    def _bands(self) -> Iterator[str]:
        for rule in self.chart.rules:
            if rule.until is None:
                continue
            low, high = sorted((rule.at, rule.until))
            x, wide = self.px(low), self.px(high) - self.px(low)
            where = f'x="{x:.1f}" y="{self.top}" width="{wide:.1f}" height="{_PLOT_HEIGHT}"'
            yield f'<rect class="b f{rule.colour}" {where}/>'

    def _rules(self) -> Iterator[str]:
        for rule in self.chart.rules:
            if rule.until is not None:
                continue
            if rule.vertical:
                yield f'<path class="r s{rule.colour}" d="M{self.px(rule.at):.1f} {self.top}V{self.bottom}"/>'
            else:
                yield f'<path class="r s{rule.colour}" d="M{self.left:.1f} {self.py(rule.at):.1f}H{self.right:.1f}"/>'

    def _series(self, series: Series) -> Iterator[str]:
        colour = _of(series.colour)
        if series.line and (path := self._path(series.points)):
            yield f'<path class="n s{colour}" {_dashed(series)} d="{path}"/>'
        for (x, y), half in zip(series.points, series.half, strict=False):
            if half:
                px, low, high = self.px(x), self.py(y - half), self.py(y + half)
                ends = f"M{px - 4:.1f} {low:.1f}h8M{px - 4:.1f} {high:.1f}h8"
                yield f'<path class="i s{colour}" d="M{px:.1f} {low:.1f}V{high:.1f}{ends}"/>'
        if mark := _marked(series):
            for x, y in series.points:
                if math.isfinite(y):
                    yield _mark(mark, self.px(x), self.py(y), series.colour)
        for x, y in series.dots:
            if math.isfinite(y):
                # Runs that lie close together would be hidden by their mean.
                px = self.px(x) + (_BESIDE if self.px(x) + 2 * _BESIDE < self.right else -_BESIDE)
                yield f'<circle class="d s{colour}" cx="{px:.1f}" cy="{self.py(y):.1f}" r="3"/>'

    def _path(self, points: Sequence[Point]) -> str:
        """One line; where a value cannot be drawn it is broken."""
        words, pen_up = [], True
        for x, y in points:
            if not math.isfinite(y) or (self.log_y and y <= 0):
                pen_up = True
                continue
            words.append(f"{'M' if pen_up else 'L'}{self.px(x):.1f} {self.py(y):.1f}")
            pen_up = False
        return "".join(words) if len(words) > 1 else ""


def _marked(series: Series) -> Mark | None:
    """The mark of its points; a single one has no line by which it would be seen without."""
    alone = sum(math.isfinite(y) for _, y in series.points) == 1
    return series.mark or ("circle" if alone else None)


def _text(kind: str, x: float, y: float, text: str, more: str = "") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}"{more}>{escape(text)}</text>'


def _turned(x: float, y: float, text: str) -> str:
    return _text("e", x, y, text, f' transform="rotate(-{_TURN} {x:.1f} {y:.1f})"')


def _sample_of(rule: Rule) -> str:
    if rule.until is None:
        return f'<path class="r s{rule.colour}" d="M0 0H22"/>'
    return f'<rect class="b f{rule.colour}" x="0" y="-6" width="22" height="12"/>'


def _of(colour: int) -> int:
    return colour % len(LIGHT)


def _dashed(series: Series) -> str:
    pattern = _DASHES[(series.colour if series.dashes is None else series.dashes) % len(_DASHES)]
    return f'stroke-dasharray="{pattern}"' if pattern else ""


def _mark(mark: Mark, x: float, y: float, colour: int) -> str:
    paths = {
        "square": "M-4 -4h8v8h-8z",
        "triangle": "M0 -5l5 9h-10z",
        "diamond": "M0 -5.5L5.5 0L0 5.5L-5.5 0z",
        "star": "M0 -8l2 5.4h5.6l-4.5 3.4l1.7 5.5l-4.8 -3.4l-4.8 3.4l1.7 -5.5l-4.5 -3.4h5.6z",
    }
    n = _of(colour)
    if mark == "circle":
        return f'<circle class="f{n} k" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
    move = f'transform="translate({x:.1f} {y:.1f})"'
    if mark in ("cross", "dash"):
        return f'<path class="n s{n}" {move} d="{"M-4 -4l8 8M4 -4l-8 8" if mark == "cross" else "M-8 0h16"}"/>'
    return f'<path class="f{n} k" {move} d="{paths[mark]}"/>'


def _width(text: str) -> float:
    """Of a text at the size of ticks, about, in units of the figure."""
    return _LETTER * sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def _cut(text: str, most: int = _MOST_LETTERS) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _apart(places: list[tuple[float, float]]) -> bool:
    """Whether names of a width at their places do not touch."""
    return all(b - a > (wide + other) / 2 + 4 for (a, wide), (b, other) in pairwise(sorted(places)))
