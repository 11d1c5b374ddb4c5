"""What is said of a study's values: intervals, tests, tables and pages. The values are the tests' own."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import stats

from dsdmae_cli.recipes.ablate import report
from dsdmae_cli.recipes.ablate.definition import METRICS, Definition
from dsdmae_cli.recipes.ablate.paper import PAPERS, paper_dataset
from dsdmae_cli.recipes.ablate.results import Results
from dsdmae_cli.recipes.ablate.statistics import contrast, summarise
from dsdmae_cli.recipes.ablate.study import Row
from dsdmae_cli.settings.sweep import Base, grid, parse_axes

VALUES = st.lists(st.floats(0, 1), min_size=2, max_size=8)


@given(VALUES)
def test_interval_is_scipys(values: list[float]) -> None:
    found = summarise(values)
    assert found.half is not None
    with np.errstate(all="ignore"):
        low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    if not math.isnan(low):
        assert (found.mean - found.half, found.mean + found.half) == (pytest.approx(low), pytest.approx(high))


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=3, max_size=8))
def test_contrast_is_scipys_paired_test(pairs: list[tuple[float, float]]) -> None:
    one, two = ([pair[i] for pair in pairs] for i in range(2))
    if np.ptp(np.subtract(one, two)) < 1e-9:
        return
    found = contrast(dict(enumerate(one)), dict(reversed(list(enumerate(two)))), higher_is_better=True)
    reference = stats.ttest_rel(one, two)
    assert found.p == pytest.approx(reference.pvalue, abs=1e-9)
    assert found.difference == pytest.approx(np.mean(one) - np.mean(two), abs=1e-12)
    assert found.larger_than_noise == (reference.pvalue < 0.05)


def test_contrast_pairs_by_seed_and_knows_when_nothing_can_be_said() -> None:
    assert contrast({0: 0.5}, {0: 0.4}, True).p is None
    assert contrast({0: 0.5, 1: 0.6}, {2: 0.4, 3: 0.3}, True).larger_than_noise is None
    assert contrast({0: 1.0, 1: 2.0}, {0: 1.5, 1: 2.5}, higher_is_better=False).difference == 0.5
    assert contrast({0: 0.5, 1: 0.6}, {0: 0.4, 1: 0.5, 7: 9.0}, True).difference == pytest.approx(0.1)
    assert contrast({0: 0.5, 1: 0.6}, {0: 0.5, 1: 0.6}, True).larger_than_noise is False


def made(
    sweeps: list[tuple[str, str]], *, seeds: int = 3, dataset: str = "digits", metric: str = "knn", **more: Any
) -> Results:
    """A study in which every run of the i-th point came to about 0.5 + i/100."""
    base = Base(flags={"data.dataset": dataset})
    axes = parse_axes(sweeps, base)
    definition = Definition(base, axes, METRICS[metric], seeds=seeds, **more)
    noise = np.random.default_rng(0).normal(0, 0.004, (len(grid(axes)), seeds))
    rows = [
        Row(0, point, seed, "done", 0.5 + i / 100 + noise[i, seed], {"seconds": 61.0, "gflop": 2e6, "run": "x"})
        for i, point in enumerate(grid(axes))
        for seed in range(seeds)
    ]
    return Results(definition, rows, "/study", "dsdmae ablate --sweep ...")


def test_everything_is_written_and_agrees(tmp_path: Path) -> None:
    results = made([("mask-ratio", "0.5,0.7,0.9")])
    results.rows[0].state, results.rows[0].value, results.rows[0].reason = "failed", None, "<b>out | of memory</b>"
    report.write(results, tmp_path)
    names = {p.name for p in tmp_path.rglob("*") if p.is_file()}
    assert names == {"report.md", "report.html", "table.csv", "study.json", "ablation.png", "ablation.svg"}
    page, text = (tmp_path / "report.html").read_text(), (tmp_path / "report.md").read_text()
    best = np.mean([row.value for row in results.rows if row.point == {"mask-ratio": "0.9"}])
    for content in (page, text):
        assert f"{100 * best:.2f}%" in content
        assert "larger than the noise between seeds" in content
        assert "1 failed" in content
        assert "1 min 01 s" in content
    assert "&lt;b&gt;out | of memory" in page
    assert 'src="http' not in page
    assert "href=" not in page
    table = list(csv.DictReader(io.StringIO((tmp_path / "table.csv").read_text())))
    assert [row["state"] for row in table].count("done") == 8
    assert [row["value"] for row in table if row["state"] == "done"] == [str(r.value) for r in results.rows[1:]]
    study = json.loads((tmp_path / "study.json").read_text())
    assert study["best"]["settings"] == {"mask-ratio": "0.9"}
    assert study["failed"] == 1
    with Image.open(tmp_path / "figures" / "ablation.png") as image:
        assert np.asarray(image.convert("L")).std() > 5


def test_one_seed_allows_no_judgement() -> None:
    assert "nothing can be said of the noise" in made([("mask-ratio", "0.5,0.7")], seeds=1).verdict()


def test_the_lowest_loss_is_best() -> None:
    results = made([("mask-ratio", "0.5,0.7,0.9")], metric="loss")
    assert results.ranked[0].point == {"mask-ratio": "0.5"}
    assert results.verdict().startswith("Best: mask-ratio 0.5, pre-training loss 0.50")


@pytest.mark.parametrize(
    ("sweeps", "more"),
    [
        ([("heads", "both,decoder,regressor")], {}),
        ([("method", "dsdmae,mae"), ("mask-ratio", "0.5,0.9")], {}),
        ([("lambda", "0.2,0.8"), ("mask-ratio", "0.5,0.9"), ("noise-std", "1,2")], {"seeds": 1}),
        ([("lr", "1e-4..1e-2/5log")], {"seeds": 1, "search": "tpe", "trials": 5}),
        ([("noise-std", "[0.5,1],1")], {}),
    ],
)
def test_every_shape_of_study_is_drawn(sweeps: list[tuple[str, str]], more: dict[str, Any], tmp_path: Path) -> None:
    report.write(made(sweeps, **more), tmp_path)
    assert (tmp_path / "figures" / "ablation.svg").stat().st_size > 5000


def test_a_study_without_values_has_a_report_too(tmp_path: Path) -> None:
    results = made([("mask-ratio", "0.5,0.7")])
    for row in results.rows:
        row.state, row.value, row.facts = "waiting", None, {}
    report.write(results, tmp_path)
    assert "No run is done yet." in (tmp_path / "report.html").read_text()
    assert "6 of 6 trials are not done" in (tmp_path / "report.md").read_text()


def test_the_papers_points_stand_beside_ours_where_they_belong(tmp_path: Path) -> None:
    def drawn(paper: str, dataset: str, metric: str) -> tuple[bool, str]:
        sweep = [PAPERS[paper].sweep]
        results = made(sweep, dataset=dataset, metric=metric, paper=paper)
        report.write(results, tmp_path)
        return results.draws_paper, (tmp_path / "report.md").read_text()

    assert drawn("table3", "cifar10", "linear")[0]
    assert "both 76.98%, decoder 74.20%, regressor 68.93%" in drawn("table3", "cifar10", "linear")[1]
    shown, text = drawn("table3", "cifar10", "knn")
    assert not shown
    assert "another metric than ours" in text
    shown, text = drawn("table3", "digits", "linear")
    assert not shown
    assert "76.98" not in text
    assert drawn("fig3", "stl10", "knn")[0]
    assert drawn("fig4", "cifar100", "finetune")[0]
    assert "best at λ = 0.6" in drawn("fig4", "digits", "knn")[1]


@pytest.mark.parametrize(
    ("dataset", "name"),
    [("cifar10", "cifar10"), ("folder:/x/CIFAR-10/", "cifar10"), ("folder:stl10", "stl10"), ("folder:/x/cats", None)],
)
def test_which_of_the_papers_datasets(dataset: str, name: str | None) -> None:
    assert paper_dataset(Base(flags={"data.dataset": dataset}).load().settings) == name
