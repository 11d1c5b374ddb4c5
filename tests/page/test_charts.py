"""Charts of pages: ticks, labels, points at their places, colours that can be read, and files of their own."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from parsed import HOSTILE

from dsdmae_cli.page import ticks
from dsdmae_cli.page.chart import Chart, Rule, Series
from dsdmae_cli.page.document import Places, write_charts
from dsdmae_cli.page.palette import DARK, LIGHT, style, variables


@given(st.floats(-1e6, 1e6), st.floats(1e-5, 1e6))
def test_ticks_are_round_few_and_within(low: float, width: float) -> None:
    high = low + width
    if high - low < 1e-6 * max(1.0, abs(low)):
        return
    found = ticks.linear(low, high)
    assert 2 <= len(found) <= 11
    assert all(low - 1e-6 * width <= tick <= high + 1e-6 * width for tick in found)
    steps = [b - a for a, b in pairwise(found)]
    assert max(steps) - min(steps) <= 1e-6 * max(1.0, abs(low), abs(high))


@given(st.floats(1e-8, 1e6), st.floats(1.1, 1e9))
def test_ticks_of_logarithms_are_few_and_within(low: float, times: float) -> None:
    found = ticks.logarithmic(low, low * times)
    assert 2 <= len(found) <= 12
    assert all(low * (1 - 1e-6) <= tick <= low * times * (1 + 1e-6) for tick in found)


@pytest.mark.parametrize(
    ("value", "words"),
    [(0, "0"), (0.0005, "0.0005"), (1e-5, "1e-5"), (2.5e-7, "2.5e-7"), (1500, "1,500"), (0.25, "0.25"), (2e7, "2e7")],
)
def test_labels_of_ticks(value: float, words: str) -> None:
    assert ticks.label(value) == words


def test_a_figure_shows_every_point_at_its_place() -> None:
    points = [(0.0, 1.0), (1.0, 3.0), (2.0, 2.0)]
    svg = Chart("x", "title", "epoch", [Series("a", points, mark="circle")]).svg()
    marks = [(float(e.get("cx", "")), float(e.get("cy", ""))) for e in ElementTree.fromstring(svg).iter("circle")][:3]
    (x0, y0), (x1, y1), (x2, y2) = marks
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.11)
    assert (y0 - y2) == pytest.approx((y0 - y1) / 2, abs=0.11)  # upward is smaller


@pytest.mark.parametrize(
    "values", [[], [math.nan], [math.inf, 1.0, -math.inf], [0.0], [5.0, 5.0], [1e-30, 1e30], [-1.0, 0.0]]
)
@pytest.mark.parametrize("log", [False, True])
def test_odd_values_are_drawn_or_left_out(values: list[float], log: bool) -> None:
    chart = Chart("x", "t", "epoch", [Series("s", list(enumerate(values)))], [Rule("r", 0.5)], log_y=log, log_x=log)
    assert chart.drawable == any(map(math.isfinite, values))
    svg = chart.svg()
    assert "nan" not in svg
    if svg:
        ElementTree.fromstring(svg)


def test_a_figure_is_a_file_too(tmp_path: Path) -> None:
    drawn = Chart("loss", HOSTILE[0], HOSTILE[4], [Series(HOSTILE[1], [(0, 1), (1, 2)])], names=HOSTILE[:2])
    [path] = write_charts([drawn, Chart("empty", "", "")], tmp_path / "figures", Places())
    assert [p.name for p in path.parent.iterdir()] == ["loss.svg"]
    svg = ElementTree.parse(path).getroot()
    assert not [e for e in svg.iter() if e.tag.endswith(("script", "img"))]
    assert HOSTILE[0] in "".join(svg.itertext())


def contrast(one: str, other: str) -> float:
    """Of two colours: WCAG 2.1, from 1 to 21."""

    def light(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    a, b = sorted((light(one), light(other)))
    return (b + 0.05) / (a + 0.05)


def test_colours_have_contrast() -> None:
    grounds = re.findall("--ground:(#......)", variables())
    assert len(grounds) == 2
    for ground, colours in zip(grounds, (LIGHT, DARK), strict=True):
        assert min(contrast(colour, ground) for colour in colours) >= 4.5
    for ground, soft in zip(grounds, re.findall("--soft:(#......)", variables()), strict=True):
        assert contrast(ground, soft) >= 4.5


def test_a_chart_of_its_own_has_its_colours_in_its_rules() -> None:
    """Programs that know no variables of CSS, as most image viewers, would paint it black."""
    assert "var(" in style()
    alone = style(alone=True)
    assert "var(" not in alone
    light, dark = alone.split("@media (prefers-color-scheme:dark)")
    assert all(colour in light and colour not in dark for colour in LIGHT)
    assert all(colour in dark and colour not in light for colour in DARK)


def test_runs_that_lie_at_their_mean_are_seen_beside_it() -> None:
    points, runs = [(0.0, 50.0), (1.0, 60.0)], [(0.0, 50.1), (0.0, 49.9), (1.0, 60.0)]
    drawn = Chart("a", "accuracy, %", "x", [Series("", points, [None, None], runs, mark="circle")]).svg()
    rings = [float(x) for x in re.findall(r'class="d s0" cx="([\d.]+)"', drawn)]
    means = [float(x) for x in re.findall(r'class="f0 k" cx="([\d.]+)"', drawn)]
    assert (len(rings), len(means)) == (3, 2)
    assert all(abs(ring - mean) > 4 + 3 for ring in rings for mean in means)
    assert max(rings) + 3 < 400


def test_the_legend_shows_what_is_drawn() -> None:
    alone = Chart("a", "accuracy, %", "epoch", [Series("training images", [(1.0, 20.0)], colour=2)]).svg()
    assert "M0 0H22" not in alone  # a line that is not in the figure
    assert alone.count("<circle") == 2


def test_what_is_zero_throughout_has_no_axis_below_it() -> None:
    assert ticks.padded([0.0, 0.0]) == (0.0, 1.0)
