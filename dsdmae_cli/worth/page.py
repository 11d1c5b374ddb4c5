"""What is left for people: report.html (one file, opens offline), report.md and the figure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined

from dsdmae_cli.evaluation.statistics import Summary
from dsdmae_cli.files import write_bytes
from dsdmae_cli.page import document
from dsdmae_cli.page.blocks import Cell, Charts, Code, Listing, Page, Section, Table, Text
from dsdmae_cli.page.chart import Chart, Mark, Series
from dsdmae_cli.report import duration, markdown, number_of, shown
from dsdmae_cli.runs.rundir import PAGE
from dsdmae_cli.worth.findings import Findings
from dsdmae_cli.worth.tasks import HELD_OUT, WAYS, Contender, Way
from dsdmae_cli.worth.words import answer, points

_MARKS: dict[Way, Mark] = {"linear": "circle", "ep": "square", "finetune": "triangle"}
_GREY = 7
_BEST = (
    "Test accuracy in %, mean over seeds ± 95% interval; each network judged the way that is best on held-out images:"
)


def write(findings: Findings, folder: Path, command: str, epochs: int, wall: float) -> str:
    """Write the page; what it says first.

    Args:
        epochs: of fine-tuning with all labels.
        wall: seconds that it took here.
    """
    question = findings.question
    known = [question.settings.data.dataset.partition(":")[2], *(one.word for one in question.contenders)]
    where = document.places(folder, "ANSWER", known)
    drawn = chart(findings)
    document.write_charts([drawn], folder / "figures", where)
    templates = Environment(
        loader=PackageLoader("dsdmae_cli.worth"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True,
    )  # fmt: skip
    templates.filters["markdown"] = lambda text: markdown(where(str(text)))
    templates.filters["in_one_line"] = lambda text: shown(where(text), one_line=True)
    content = {
        "title": f"Does pre-training pay on {question.settings.data.dataset}?",
        "said": sentences(findings),
        "names": [contender.name for contender in question.contenders],
        "about_best": _BEST,
        "best": _best_rows(findings),
        "every": _every_row(findings),
        "costs": _costs(findings),
        "notes": [*_protocol(findings, epochs), *findings.notes],
        "command": command,
        "wall": duration(wall),
        "image": f"figures/{drawn.key}.svg",
    }
    write_bytes(folder / "report.md", templates.get_template("report.md").render(**content).encode())
    document.write(_page(content, drawn, list(_pages(findings, folder))), folder / PAGE, where)
    return str(content["said"][0])


def _pages(findings: Findings, folder: Path) -> Iterator[tuple[Cell, str, str]]:
    """Of each judging that left a page: network and seed, which lead to it, how it was judged, and the labels."""
    question = findings.question
    counts, seeds = dict(zip(question.shares, question.labels, strict=True)), question.seed_numbers
    for task in [*question.probes("linear", seeds), *question.probes("ep", seeds), *question.finetunings()]:
        if (folder / "judged" / task.name / PAGE).is_file():
            labels = "every number" if task.way == "linear" else f"{counts[task.share]:,}"
            link = f"judged/{quote(task.name)}/{PAGE}"
            yield Cell(f"{task.contender.name}, seed {task.seed}", link), WAYS[task.way], labels


def _page(content: dict[str, Any], drawn: Chart, pages: Sequence[tuple[Cell, str, str]]) -> Page:
    first, *others = content["said"]
    best = [[row["labels"], *row["cells"], row["gain"]] for row in content["best"]]
    signs = [{1: "gain", -1: "loss"}.get(row["sign"], "") for row in content["best"]]
    every = [[row[key] for key in ("labels", "way", "name", "top1", "seeds", "held_out")] for row in content["every"]]
    chosen = ["best" if row["chosen"] else "" for row in content["every"]]
    costs = [[row["name"], row["pretraining"], *(row[way] for way in WAYS)] for row in content["costs"]]
    return Page(
        content["title"],
        first,
        others,
        lead=[
            Charts([drawn]),
            Text([content["about_best"]], quiet=True),
            Table(["labels", *content["names"], "gain"], best, marks=signs),
        ],
        sections=[
            Section("Every way of judging", [
                Table(["labels", "judged by", "network", "test accuracy", "each seed", "held out"], every,
                      frozenset({1, 2}), chosen),
                Text(["Bold: chosen by the held-out images."], quiet=True),
            ]),
            Section("What it took", [
                Table(["network", "pre-training", "linear probes", "efficient probes", "fine-tuning"], costs,
                      frozenset({0})),
                Text([f"All of it in {content['wall']}."], quiet=True),
            ]),
            *([Section("Pages of their own", [
                Table(["page", "judged by", "labels"], pages, frozenset({0, 1})),
            ], folded=True)] if pages else []),
            Section("How", [Listing(content["notes"], quiet=True), Code(content["command"])]),
        ],
    )  # fmt: skip


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
    seeds = (
        f"{number_of(question.seeds, 'seed')}, each with labels of its own draw (nested: 1% is part of 10%) and,"
        " without"
        " pre-training, first weights of its own; the run is one pre-training, so that the intervals (95%, Student's t"
        " over the seeds, gains paired) know nothing of what another pre-training would give."
    )
    choice = (
        f"A network is judged the way that is best on held-out training images ({HELD_OUT:.0%} of its labels, mean over"
        f" the seeds; of a probe that is the best of several learning rates, which flatters it a little where held-out"
        f" images are few). The {number_of(findings.test_images, 'test image')} were read for the scores alone and"
        f" chose nothing; who always names their largest class is right in {findings.chance:.1%}."
    )
    chance = (
        "An interval is the wider of two, over the seeds and over the test images; numbers of labels are judged one by"
        " one, without a correction for how many there are. With all labels the seeds share the labels."
    )
    ways = (
        f"Linear probe: MAE's protocol; efficient probe: 32 learned queries, all labels; fine-tuning: AdamW,"
        f" of all labels and up to ten times as many of fewer, peak rate"
        f" {question.peak_rate:g} whatever the batch, trained on what is not held out (at least one image of each class"
        " is), where probes are fitted anew to all labels."
    )
    sizes = "; ".join(f"{c.name}: {c.size}" for c in question.contenders if c.size)
    return [seeds, chance, choice, ways, f"What each network is given: {sizes}."]


# -- the figure


def chart(findings: Findings) -> Chart:
    """Accuracy over labels: a colour for each network, a mark for each way."""
    question = findings.question
    labels = dict(zip(question.shares, question.labels, strict=True))
    return Chart(
        "worth",
        "test accuracy, %",
        "training labels",
        list(_series(findings, labels)),
        at=[(count, f"{count:,}") for count in question.labels],
        log_x=len(question.labels) > 1,
        limits=(0, 100),  # two seeds make intervals that reach beyond
    )


def _series(findings: Findings, labels: dict[float, int]) -> Iterator[Series]:
    for number, contender in enumerate(findings.question.contenders):
        for way, title in WAYS.items():
            known = [(labels[share], findings.of(contender, share)[way]) for share in findings.question.shares
                     if way in findings.of(contender, share)]  # fmt: skip
            if known:
                yield Series(
                    f"{contender.name}, {title}",
                    [(count, 100 * scores.summary.mean) for count, scores in known],
                    [None if scores.summary.half is None else 100 * scores.summary.half for _, scores in known],
                    [(count, 100 * value) for count, scores in known if len(scores.top1) > 1
                     for value in scores.top1.values()],
                    mark=_MARKS[way],
                    colour=number - 1 if number else _GREY,
                    dashes=1 if way == "linear" else 0,
                )  # fmt: skip
