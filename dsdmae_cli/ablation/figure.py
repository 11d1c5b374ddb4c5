"""The figure of a study: its metric over what was swept, every run a dot, means with their 95% interval."""

from __future__ import annotations

import io
import statistics as st
from pathlib import Path
from typing import Any

from dsdmae_cli.ablation.paper import dataset_title, paper_dataset
from dsdmae_cli.ablation.results import Results, Setting
from dsdmae_cli.ablation.sweep import Axis
from dsdmae_cli.files import write_bytes

_COLOURS = ("#2166ac", "#b2182b", "#1b7837", "#e08214", "#762a83", "#35978f", "#8c510a", "#4d4d4d")
_PAPER = "#c07000"
_UNTRAINED = "#808080"
_MOST_BELOW = 2  # heights of the range of values, beyond which the untrained network is no longer drawn
_LETTERS_PER_INCH = 7  # of words along the bottom of a panel; where there are more they are turned


def draw(results: Results, folder: Path) -> dict[str, bytes]:
    """{"png": ..., "svg": ...} of the study, also written to folder/ablation.png and .svg; empty without values."""
    if not results.ranked:
        return {}
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    axes = results.definition.axes
    # Two axes of a grid share a panel; a search, or three and more, get a panel each.
    paired = results.definition.search == "grid" and len(axes) <= 2
    panels = [_roles(axes)[0]] if paired else list(axes)
    figure = Figure(figsize=(max(6.4, 4.2 * len(panels)), 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    for panel, axis in zip(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels, strict=True):
        if paired and len(axes) == 2:
            bottom, lines = _roles(axes)
            _families(panel, results, bottom, lines)
        elif paired:
            _family(panel, results.settings, axis, results, _COLOURS[0], None)
        else:
            _cloud(panel, results, axis)
        _untrained(panel, axis, results)
        _scale(panel, axis, results)
        if paired and len(axes) == 1:
            _paper(panel, results, axis)
    left = figure.axes[0]
    handles, labels = left.get_legend_handles_labels()
    if handles:  # below the panels, where it hides no point
        figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), frameon=False, fontsize=9)
    left.set_ylabel(results.definition.metric.label + (", %" if results.definition.metric.is_share else ""))
    figure.suptitle(results.title, fontsize=11)
    found: dict[str, bytes] = {}
    folder.mkdir(exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": "dsdmae"}):  # the same study draws the same file
        for kind in ("png", "svg"):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
            found[kind] = buffer.getvalue()
            write_bytes(folder / f"ablation.{kind}", found[kind])
    return found


def _roles(axes: tuple[Axis, ...]) -> tuple[Axis, ...]:
    """Of two axes, which lies along the bottom and which has a line for each value: numbers go to the bottom."""
    return tuple(sorted(axes, key=lambda axis: axis.numbers is None))


def _families(panel: Any, results: Results, bottom: Axis, lines: Axis) -> None:
    for index, value in enumerate(lines.values):
        members = [s for s in results.settings if s.point[lines.key] == value]
        _family(panel, members, bottom, results, _COLOURS[index % len(_COLOURS)], f"{lines.key} {value}")


def _family(panel: Any, settings: list[Setting], axis: Axis, results: Results, colour: str, label: str | None) -> None:
    """One line (of numbers) or row of points (of words) with intervals, and every run as a faint dot."""
    known = sorted(((_place(axis, s), s) for s in settings if s.summary), key=lambda pair: pair[0])
    scale = 100 if results.definition.metric.is_share else 1
    for x, setting in known:
        panel.plot([x] * len(setting.values), [scale * v for v in setting.values], "o", color=colour, alpha=0.3,
                   markersize=4, markeredgewidth=0)  # fmt: skip
    panel.errorbar(
        [x for x, _ in known],
        [scale * s.summary.mean for _, s in known if s.summary],
        yerr=[scale * (s.summary.half or 0) for _, s in known if s.summary],
        fmt="o-" if axis.numbers else "o",
        color=colour,
        capsize=4,
        markersize=6,
        linewidth=1.4,
        label=label or ("mean, 95% interval" if any(s.summary and s.summary.half for _, s in known) else None),
    )


def _cloud(panel: Any, results: Results, axis: Axis) -> None:
    """Every setting of a search over one of its axes; the best stands out."""
    scale = 100 if results.definition.metric.is_share else 1
    for setting in reversed(results.ranked):
        assert setting.summary is not None
        best = setting is results.ranked[0]
        panel.plot(
            [_place(axis, setting)], [scale * setting.summary.mean], "*" if best else "o",
            color=_COLOURS[1 if best else 0], markersize=12 if best else 5, alpha=1 if best else 0.7,
            label="best" if best else None,
        )  # fmt: skip


def _untrained(panel: Any, axis: Axis, results: Results) -> None:
    """The network before training: one line, or a dash for each setting where they start from different ones."""
    style = {"color": _UNTRAINED, "linestyle": "--", "linewidth": 1.1, "zorder": 1}
    if results.baseline is not None:
        (low, high), y = panel.get_ylim(), 100 * results.baseline.mean
        if low - _MOST_BELOW * (high - low) < y < high + _MOST_BELOW * (high - low):
            panel.axhline(y, label="untrained network", **style)
        else:  # the line would flatten what the figure is about
            panel.plot([], [], label=f"untrained network: {y:.1f}%, off the axis", **style)
        return
    for index, setting in enumerate(results.untrained):
        x, y = _place(axis, setting), 100 * st.mean(setting.untrained.values())
        if axis.numbers is None:
            panel.hlines(y, x - 0.3, x + 0.3, label=None if index else "untrained network", **style)
        else:
            panel.plot(x, y, "_", color=_UNTRAINED, markersize=14, label=None if index else "untrained network")


def _place(axis: Axis, setting: Setting) -> float:
    value = setting.point[axis.key]
    return float(value) if axis.numbers is not None else float(axis.values.index(value))


def _scale(panel: Any, axis: Axis, results: Results) -> None:
    numbers = axis.numbers
    panel.set_xlabel(axis.key)
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(axis="y", alpha=0.25)
    if numbers is None:
        inches = panel.figure.get_figwidth() / len(panel.figure.axes)
        turned = sum(map(len, axis.values)) > _LETTERS_PER_INCH * inches
        turn = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if turned else {}
        panel.set_xticks(range(len(axis.values)), axis.values, **turn)
        panel.set_xlim(-0.5, len(axis.values) - 0.5)
    else:
        if axis.span is not None and axis.span.log:
            panel.set_xscale("log")
        if results.definition.search == "grid" and len(numbers) <= 8:
            panel.set_xticks(numbers, axis.values)
            panel.minorticks_off()


def _paper(panel: Any, results: Results, axis: Axis) -> None:
    """What the paper states, where the dataset is one of its three."""
    paper, dataset = results.paper, paper_dataset(results.definition.common())
    if not results.draws_paper or paper is None or dataset is None:
        return
    name = f"paper, {dataset_title(dataset)}"
    if paper.best is not None:
        low, high = paper.best
        if low == high:
            panel.axvline(low, color=_PAPER, linestyle="--", linewidth=1.2, label=f"{name}: best at {low:g}")
        else:
            panel.axvspan(
                low, high, color=_PAPER, alpha=0.15, linewidth=0, label=f"{name}: best from {low:g} to {high:g}"
            )
    known = [(axis.values.index(v), 100 * p) for v, p in results.paper_points.items() if v in axis.values]
    if known:
        panel.plot([x + 0.12 for x, _ in known], [y for _, y in known], "D", color=_PAPER, markersize=6, label=name)
