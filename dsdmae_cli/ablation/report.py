"""report.md, report.html, table.csv and study.json of a study, and its lines for people."""

from __future__ import annotations

import csv
import io
import json
import statistics as st
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined

from dsdmae_cli.ablation.figure import charts
from dsdmae_cli.ablation.paper import dataset_title, paper_dataset
from dsdmae_cli.ablation.results import Results, Setting, results_of
from dsdmae_cli.ablation.study import Row, Study
from dsdmae_cli.ablation.sweep import describe
from dsdmae_cli.ablation.words import caveats, flop, interval, verdict
from dsdmae_cli.files import write_bytes
from dsdmae_cli.page import document
from dsdmae_cli.page.blocks import Block, Cell, Charts, Code, Gallery, Listing, Page, Section, Table, Text
from dsdmae_cli.page.chart import Chart
from dsdmae_cli.page.run import last_moment
from dsdmae_cli.report import Report, duration, markdown, number_of, shown
from dsdmae_cli.runs.rundir import PAGE

_MOST_PICTURES = 12
_PATIENCE = 4 * 3600.0  # a page comes with each run that ends, and one may take hours


def write(results: Results, folder: Path, left: str | None = None) -> None:
    """Write everything that a study leaves beside its runs; each file whole or not at all. What was found comes first:
    a chart or page that cannot be made is a warning.

    Args:
        results: at its end or on the way.
        folder: the study's.
        left: of a study that goes on, the time that it will take, in words or empty where that is not known yet.

    Raises:
        RunFailed: what was found cannot be written.
    """
    found = json.dumps(results.definition.json() | results.json(), indent=2) + "\n"
    write_bytes(folder / "study.json", found.encode())
    write_bytes(folder / "table.csv", _csv(results).encode())
    with Report().spared("the report of the study"):
        _describe(results, folder, left)


def write_meanwhile(study: Study, folder: Path, left: str) -> None:
    """The same of a study that goes on, which no report may end."""
    with Report().spared("the report of the study so far"):
        write(results_of(study, folder), folder, left)


