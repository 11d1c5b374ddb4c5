"""report.md, report.html, table.csv and study.json of a study, and its lines for people."""

from __future__ import annotations

import base64
import csv
import io
import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from dsdmae_cli.files import write_bytes
from dsdmae_cli.recipes.ablate.figure import draw
from dsdmae_cli.recipes.ablate.paper import dataset_title, paper_dataset
from dsdmae_cli.recipes.ablate.results import Results, Setting, interval
from dsdmae_cli.report import duration
from dsdmae_cli.settings.sweep import describe


def write(results: Results, folder: Path) -> None:
    """Write everything that a study leaves beside its runs; each file whole or not at all."""
    drawn = draw(results, folder / "figures")
    content = _content(results)
    templates = Environment(
        loader=PackageLoader("dsdmae_cli.recipes.ablate"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=lambda name: bool(name and name.endswith(".html")),
    )
    image = base64.b64encode(drawn["svg"]).decode() if drawn else None
    for name in ("report.md", "report.html"):
        text = templates.get_template(name).render(**content, image=image)
        write_bytes(folder / name, text.encode())
    write_bytes(folder / "table.csv", _csv(results).encode())
    write_bytes(
        folder / "study.json", (json.dumps(results.definition.json() | results.json(), indent=2) + "\n").encode()
    )


def _content(results: Results) -> dict[str, Any]:
    """What both templates show."""
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
        "verdict": results.verdict(),
        "caveats": results.caveats(),
        "keys": [axis.key for axis in definition.axes],
        "metric": definition.metric.label,
        "table": [_line(results, setting) for setting in results.settings],
        "paper": compared,
        "failures": [(f"{describe(row.point)}, seed {row.seed}", row.reason) for row in results.failed],
        "trials": len(results.rows),
        "done": sum(row.state == "done" for row in results.rows),
        "seeds": definition.seeds,
        "wall": duration(results.seconds),
        "work": flop(results.gflop),
        "command": results.command,
        "machine": results.machine(),
        "base": results.base_toml().rstrip(),
    }


def _line(results: Results, setting: Setting) -> dict[str, Any]:
    """A row of the table of settings."""
    seconds, gflop = setting.mean_fact("seconds"), setting.mean_fact("gflop")
    return {
        "values": list(setting.point.values()),
        "result": interval(setting, results.definition),
        "runs": ", ".join(results.definition.metric.show(value) for value in setting.values),
        "seconds": duration(seconds) if seconds is not None else "-",
        "work": flop(gflop) if gflop is not None else "-",
        "remark": setting.remark,
        "best": bool(results.ranked) and setting is results.ranked[0],
    }


def flop(gflop: float) -> str:
    """12.3 TFLOP, 4.56 PFLOP."""
    for unit, size in (("EFLOP", 1e9), ("PFLOP", 1e6), ("TFLOP", 1e3)):
        if gflop >= size:
            return f"{gflop / size:.3g} {unit}"
    return f"{gflop:.3g} GFLOP"


def _csv(results: Results) -> str:
    """One line a run, with all that is known of it."""
    keys = [axis.key for axis in results.definition.axes]
    facts = ("run", "knn", "knn_untrained", "loss", "steps", "images", "seconds", "judged_seconds", "gflop")
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow([*keys, "seed", "state", "value", *facts, "reason"])
    for setting in results.settings:
        for row in sorted(setting.rows, key=lambda row: row.seed):
            known = ["" if row.facts.get(name) is None else row.facts[name] for name in facts]
            value = "" if row.value is None else row.value
            table.writerow([*row.point.values(), row.seed, row.state, value, *known, row.reason or ""])
    return text.getvalue()


def summary(results: Results, folder: Path) -> str:
    """The lines for people at the end."""
    rows = [("", *(axis.key for axis in results.definition.axes), results.definition.metric.label, "time", "")]
    for setting in results.settings:
        line = _line(results, setting)
        mark = "*" if line["best"] else ""
        rows.append((mark, *line["values"], line["result"], line["seconds"], line["remark"]))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += ["", results.verdict()]
    lines += [f"failed  {describe(row.point)}, seed {row.seed}: {row.reason}" for row in results.failed]
    if results.failed:
        lines.append("run the failed ones again with --retry-failed")
    lines.append(f"report  {folder / 'report.html'}")
    return "\n".join(lines)
