"""What is said where settings do not have the same runs, and where two measures are one."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

from test_ablate_report import made

from dsdmae_cli.ablation import report
from dsdmae_cli.ablation.definition import find_metric
from dsdmae_cli.ablation.words import verdict


def test_settings_that_came_out_equal_have_the_value_of_the_seeds_that_both_have() -> None:
    """Not the mean of the first one's runs, of which the other has only some."""
    results = made([("mask-ratio", "0.5,0.75")], seeds=2)
    values = {("0.5", 0): 0.25, ("0.5", 1): 0.13, ("0.75", 0): 0.25}
    rows = [replace(r, value=values.get((r.point["mask-ratio"], r.seed))) for r in results.rows]
    rows = [row if row.value is not None else replace(row, state="stopped") for row in rows]
    said = verdict(replace(results, rows=rows))
    assert "came out equal, k-NN accuracy 25.00% (one run) over the seeds that all settings have" in said


def test_no_column_of_the_table_stands_twice(tmp_path: Path) -> None:
    results = made([("mask-ratio", "0.5,0.75")])
    definition = replace(results.definition, metric=find_metric("linear"), also=(find_metric("knn"), find_metric("ep")))
    report.write(replace(results, definition=definition), tmp_path)
    with (tmp_path / "table.csv").open() as file:
        titles, first, *_ = csv.reader(file)
    assert len(titles) == len(set(titles)) == len(first)
    assert {"knn", "ep"} <= set(titles)