def _describe(results: Results, folder: Path, left: str | None) -> None:
    """For people: charts, report.md and the page."""
    dataset = results.definition.common().data.dataset.partition(":")[2]
    where = document.places(folder, "STUDY", [dataset])
    drawn = charts(results)
    files = document.write_charts(drawn, folder / "figures", where)
    content = _content(results)
    templates = Environment(
        loader=PackageLoader("dsdmae_cli.ablation"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters["markdown"] = lambda text: markdown(where(str(text)))
    templates.filters["as_it_is"] = lambda text: shown(where(text))
    templates.filters["in_one_line"] = lambda text: shown(where(text), one_line=True)
    images = [f"figures/{file.name}" for file in files]
    text = templates.get_template("report.md").render(**content, images=images)
    write_bytes(folder / "report.md", text.encode())
    page = _page(results, content, drawn, folder)
    document.write(replace(page, **_state(results, left)), folder / PAGE, where)


def _state(results: Results, left: str | None) -> dict[str, Any]:
    """How far the study is, for the page's head."""
    now, total = time.time(), results.total
    ended = len(results.rows) - results.unfinished
    state = "running" if left is not None else "stopped" if results.unfinished else "done"
    said = [
        f"{ended} of {number_of(total, 'run')}",
        f"about {left}" if left else "",
        time.strftime("written %Y-%m-%d %H:%M:%S", time.localtime(now)),
    ]
    return {
        "state": state,
        "status": ", ".join(filter(None, said)),
        "share": ended / total if total and state != "done" else None,
        "written": now,
        "patience": _PATIENCE,
    }


def _page(results: Results, content: dict[str, Any], drawn: list[Chart], folder: Path) -> Page:
    titles = [*content["keys"], content["metric"], *content["also"], *content["runs"], *content["costs"]]
    rows = [
        [*line["values"], line["result"], *line["also"], *line["runs"], *line["costs"]] for line in content["table"]
    ]
    words = {i for i, axis in enumerate(results.definition.axes) if axis.numbers is None}
    if any(line["remark"] for line in content["table"]):  # a column of nothing would be seen in the marked row
        words.add(len(titles))
        titles.append("")
        rows = [[*row, line["remark"]] for row, line in zip(rows, content["table"], strict=True)]
    marks = ["quiet" if line["kind"] == "untrained" else line["kind"] for line in content["table"]]
    table = Table(titles, rows, frozenset(words), marks)
    return Page(
        content["title"],
        content["verdict"],
        lead=[Charts(drawn), table, Listing(content["caveats"], quiet=True)],
        sections=[
            *(Section(title, blocks) for title, blocks in _sections(results, content, folder) if blocks),
            Section("What all runs share", [Code(content["base"])], folded=True),
        ],
    )


def _sections(results: Results, content: dict[str, Any], folder: Path) -> Iterator[tuple[str, list[Block]]]:
    if pictures := list(_pictures(results, folder)):
        yield "What the trained networks make of the same images", [Gallery(pictures, wide=True)]
    if paper := content["paper"]:
        said = [paper["says"]]
        if paper["points"]:
            points = ", ".join(f"{value} {share}" for value, share in paper["points"].items())
            other = "" if paper["same_metric"] else (
                " That is another metric than ours: compare the order, not the numbers."
            )  # fmt: skip
            said.append(f"On {paper['dataset']} ({paper['source']}): {points}.{other}")
        yield f"The paper: {paper['title']}", [Text(said)]
    if failures := content["failures"]:
        yield "Failed", [Listing([f"{trial}: {reason}" for trial, reason in failures])]
    if rows := [_run_row(results, row, folder) for row in results.rows if row.state != "waiting"]:
        titles = ["run", "state", content["metric"], "time"]
        yield "Runs", [Table(titles, rows, frozenset({0, 1}))]
    pruned = f", {content['pruned']} pruned" if content["pruned"] else ""
    done = (
        f"{content['done']} of {number_of(content['trials'], 'run')} done{pruned}, {content['wall']} of run time,"
        f" {content['work']} of pre-training. {content['machine']}."
    )
    yield "How", [Text([done]), Code(content["command"])]


def _run_row(results: Results, row: Row, folder: Path) -> list[str | Cell]:
    metric, seconds = results.definition.metric, row.facts.get("seconds")
    return [
        Cell(f"{describe(row.point)}, seed {row.seed}", _trial_page(row, folder)),
        row.state,
        "-" if row.value is None else metric.show(row.value),
        "-" if seconds is None else duration(seconds),
    ]


def _trial_page(row: Row, folder: Path) -> str:
    """Where the page of a run is, seen from the study's; empty where there is none."""
    run = row.facts.get("run", "")
    return f"trials/{quote(run)}/{PAGE}" if run and (folder / "trials" / run / PAGE).is_file() else ""


def _pictures(results: Results, folder: Path) -> Iterator[tuple[str, Any, str]]:
    """Of each setting's first run, the last picture that it drew."""
    for setting in results.settings[:_MOST_PICTURES]:
        row = next((row for row in setting.rows if row.state == "done"), None)
        if row is None:
            continue
        name = f"{describe(setting.point)}, seed {row.seed}"
        found = last_moment(folder / "trials" / row.facts.get("run", "") / "figures", name)
        if found is not None:
            yield found.alt, found, _trial_page(row, folder)


def _content(results: Results) -> dict[str, Any]:
    """What both reports show."""
    definition = results.definition
    paper = results.paper
    dataset = paper_dataset(definition.common())
    compared = None
    if paper is not None:
        points = {value: f"{100 * share:.2f}%" for value, share in results.paper_points.items()}
        compared = {
            "title": paper.title,
            "says": paper.says,
            "points": points,
            "dataset": dataset_title(dataset) if dataset else None,
            "source": paper.source,
            "same_metric": paper.points_metric in (None, definition.metric.name),
        }
    return {
        "title": results.title,
        "verdict": verdict(results),
        "caveats": caveats(results),
        "keys": [axis.key for axis in definition.axes],
        "metric": definition.metric.label,
        "also": [metric.label for metric in definition.also],
        "runs": ([f"each run{', %' if definition.metric.is_share else ''}"] if _several(results) else []),
        "costs": _costs(results),
        "table": _table(results),
        "paper": compared,
        "failures": [(f"{describe(row.point)}, seed {row.seed}", row.reason) for row in results.failed],
        "trials": len(results.rows),
        "done": sum(row.state == "done" for row in results.rows),
        "pruned": sum(row.state == "pruned" for row in results.rows),
        "seeds": definition.seeds,
        "wall": duration(results.seconds),
        "work": flop(results.gflop),
        "command": results.command,
        "machine": results.machine(),
        "base": results.base_toml().rstrip(),
    }


def _costs(results: Results) -> list[str]:
    """Titles of the columns that say what a run takes."""
    return ["epochs", "work", "of the budget", "time"] if results.definition.equal == "compute" else ["work", "time"]


def _table(results: Results) -> list[dict[str, Any]]:
    """The rows of the table of settings, those of a search best first; the network before training stands last."""
    settings = results.settings
    if results.definition.search != "grid":
        settings = [*results.ranked, *(s for s in settings if not s.values)]
    rows = [_line(results, setting) for setting in settings]
    return [*rows, _untrained(results)] if results.untrained else rows


def _several(results: Results) -> bool:
    """Whether a setting was run more than once, so that its runs are worth a column."""
    return any(len(setting.rows) > 1 for setting in results.settings)


def _line(results: Results, setting: Setting) -> dict[str, Any]:
    seconds, gflop = setting.mean_fact("seconds"), setting.mean_fact("gflop")
    epochs, share = setting.mean_fact("epochs"), setting.gflop_to_budget
    shown = [results.definition.metric.show(value).rstrip("%") for value in setting.values]
    costs = {
        "epochs": f"{epochs:g}" if epochs is not None else "-",
        "work": flop(gflop) if gflop is not None else "-",
        "of the budget": f"{share:.2f}" if share is not None else "-",
        "time": duration(seconds) if seconds is not None else "-",
    }
    return {
        "values": list(setting.point.values()),
        "result": interval(setting.summary, results.definition.metric),
        "also": [interval(setting.also(metric), metric) for metric in results.definition.also],
        "runs": [", ".join(shown)] if _several(results) else [],
        "costs": [costs[title] for title in _costs(results)],
        "remark": "; ".join(filter(None, [setting.remark, *_twins(results, setting)])),
        "kind": "best" if results.best is setting else "",
    }


def _twins(results: Results, setting: Setting) -> list[str]:
    same = results.definition.same_as(setting.point)
    return [f"and so {', '.join(same)}"] if same else []


def _untrained(results: Results) -> dict[str, Any]:
    metric = results.definition.metric
    means = [st.mean(setting.untrained.values()) for setting in results.untrained]
    by_setting = f"{metric.show(min(means))} to {metric.show(max(means))}, by setting"
    return {
        "values": ["untrained", *[""] * (len(results.definition.axes) - 1)],
        "result": by_setting if results.baseline is None else interval(results.baseline, metric),
        "also": [""] * len(results.definition.also),
        "runs": [""] if _several(results) else [],
        "costs": ["" for _ in _costs(results)],
        "remark": "",
        "kind": "untrained",
    }


def _csv(results: Results) -> str:
    """One line a run, with all that is known of it."""
    keys = [axis.key for axis in results.definition.axes]
    facts = (
        *("run", "knn", "knn_untrained", "loss", "epochs", "steps", "images", "seconds", "judged_seconds"),
        *("gflop", "budget_gflop"),
    )
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    also = [metric.name for metric in results.definition.also if metric.name not in facts]  # which have a column
    table.writerow([*keys, "seed", "state", "value", *also, *facts, "reason"])
    for setting in results.settings:
        for row in sorted(setting.rows, key=lambda row: row.seed):
            known = ["" if row.facts.get(name) is None else row.facts[name] for name in facts]
            value = "" if row.value is None else row.value
            others = [row.facts.get("also", {}).get(name, "") for name in also]
            table.writerow([*row.point.values(), row.seed, row.state, value, *others, *known, row.reason or ""])
    return text.getvalue()


def summary(results: Results, folder: Path) -> str:
    """The lines for people at the end."""
    keys = [axis.key for axis in results.definition.axes]
    also = [metric.label for metric in results.definition.also]
    rows = [("", *keys, results.definition.metric.label, *also, *_costs(results), "")]
    for line in _table(results):
        mark = "*" if line["kind"] == "best" else ""
        rows.append((mark, *line["values"], line["result"], *line["also"], *line["costs"], line["remark"]))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    # As on the page: numbers end below each other.
    left = {0, len(widths) - 1} | {1 + i for i, axis in enumerate(results.definition.axes) if axis.numbers is None}
    lines = [
        "  ".join(cell.ljust(wide) if i in left else cell.rjust(wide)
                  for i, (cell, wide) in enumerate(zip(row, widths, strict=True))).rstrip()
        for row in rows
    ]  # fmt: skip
    lines += ["", verdict(results)]
    lines += [f"failed  {describe(row.point)}, seed {row.seed}: {row.reason}" for row in results.failed]
    if results.failed:
        lines.append("run the failed ones again with --retry-failed")
    lines.append(f"report  {folder / 'report.html'}")
    return "\n".join(lines)
