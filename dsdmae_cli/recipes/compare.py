"""`dsdmae compare`: results of any number of runs side by side, the paper's own beside them. No torch here."""

from __future__ import annotations

import csv
import io
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from typing import Any

from dsdmae_cli.artifacts.subject import parse
from dsdmae_cli.errors import CheckpointError, DsdmaeError, SettingsError, nearest
from dsdmae_cli.report import duration
from dsdmae_cli.report import markdown as in_markdown
from dsdmae_cli.runs.near import near
from dsdmae_cli.runs.results import Row, read_result
from dsdmae_cli.runs.rundir import RESULT
from dsdmae_cli.segmentation.comparing import remarks as segmentation_remarks

# Always beside a result of theirs: what the paper proposes, and what it is measured against.
_ALWAYS = ("scratch", "dsdmae")


@dataclass(frozen=True)
class Comparison:
    """Rows in order, what may be concluded from them, and where the paper's come from."""

    rows: tuple[Row, ...]
    remarks: tuple[str, ...]
    citation: str | None

    def json(self) -> dict[str, Any]:
        """As an object for scripts."""
        return {
            "results": [asdict(row) for row in self.rows],
            "remarks": list(self.remarks),
            "paper": self.citation,
        }


def compare(paths: Sequence[Path], paper: str | None = None) -> Comparison:
    """Read results and lay them side by side, by dataset and then best first.

    Args:
        paper: a dataset of the paper whose rows are shown whatever the results' own dataset is called; None = the rows
            of each result's own dataset, where the paper has it; "none" = no rows of the paper.

    Raises:
        CheckpointError: a result is missing or foreign.
        SettingsError: the paper has no such dataset.
    """
    if not paths:
        raise SettingsError("nothing to compare; give the directories or result.json files of finished runs")
    own = list({Path(row.path).resolve(): row for row in map(_result, paths)}.values())
    twice = ["a result was named more than once, and stands here once"] if len(own) < len(paths) else []
    beside = _paper_rows(own, paper)
    return Comparison(
        tuple(sorted([*own, *beside], key=lambda row: (row.dataset, *row.rank()))),
        (*twice, *_remarks(own), *segmentation_remarks(own)),
        _table2()["citation"] if beside else None,
    )


def _result(path: Path) -> Row:
    """The result at a path; who names what can be judged (artifacts/subject.py) is told how to get a result of it."""
    if (path / RESULT).is_file():
        return read_result(path)
    try:
        subject = parse(str(path))
    except DsdmaeError as error:
        if path.exists():
            return read_result(path)
        meant = near(str(path), ".json")
        raise CheckpointError(
            f"there is no {path}{meant}; give the directories or result files of finished runs"
        ) from error
    if subject.kind == "run" and subject.path is not None:  # also one that was called by its name
        return read_result(subject.path)
    text = subject.text
    raise CheckpointError(f"{text} is no result; judge it first (`dsdmae probe {text}`) and compare that run")


@cache
def _table2() -> dict[str, Any]:
    return tomllib.loads((files("dsdmae_cli.recipes") / "table2.toml").read_text(encoding="utf-8"))


def paper_rows(dataset: str) -> list[Row]:
    """All rows of the paper's Table 2 for one of its datasets; none for others."""
    table = _table2()
    return [
        Row(
            name="paper",
            kind=kind,
            dataset=dataset,
            method=row["method"],
            backbone=backbone,
            top1=round(row["values"][column] / 100, 4),
            pretrain_epochs=row.get("epochs"),
            protocol=table["citation"],
            of_paper=True,
        )
        for column, (name, backbone) in enumerate(table["columns"])
        if name == dataset
        for kind in ("finetune", "probe")
        for row in table[kind]["rows"]
    ]


def _paper_rows(own: list[Row], forced: str | None) -> list[Row]:
    """Those that belong beside the results: same dataset, kind, backbone where the paper has it, and their methods."""
    known = sorted({name for name, _ in _table2()["columns"]})
    if forced not in (None, "none", *known):
        raise SettingsError(f"--paper {forced}: the paper has {', '.join(known)}{nearest(str(forced), known)}; or none")
    found: list[Row] = []
    for dataset in sorted({row.dataset for row in own}):
        rows = [row for row in own if row.dataset == dataset]
        theirs = paper_rows(forced or dataset)
        backbones = {row.backbone for row in rows} & {row.backbone for row in theirs}
        methods = {*_ALWAYS, *(row.method for row in rows)}
        kinds = {row.kind for row in rows} & {"finetune", "probe"} or {"finetune", "probe"}
        found += [
            row
            for row in theirs
            if row.method in methods and row.kind in kinds and (not backbones or row.backbone in backbones)
        ]
    return list(dict.fromkeys(found))


