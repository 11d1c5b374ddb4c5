"""The figures of a study: its metric over what was swept, every run a dot, means with their 95% interval."""

from __future__ import annotations

import statistics as st
from collections.abc import Iterator
from dataclasses import replace

from dsdmae_cli.ablation.paper import dataset_title, paper_dataset
from dsdmae_cli.ablation.results import Results, Setting
from dsdmae_cli.ablation.sweep import Axis
from dsdmae_cli.page.chart import MARKS, QUIET, Chart, Point, Rule, Series

_PAPER = 4  # the colour of what the paper says
_MOST_BELOW = 4  # heights of the range of values, beyond which the untrained network is no longer drawn
_MOST_TICKS = 8


def charts(results: Results) -> list[Chart]:
    """One for each axis; two axes of a grid share one. None without values."""
    if not results.ranked:
        return []
    axes = results.definition.axes
    paired = results.definition.search == "grid" and len(axes) <= 2
    panels = [_roles(axes)[0]] if paired else list(axes)
    return [_chart(results, axis, number, paired) for number, axis in enumerate(panels)]


def _chart(results: Results, axis: Axis, number: int, paired: bool) -> Chart:
    axes, metric = results.definition.axes, results.definition.metric
    if not paired:
        series = _cloud(results, axis)
    elif len(axes) == 2:
        series = _families(results, *_roles(axes))
    else:
        series = [_family(results, results.settings, axis, 0, "")]
    rules = list(_paper_rules(results, axis)) if paired and len(axes) == 1 else []
    if paired and len(axes) == 1 and (theirs := _paper_points(results, axis)):
        series.append(theirs)
    chart = Chart(
        "ablation" if number == 0 else f"ablation-{number + 1}",
        f"{metric.label}{', %' if metric.is_share else ''}",
        axis.key,
        series,
        rules,
        names=() if axis.numbers is not None else axis.values,
        at=_ticks(results, axis),
        log_x=axis.span is not None and axis.span.log,
        limits=(0, 100) if metric.is_share else (float("-inf"), float("inf")),
    )
    return _with_untrained(results, axis, chart)


def _roles(axes: tuple[Axis, ...]) -> tuple[Axis, ...]:
    """Of two axes, which lies along the bottom and which has a line for each value: numbers go to the bottom."""
    return tuple(sorted(axes, key=lambda axis: axis.numbers is None))


def _families(results: Results, bottom: Axis, lines: Axis) -> list[Series]:
    found = []
    for number, value in enumerate(lines.values):
        members = [s for s in results.settings if s.point[lines.key] == value]
        found.append(_family(results, members, bottom, number, f"{lines.key} {value}"))
    return found


def _family(results: Results, settings: list[Setting], axis: Axis, colour: int, name: str) -> Series:
    """One line (of numbers) or row of points (of words) with intervals, and every run as a dot."""
    scale = _scale(results)
    known = sorted(((_place(axis, s), s, s.summary) for s in settings if s.summary), key=lambda found: found[0])
    half = [None if summary.half is None else scale * summary.half for _, _, summary in known]
    return Series(
        name or ("mean, 95% interval; rings are runs" if any(half) else ""),
        [(x, scale * summary.mean) for x, _, summary in known],
        half,
        [(x, scale * value) for x, setting, _ in known if len(setting.values) > 1 for value in setting.values],
        line=axis.numbers is not None,
        mark=MARKS[colour % len(MARKS)],
        colour=colour,
    )


def _cloud(results: Results, axis: Axis) -> list[Series]:
    """Every setting of a search over one of its axes; the best stands out."""
    scale = _scale(results)
    points = [(_place(axis, s), scale * s.summary.mean) for s in results.ranked if s.summary]
    others = points if results.incomparable else points[1:]
    found = [Series("a setting", sorted(others), line=False, mark="circle")] if others else []
    best = Series("best", points[:1], line=False, mark="star", colour=1)
    return found if results.incomparable else [*found, best]


def _with_untrained(results: Results, axis: Axis, chart: Chart) -> Chart:
    """The network before training: one line, or a dash for each setting where they start from different ones."""
    if not results.untrained:
        return chart
    if results.baseline is None:
        points: list[Point] = [(_place(axis, s), 100 * st.mean(s.untrained.values())) for s in results.untrained]
        dashes = Series("untrained network", sorted(points), line=False, mark="dash", colour=QUIET)
        return replace(chart, series=[*chart.series, dashes])
    values = [y for series in chart.series for _, y in series.finite]
    low, high, y = min(values), max(values), 100 * results.baseline.mean
    room = _MOST_BELOW * ((high - low) or 1)
    if low - room < y < high + room:
        return replace(chart, rules=[*chart.rules, Rule(f"untrained network: {y:.1f}%", y)])
    # The line would flatten what the figure is about.
    return replace(chart, note=f"untrained network: {y:.1f}%, off the axis")


def _scale(results: Results) -> int:
    return 100 if results.definition.metric.is_share else 1


def _place(axis: Axis, setting: Setting) -> float:
    value = setting.point[axis.key]
    return float(value) if axis.numbers is not None else float(axis.values.index(value))


def _ticks(results: Results, axis: Axis) -> list[tuple[float, str]]:
    numbers = axis.numbers
    if numbers is None or results.definition.search != "grid" or len(numbers) > _MOST_TICKS:
        return []
    run = {setting.point[axis.key] for setting in results.settings}  # all but twins
    return [(number, value) for number, value in zip(numbers, axis.values, strict=True) if value in run]


def _paper_name(results: Results) -> str | None:
    """ "paper, CIFAR-10", where the dataset is one of its three and its figures may stand on our axis."""
    dataset = paper_dataset(results.definition.common())
    return f"paper, {dataset_title(dataset)}" if results.draws_paper and dataset is not None else None


def _paper_rules(results: Results, axis: Axis) -> Iterator[Rule]:
    name = _paper_name(results)
    if name is None or results.paper is None or results.paper.best is None:
        return
    low, high = results.paper.best
    if low == high:
        yield Rule(f"{name}: best at {low:g}", low, vertical=True, colour=_PAPER)
    else:
        yield Rule(f"{name}: best from {low:g} to {high:g}", low, high, vertical=True, colour=_PAPER)


def _paper_points(results: Results, axis: Axis) -> Series | None:
    name = _paper_name(results)
    known = [(axis.values.index(v), 100 * p) for v, p in results.paper_points.items() if v in axis.values]
    if name is None or not known:
        return None
    return Series(name, [(x + 0.12, y) for x, y in known], line=False, mark="diamond", colour=_PAPER)
