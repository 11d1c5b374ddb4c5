"""What is said of a study's values: verdicts, tables and pages. The values are the tests' own."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from dsdmae_cli.ablation import report
from dsdmae_cli.ablation.definition import Definition, find_metric
from dsdmae_cli.ablation.figure import charts
from dsdmae_cli.ablation.paper import PAPERS, paper_dataset
from dsdmae_cli.ablation.remaining import time_left
from dsdmae_cli.ablation.results import Results
from dsdmae_cli.ablation.study import Row
from dsdmae_cli.ablation.sweep import Base, grid, parse_axes
from dsdmae_cli.ablation.trial import Job, Tail
from dsdmae_cli.ablation.words import caveats, verdict
from dsdmae_cli.errors import RunFailed
from dsdmae_cli.figures.sheet import save, sheet
from dsdmae_cli.runs.child import Child, Slot

FACTS: dict[str, Any] = {"seconds": 61.0, "gflop": 2e6, "run": "x", "epochs": 12, "budget_gflop": None}


def made(
    sweeps: list[tuple[str, str]], *, seeds: int = 3, dataset: str = "digits", metric: str = "knn", **more: Any
) -> Results:
    """A study in which every run of the i-th point came to about 0.5 + i/100."""
    base = Base(flags={"data.dataset": dataset})
    axes = parse_axes(sweeps, base)
    definition = Definition(base, axes, find_metric(metric), seeds=seeds, **more)
    noise = np.random.default_rng(0).normal(0, 0.004, (len(grid(axes)), seeds))
    rows = [
        Row(0, point, seed, "done", 0.5 + i / 100 + noise[i, seed], FACTS | {"knn_untrained": 0.3 + seed / 100})
        for i, point in enumerate(grid(axes))
        for seed in range(seeds)
    ]
    return Results(definition, rows, "/study", "dsdmae ablate --sweep ...")


def test_a_report_that_fails_costs_no_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object) -> None:
        raise OSError("no such font")

    monkeypatch.setattr("dsdmae_cli.page.document.write_charts", fails)
    report.write(made([("mask-ratio", "0.5,0.7")]), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"study.json", "table.csv"}
    assert "the report of the study could not be made (OSError: no such font)" in capsys.readouterr().err


def test_damaged_lines_of_a_trials_metrics_are_passed_over(tmp_path: Path) -> None:
    whole, path = b'{"step": 1, "loss": 2.0}\n', tmp_path / "metrics.jsonl"
    path.write_bytes(whole + b"\x01\xff\nnull\n[1]\n" + whole)
    assert [record["loss"] for record in Tail(path).new()] == [2.0, 2.0]


def test_a_result_that_is_none_fails_its_trial_alone(tmp_path: Path) -> None:
    job = Job.__new__(Job)
    job.run, job.name, job.metric, job.also = tmp_path, "trial", find_metric("loss"), ()
    for content in ("{", "[]", '{"seconds": 1}'):
        (tmp_path / "result.json").write_text(content)
        with pytest.raises(RunFailed, match="no result of this program"):
            job.outcome()


def test_numbers_of_the_table_end_below_each_other(tmp_path: Path) -> None:
    results = made([("mask-ratio", "0.5,0.75")])
    head, *rows = report.summary(results, tmp_path).splitlines()[:3]
    assert all(row.index(" runs)") == rows[0].index(" runs)") for row in rows)
    assert head.index("k-NN accuracy") + len("k-NN accuracy") == rows[0].index(" runs)") + len(" runs)")


def test_a_column_without_a_word_is_not_there(tmp_path: Path) -> None:
    results = made([("mask-ratio", "0.5,0.7")])
    report.write(results, tmp_path)
    assert '<th scope="col" class="word"></th>' not in (tmp_path / "report.html").read_text()
    results.rows[0].state, results.rows[0].value = "waiting", None
    report.write(results, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert '<th scope="col" class="word"></th>' in page
    assert "1 waiting" in page
    assert "1 of 6 trials is not done" in page


def test_everything_is_written_and_agrees(tmp_path: Path) -> None:
    results = made([("mask-ratio", "0.5,0.7,0.9")])
    results.rows[0].state, results.rows[0].value, results.rows[0].reason = "failed", None, "<b>out | of memory</b>"
    report.write(results, tmp_path)
    names = {p.name for p in tmp_path.rglob("*") if p.is_file()}
    assert names == {"report.md", "report.html", "table.csv", "study.json", "ablation.svg"}
    page, text = (tmp_path / "report.html").read_text(), (tmp_path / "report.md").read_text()
    best = np.mean([row.value for row in results.rows if row.point == {"mask-ratio": "0.9"}])
    for content in (page, text):
        assert f"{100 * best:.2f}%" in content
        assert "larger than the noise between seeds" in content
        assert "1 failed" in content
        assert "1 min 01 s" in content
    assert "&lt;b&gt;out | of memory" in page
    assert "http:" not in page
    assert "href=" not in page  # no run has left a page
    table = list(csv.DictReader(io.StringIO((tmp_path / "table.csv").read_text())))
    assert [row["state"] for row in table].count("done") == 8
    assert [row["value"] for row in table if row["state"] == "done"] == [str(r.value) for r in results.rows[1:]]
    study = json.loads((tmp_path / "study.json").read_text())
    assert study["best"]["settings"] == {"mask-ratio": "0.9"}
    assert study["failed"] == 1
    assert "![k-NN accuracy](figures/ablation.svg)" in text


@pytest.mark.parametrize("state", ["pruned", "failed", "waiting"])
def test_a_seed_that_is_missing_lets_no_setting_win(state: Any, tmp_path: Path) -> None:
    """By the mean over its own seeds the first would be ahead, by each seed that both have it is behind."""
    results = made([("mask-ratio", "0.5,0.9")])
    for row, value in zip(results.rows, (None, 0.822, 0.80, 0.70, 0.83, 0.811), strict=True):
        row.value = value
    results.rows[0].state, results.rows[0].facts = state, {"share": 0.4} if state == "pruned" else {}
    assert [s.point["mask-ratio"] for s in results.ranked] == ["0.9", "0.5"]
    assert results.json()["best"]["settings"] == {"mask-ratio": "0.9"}
    said = verdict(results)
    if state == "pruned":
        assert "Runs of the next, mask-ratio 0.5, were pruned: others were better." in said
    else:
        assert "0.95 points worse over the seeds that all settings have (1, 2): not larger than" in said
        assert any("ranked and compared by those that all have (1, 2)" in text for text in caveats(results))
    report.write(results, tmp_path)  # however uneven


def test_equal_gains_are_no_proof() -> None:
    results = made([("mask-ratio", "0.5,0.9")], seeds=2)
    for row, value in zip(results.rows, (300, 309, 301, 310), strict=True):
        row.value = value / 397
    assert "0.25 points worse, the very same in each of 2 seeds" in verdict(results)
    assert results.json()["p"] is None


def test_intervals_are_explained_wherever_there_are_some() -> None:
    """Also where the same command came with fewer seeds than the study has: the runs of all are shown."""
    study = made([("mask-ratio", "0.5,0.75")], seeds=3)
    fewer = Results(replace(study.definition, seeds=1), study.rows, "/study", "")
    alone = made([("mask-ratio", "0.5,0.75")], seeds=1)
    said = [any(text.startswith("± is the 95% interval") for text in caveats(one)) for one in (study, fewer, alone)]
    assert said == [True, True, False]


def test_that_the_best_was_chosen_by_its_own_value_is_said() -> None:
    assert any("a little optimistic" in text for text in caveats(made([("mask-ratio", "0.5,0.9")])))
    assert not any("optimistic" in text for text in caveats(made([("lr", "1e-3,1e-4")], metric="loss")))


def test_a_study_on_its_way_says_how_far_it_is(tmp_path: Path) -> None:
    results = made([("mask-ratio", "0.5,0.7")])
    for row in results.rows[2:]:
        row.state, row.value = "waiting", None
    for left, state, status in (
        ("2 h left", "running", "2 of 6 runs, about 2 h left, "),
        (None, "stopped", "2 of 6 runs, "),
    ):
        report.write(results, tmp_path, left)
        page = (tmp_path / "report.html").read_text()
        assert f'class="state {state}"' in page
        assert f"<span>{status}written 20" in page
        assert 'aria-valuenow="33"' in page
        assert "So far, with 2 of 6 runs done. Best: mask-ratio 0.5" in page
        assert ("data-refresh" in page) == (state == "running")
    assert not json.loads((tmp_path / "study.json").read_text())["complete"]


def test_equal_compute_shows_what_each_run_takes(tmp_path: Path) -> None:
    results = made([("method", "dsdmae,mae,mocov3")], equal="compute")
    for row in results.rows:
        epochs, gflop = {"dsdmae": (10, 2e6), "mae": (14, 1.9e6), "mocov3": (1, 4e6)}[row.point["method"]]
        row.facts = row.facts | {"epochs": epochs, "gflop": gflop, "budget_gflop": 2e6}
    report.write(results, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "| each run, % | epochs | work | of the budget | time |" in text
    assert "| 14 | 1.9 PFLOP | 0.95 | 1 min 01 s |" in text
    assert "it is 0.95 to 2.00 of that. Not at equal compute, since a single epoch takes more: method mocov3." in text
    study = json.loads((tmp_path / "study.json").read_text())
    assert study["equal"] == "compute"
    assert [s["gflop_to_budget"] for s in study["settings"]] == [1.0, 0.95, 2.0]
    assert "epochs" not in report.summary(made([("method", "dsdmae,mae")]), tmp_path).splitlines()[0]


def test_the_untrained_network_is_the_baseline(tmp_path: Path) -> None:
    results = made([("mask-ratio", "0.5,0.7")])
    report.write(results, tmp_path)
    assert "| untrained | 31.00% ± 2.48 (3 runs) |" in (tmp_path / "report.md").read_text()
    assert "untrained network" in (tmp_path / "figures" / "ablation.svg").read_text()
    # Networks of different shape have no common baseline.
    for row in results.rows:
        row.facts = row.facts | {"knn_untrained": 0.4 if row.point["mask-ratio"] == "0.5" else 0.2}
    results = Results(results.definition, results.rows, "/study", "")
    report.write(results, tmp_path)
    assert "| untrained | 20.00% to 40.00%, by setting |" in (tmp_path / "report.md").read_text()
    assert "untrained" not in report.summary(made([("mask-ratio", "0.5,0.7")], metric="linear"), Path("/study"))


def test_time_left_has_probes_in_it_once_one_has_shown_its_length(tmp_path: Path) -> None:
    done = Row(0, {"lambda": "0.2"}, 0, "done", 0.5, {"seconds": 100.0, "gflop": 10.0})
    rows = [done, Row(1, {"lambda": "0.4"}, 0, "running"), Row(2, {"lambda": "0.6"}, 0, "waiting")]

    def left(*jobs: tuple[Row, Job], judges: bool = True) -> str:
        return time_left(rows, list(jobs), lambda point: 10.0 if point["lambda"] != "0.6" else 20.0, judges)

    assert left(judges=False) == "5 min 00 s left"
    assert left() == "5 min 00 s left of pre-training"
    done.facts = done.facts | {"judged_seconds": 30.0}
    assert left() == "6 min 00 s left"
    # A run that is resumed at 40% says nothing of the speed before it has done some more.
    loaded = Base().load()
    job = Job(tmp_path, "a", loaded, find_metric("linear"), (), Slot("worker 1", {}), steps=100)
    job.run.mkdir()
    metrics = job.run / "metrics.jsonl"
    metrics.write_text('{"step": 40, "loss": 1.0}\n')
    job.news()
    assert (job.share, job.share_here) == (0.4, 0.0)
    with metrics.open("a") as file:
        file.write('{"step": 60, "loss": 0.9}\n')
    job.news()
    assert (job.share, round(job.share_here, 9)) == (0.6, 0.2)
    assert [row.state for row in rows].count("running") == 1
    job.began -= 60  # 20% in 60 s: three times as slow as the first
    # 24 GFLOP left at (100 + 60) s for (10 + 2) GFLOP, and two probes.
    job._child = Child(["--version"], tmp_path / "log", job.slot)
    assert left((rows[1], job)) == "6 min 20 s left"
    job.kill()


def test_what_else_was_measured_stands_beside(tmp_path: Path) -> None:
    also = (find_metric("ep"), find_metric("linear:all"))
    results = made([("mask-ratio", "0.5,0.7")], metric="linear", also=also)
    for row in results.rows:
        row.facts["also"] = {"ep": 0.6 + row.seed / 100, "linear:all": None}
    report.write(results, tmp_path)
    page, text = (tmp_path / "report.html").read_text(), (tmp_path / "report.md").read_text()
    rows = list(csv.DictReader(io.StringIO((tmp_path / "table.csv").read_text())))
    half = stats.t.ppf(0.975, 2) * 1 / math.sqrt(3)
    for content in (page, text):
        assert "linear-probe accuracy, best block" in content
        assert f"61.00% ± {half:.2f} (3 runs)" in content
    assert [row["ep"] for row in rows] == ["0.6", "0.61", "0.62"] * 2
    assert [row["linear:all"] for row in rows] == [""] * 6
    assert results.json()["settings"][0]["also"] == {"ep": pytest.approx(0.61), "linear:all": None}
    assert "ep-probe accuracy" in report.summary(results, tmp_path)


def test_settings_that_are_one_are_named() -> None:
    results = made([("mask-ratio", "0.5,0.85,0.9")])
    for row in results.rows:
        row.facts["loss"] = 0.1 if row.point["mask-ratio"] == "0.5" else 0.2
    same = [replace(row, value=0.5) if row.point["mask-ratio"] != "0.5" else row for row in results.rows]
    [said] = [text for text in caveats(replace(results, rows=same)) if "one setting" in text]
    assert said.startswith("mask-ratio 0.85 and mask-ratio 0.9 gave the same runs")
    assert not any("one setting" in text for text in caveats(results))


def test_equal_settings_have_no_best() -> None:
    results = made([("mask-ratio", "0.5,0.7,0.9")], seeds=1)
    rows = [replace(row, value=0.4 if row.point["mask-ratio"] == "0.7" else 0.5) for row in results.rows]
    equal = replace(results, rows=rows)
    assert (equal.best, equal.json()["best"]) == (None, None)
    assert verdict(equal) == (
        "No best: mask-ratio 0.5 and mask-ratio 0.9 came out equal, k-NN accuracy 50.00% (one run)."
    )


def test_one_seed_allows_no_judgement() -> None:
    assert "nothing can be said of the noise" in verdict(made([("mask-ratio", "0.5,0.7")], seeds=1))


def test_the_lowest_loss_is_best() -> None:
    results = made([("lr", "1e-4,1e-3,1e-2")], metric="loss")
    assert results.ranked[0].point == {"lr": "1e-4"}
    assert verdict(results).startswith("Best: lr 1e-4, pre-training loss 0.50")


def test_losses_of_other_mask_ratios_are_not_compared(tmp_path: Path) -> None:
    results = made([("mask-ratio", "0.5,0.7,0.9"), ("lr", "1e-4,1e-3")], metric="loss")
    report.write(results, tmp_path)
    assert verdict(results).startswith("No verdict: the pre-training loss of one mask-ratio is not that of another")
    found = results.json()
    assert (found["best"], found["incomparable"], found["p"]) == (None, ["mask-ratio"], None)
    assert 'class="best"' not in (tmp_path / "report.html").read_text()
    assert "**" not in (tmp_path / "report.md").read_text()
    assert not any(line.startswith("*") for line in report.summary(results, tmp_path).splitlines())
    assert not made([("mask-ratio", "0.5,0.7")], metric="knn").incomparable


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
    results = made(sweeps, **more)
    report.write(results, tmp_path)
    drawn = [ElementTree.parse(path) for path in sorted((tmp_path / "figures").glob("*.svg"))]
    assert len(drawn) == (len(sweeps) if len(sweeps) > 2 or "search" in more else 1)
    for svg in drawn:
        # A mark for each setting, and in the legend one for each line; a dot for each run where there are several.
        marks = [e for e in svg.iter() if e.get("class", "").endswith(" k")]
        lines = len(results.definition.axes[0].values) if len(sweeps) == 2 else 1
        assert len(results.settings) <= len(marks) <= len(results.settings) + 2 * lines
        dots = [e for e in svg.iter() if e.get("class", "").startswith("d ")]
        assert len(dots) == (len(results.rows) if results.definition.seeds > 1 else 0)


def test_the_page_leads_to_its_runs_and_shows_what_they_restore(tmp_path: Path) -> None:
    results = made([("mask-ratio", "0.5,0.7")], seeds=1)
    run = tmp_path / "trials" / "run 1%"
    results.rows[0].facts = results.rows[0].facts | {"run": run.name}
    (run / "figures").mkdir(parents=True)
    (run / "report.html").write_text("<html>")
    tiles = [Image.new("RGB", (96, 96), colour) for colour in ("red", "blue")]
    save(
        sheet([("given", tiles), ("restored", tiles)]),
        run / "figures" / "restored-step-00000004.png",
        ["given", "restored"],
    )
    report.write(results, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert set(re.findall('href="([^"]*)"', page)) == {"trials/run%201%25/report.html"}
    assert page.count("<img") == 1
    assert 'alt="mask-ratio 0.5, seed 0: given, restored"' in page


def test_no_path_of_the_machine_is_in_a_report(tmp_path: Path) -> None:
    results = made([("mask-ratio", "0.5,0.7")], dataset=f"folder:{tmp_path}/My Pictures")
    results = replace(results, command=f"dsdmae ablate '{tmp_path}/My Pictures' --out {tmp_path}/study/x")
    report.write(results, tmp_path)
    for name in ("report.html", "report.md"):
        text = (tmp_path / name).read_text()
        assert str(tmp_path) not in text
        assert "…/My Pictures" in text


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


def test_twins_are_one_row_and_one_point(tmp_path: Path) -> None:
    results = made([("mask-ratio", "0.5,0.85,0.9")])
    definition = replace(results.definition, twins={"mask-ratio 0.9": "mask-ratio 0.85"})
    results = Results(definition, [row for row in results.rows if row.point["mask-ratio"] != "0.9"], "/study", "")
    report.write(results, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "| and so mask-ratio 0.9 |" in text
    assert "mask-ratio 0.9 is the same computation as mask-ratio 0.85 (shares of few patches are" in text
    [chart] = charts(results)
    assert [x for x, _ in chart.series[0].points] == [0.5, 0.85]
    assert [name for _, name in chart.at] == ["0.5", "0.85"]
    # A study of 0.9 that grew by 0.85 has runs of both, which are the same.
    earlier = made([("mask-ratio", "0.5,0.85,0.9")])
    same = {row.seed: row.value for row in earlier.rows if row.point["mask-ratio"] == "0.85"}
    rows = [replace(row, value=same[row.seed]) if row.point["mask-ratio"] == "0.9" else row for row in earlier.rows]
    grown = Results(definition, rows, "/study", "")
    assert [setting.point["mask-ratio"] for setting in grown.settings] == ["0.5", "0.85"]
    assert verdict(grown).startswith("Best: mask-ratio 0.85")