# ---------------------------------------------------------------------------------------------------- remarks


def _remarks(rows: list[Row]) -> list[str]:
    """What the intervals allow to say, for each dataset and way of judging."""
    remarks = []
    ordered = sorted(rows, key=lambda row: (row.dataset, row.kind))
    for (dataset, kind), group in groupby(ordered, key=lambda row: (row.dataset, row.kind)):
        judged = sorted((row for row in group if row.top1 is not None), key=lambda row: -(row.top1 or 0))
        if len(judged) < 2:
            continue
        remarks += _of_group(f"{dataset}, {kind}", judged)
    return remarks


def _of_group(title: str, judged: list[Row]) -> list[str]:
    best, others = judged[0], judged[1:]
    verdicts = {row: best.overlaps(row) for row in others}
    tied = [row.name for row, overlap in verdicts.items() if overlap]
    unknown = [row.name for row, overlap in verdicts.items() if overlap is None]
    said = f"{title}: {best.name} has the highest top-1"
    if tied:
        said += f", but its interval overlaps that of {_list(tied)}: they are not told apart"
    elif len(unknown) < len(others):
        said += ", and its interval overlaps no other"
    if unknown:
        said += f"; without intervals nothing can be said about {_list(unknown)}"
    remarks = [said]
    if len({row.protocol for row in judged}) > 1:
        remarks.append(f"{title}: the protocols differ, so that the numbers are not of one kind (see --json)")
    return remarks


def _list(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


# ------------------------------------------------------------------------------------------------------ words


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _count(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _flop(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"


_COLUMNS: dict[str, Callable[[Row], str]] = {
    "dataset": lambda row: row.dataset.rstrip("/").rpartition("/")[2],
    "result": lambda row: row.name,
    "kind": lambda row: row.kind,
    "method": lambda row: row.method or "",
    "backbone": lambda row: row.backbone or "",
    "top-1": lambda row: "" if row.top1 is None else row.top1_words(),
    "mean IoU": lambda row: row.mean_iou_words(),
    "top-5": lambda row: _share(row.top5),
    "pre-training epochs": lambda row: _count(row.epochs if row.kind == "pretrain" else row.pretrain_epochs),
    "pre-training FLOP": lambda row: _flop(row.flops if row.kind == "pretrain" else row.pretrain_flops),
    "epochs": lambda row: "" if row.kind == "pretrain" else _count(row.epochs),
    "FLOP": lambda row: "" if row.kind == "pretrain" else _flop(row.flops),
    "time": lambda row: "" if row.seconds is None else duration(row.seconds),
}


def cells(comparison: Comparison) -> list[list[str]]:
    """The table as text, headings first; columns that nobody fills are left out."""
    table = [[show(row) for show in _COLUMNS.values()] for row in comparison.rows]
    kept = [index for index in range(len(_COLUMNS)) if any(line[index] for line in table)]
    return [[line[index] for index in kept] for line in [list(_COLUMNS), *table]]


def footnotes(comparison: Comparison) -> list[str]:
    """What stands below the table."""
    source = [f"paper: {comparison.citation}"] if comparison.citation else []
    return [*comparison.remarks, *source]


def markdown(comparison: Comparison) -> str:
    """The table and its footnotes in Markdown."""
    heading, *lines = [[*map(in_markdown, line)] for line in cells(comparison)]
    table = [heading, ["---"] * len(heading), *lines]
    text = "\n".join("| " + " | ".join(line) + " |" for line in table)
    remarks = [in_markdown(said) if said in comparison.remarks else said for said in footnotes(comparison)]
    return "\n\n".join([text, *remarks])


def as_csv(comparison: Comparison) -> str:
    """All fields of all rows, numbers as they are, one row a line."""
    out = io.StringIO()
    fields = [name for name in Row.__dataclass_fields__ if name != "top1_interval"]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*fields, "top1_low", "top1_high"])
    for row in comparison.rows:
        writer.writerow([*(getattr(row, name) for name in fields), *(row.top1_interval or (None, None))])
    return out.getvalue().rstrip("\n")
