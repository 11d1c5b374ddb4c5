"""The answer in a sentence: where pre-training is worth it, by how much, and where that cannot be said."""

from __future__ import annotations

from itertools import groupby

from dsdmae_cli.worth.findings import Gain


def answer(gains: list[Gain], seeds: int) -> str:
    """The first sentence of the page.

    Args:
        gains: of the run over the network without pre-training, with ascending numbers of labels.
    """
    if seeds == 1:
        return f"One seed, so that nothing can be said of chance: {_figures(gains)}."
    # Stretches of numbers of labels with the same verdict: 1 worth it, -1 worse, 0 not told apart.
    parts = [(sign, list(group)) for sign, group in groupby(gains, key=lambda gain: gain.sign)]
    if all(sign == 1 for sign, _ in parts):
        return f"Worth it {_everywhere(gains)}: {_figures(gains)}."
    if all(sign == -1 for sign, _ in parts):
        return f"Not worth it, worse {_everywhere(gains)}: {_figures(gains)}."
    if all(sign == 0 for sign, _ in parts):
        return f"No difference that {seeds} seeds show {_everywhere(gains)}: {_figures(gains)}."
    # What is worth it is said first; the rest follows in the order of labels.
    ordered = sorted(parts, key=lambda part: part[0] != 1)
    said = [f"{_lead(sign, seeds)} {_where(group, gains)}: {_figures(group)}" for sign, group in ordered]
    return said[0][0].upper() + "; ".join(said)[1:] + "."


def _lead(sign: int, seeds: int) -> str:
    return {1: "worth it", -1: "worse", 0: f"no difference that {seeds} seeds show"}[sign]


def _everywhere(gains: list[Gain]) -> str:
    return "at every number of labels tried" if len(gains) > 1 else f"with {gains[0].labels:,} labels"


def _where(group: list[Gain], everything: list[Gain]) -> str:
    first, last = group[0], group[-1]
    if len(group) > 1 and first is everything[0]:
        return f"up to {last.labels:,} labels"
    if len(group) > 1 and last is everything[-1]:
        return f"from {first.labels:,} labels on"
    if len(group) > 1:
        return f"from {first.labels:,} to {last.labels:,} labels"
    return f"with {'all ' if first.share == 1 else ''}{first.labels:,} labels"


def _figures(group: list[Gain]) -> str:
    """The gains of the fewest and of the most labels of a stretch."""
    shown = group if len(group) == 1 else [group[0], group[-1]]
    return ", ".join(points(gain) + (f" with {gain.labels:,}" if len(group) > 1 else "") for gain in shown)


def points(gain: Gain) -> str:
    """+6.1 points (4.8, 7.4)."""
    interval = gain.interval
    return f"{100 * gain.mean:+.1f} points" + (
        f" ({100 * interval[0]:.1f}, {100 * interval[1]:.1f})" if interval is not None else ""
    )
