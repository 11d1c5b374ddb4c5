"""What is left for people: report.html (one file, opens offline), report.md and the figure."""

from __future__ import annotations

import base64
import io
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from dsdmae_cli.evaluation.statistics import Summary
from dsdmae_cli.files import write_bytes
from dsdmae_cli.report import duration, markdown, shown
from dsdmae_cli.worth.findings import Findings
from dsdmae_cli.worth.tasks import HELD_OUT, WAYS, Contender
from dsdmae_cli.worth.words import answer, points

_COLOURS = ("#7f7f7f", "#2166ac", "#e08214", "#1b7837", "#762a83")
_MARKS = {"linear": "o", "ep": "s", "finetune": "^"}
_FIGURE = "worth"


def write(findings: Findings, folder: Path, command: str, epochs: int, wall: float) -> str:
    """Write the page; what it says first.

    Args:
        epochs: of fine-tuning with all labels.
        wall: seconds that it took here.
    """
    said = sentences(findings)
    svg = draw(findings, folder / "figures")
    templates = Environment(
        loader=PackageLoader("dsdmae_cli.worth"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True, autoescape=lambda name: bool(name and name.endswith(".html")),
    )  # fmt: skip
    templates.filters["markdown"] = markdown
    templates.filters["in_one_line"] = partial(shown, one_line=True)
    question = findings.question
    content = {
        "title": f"Does pre-training pay on {question.settings.data.dataset}?",
        "said": said,
        "names": [contender.name for contender in question.contenders],
        "best": _best_rows(findings),
        "every": _every_row(findings),
        "costs": _costs(findings),
        "notes": [*_protocol(findings, epochs), *findings.notes],
        "command": command,
        "wall": duration(wall),
        "image": base64.b64encode(svg).decode(),
    }
    for name in ("report.html", "report.md"):
        write_bytes(folder / name, templates.get_template(name).render(**content).encode())
    return said[0]


def sentences(findings: Findings) -> list[str]:
    """The answer; how the networks beside the run do against it."""
    scratch, run, *others = findings.question.contenders
    said = [answer(findings.gains(run, scratch), findings.question.seeds)]
    for other in others:
        gains = findings.gains(run, other)
        against = ", ".join(f"{points(gain)} with {gain.labels:,} labels" for gain in gains)
        said.append(f"{run.name} against {other.name}: {against}.")
    return said


def _percent(summary: Summary) -> str:
    half = "" if summary.half is None else f" ± {100 * summary.half:.1f}"
    return f"{100 * summary.mean:.1f}{half}"


def _best_rows(findings: Findings) -> list[dict[str, Any]]:
    """A row for each number of labels: every network judged its best way, and the run's gain."""
    question = findings.question
    gains = {gain.share: gain for gain in findings.gains(question.contenders[1], question.contenders[0])}
    rows = []
    for share, labels in zip(question.shares, question.labels, strict=True):
        cells = []
        for contender in question.contenders:
            way, best = findings.best_way(contender, share), findings.best(contender, share)
            cells.append("-" if best is None or way is None else f"{_percent(best.summary)} ({WAYS[way]})")
        gain = gains.get(share)
        rows.append(
            {
                "labels": f"{labels:,} ({100 * share:g}%)",
                "cells": cells,
                "gain": "-" if gain is None else points(gain),
                "sign": 0 if gain is None else gain.sign,
            }
        )
    return rows


def _every_row(findings: Findings) -> list[dict[str, Any]]:
    """Every network, number of labels and way, with each seed."""
    question = findings.question
    names = {contender.key: contender for contender in question.contenders}
    labels = dict(zip(question.shares, question.labels, strict=True))
    rows = []
    keys, ways = list(names), list(WAYS)
    order = sorted(findings.scores, key=lambda cell: (cell[1], ways.index(cell[2]), keys.index(cell[0])))
    for key, share, way in order:
        scores = findings.scores[key, share, way]
        rows.append(
            {
                "labels": f"{labels[share]:,}",
                "way": WAYS[way],
                "name": names[key].name,
                "top1": _percent(scores.summary),
                "seeds": ", ".join(f"{100 * value:.2f}" for value in scores.top1.values()),
                "held_out": _mean(scores.held_out),
                "chosen": findings.best_way(names[key], share) == way,
            }
        )
    return rows


def _mean(values: dict[int, float]) -> str:
    return f"{100 * sum(values.values()) / len(values):.1f}" if values else "-"


def _costs(findings: Findings) -> list[dict[str, str]]:
    """What each network took: its pre-training, and its judging by way, all seeds and numbers of labels together."""
    return [_cost(findings, contender) for contender in findings.question.contenders]


def _cost(findings: Findings, contender: Contender) -> dict[str, str]:
    before = findings.before.get(contender.key, {})
    seconds, flops = before.get("pretrain_seconds"), before.get("pretrain_flops")
    row = {
        "name": contender.name,
        "pretraining": "none" if contender.word == "scratch" else _time_and_work(seconds, flops) or "not known",
    }
    for way in WAYS:
        cells = [scores for (key, _, kind), scores in findings.scores.items() if (key, kind) == (contender.key, way)]
        row[way] = _time_and_work(sum(s.seconds for s in cells), sum(s.flops for s in cells)) or "-"
    return row


def _time_and_work(seconds: float | None, flops: float | None) -> str:
    parts = [duration(seconds)] if seconds else []
    if flops:
        parts.append(f"{flops / 1e12:.3g} TFLOP")
    return ", ".join(parts)


def _protocol(findings: Findings, epochs: int) -> list[str]:
    question = findings.question
    rate = question.settings.optim.base_lr
    seeds = (
        f"{question.seeds} seeds, each with labels of its own draw (nested: 1% is part of 10%) and, without"
        " pre-training, first weights of its own; the run is one pre-training, so that the intervals (95%, Student's t"
        " over the seeds, gains paired) know nothing of what another pre-training would give."
    )
    choice = (
        f"A network is judged the way that is best on held-out training images ({HELD_OUT:.0%} of its labels, mean over"
        f" the seeds; of a probe that is the best of several learning rates, which flatters it a little where held-out"
        f" images are few). The {findings.test_images:,} test images were read for the scores alone and chose nothing;"
        f" who always names their largest class is right in {findings.chance:.1%}."
    )
    chance = (
        "An interval is the wider of two, over the seeds and over the test images; numbers of labels are judged one by"
        " one, without a correction for how many there are. With all labels the seeds share the labels."
    )
    ways = (
        f"Linear probe: MAE's protocol; efficient probe: 32 learned queries, all labels; fine-tuning: AdamW, {epochs}"
        f" epochs of all labels and up to ten times as many of fewer, peak rate {rate:g} × batch/256, trained on"
        " what is not held out (at least one image of each class is), where probes are fitted anew to all labels."
    )
    sizes = "; ".join(f"{c.name}: {c.size}" for c in question.contenders if c.size)
    return [seeds, chance, choice, ways, f"What each network is given: {sizes}."]


# -- the figure


def draw(findings: Findings, folder: Path) -> bytes:
    """Accuracy over labels, a colour for each network, a mark for each way: as SVG, also written as .png and .svg."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    question = findings.question
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    panel = figure.subplots()
    labels = dict(zip(question.shares, question.labels, strict=True))
    for colour, contender in zip(cycle(_COLOURS), question.contenders, strict=False):
        for way, title in WAYS.items():
            known = [(labels[share], findings.of(contender, share)[way].summary) for share in question.shares
                     if way in findings.of(contender, share)]  # fmt: skip
            if known:
                counts, summaries = zip(*known, strict=True)
                panel.errorbar(
                    counts, [100 * s.mean for s in summaries], yerr=[100 * (s.half or 0) for s in summaries],
                    color=colour, marker=_MARKS[way], linestyle="--" if way == "linear" else "-", linewidth=1.3,
                    markersize=5, capsize=3, label=f"{contender.name}, {title}",
                )  # fmt: skip
    if len(question.labels) > 1:
        panel.set_xscale("log")
    panel.set_xticks(question.labels, [f"{count:,}" for count in question.labels])
    panel.minorticks_off()
    low, high = panel.get_ylim()
    panel.set_ylim(max(low, 0), min(high, 100))  # two seeds make intervals that reach beyond
    panel.set_xlabel("training labels")
    panel.set_ylabel("test accuracy, %")
    panel.grid(axis="y", alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    folder.mkdir(exist_ok=True)
    found: dict[str, bytes] = {}
    with matplotlib.rc_context({"svg.hashsalt": "dsdmae"}):
        for kind in ("png", "svg"):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
            found[kind] = buffer.getvalue()
            write_bytes(folder / f"{_FIGURE}.{kind}", found[kind])
    return found["svg"]
