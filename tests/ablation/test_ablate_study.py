"""The books of a study: who runs what, what is done once only, what happens to the trials of those who are gone.

No training here: trials end with numbers of the test's own, in Optuna's real storages.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dsdmae_cli import plugins
from dsdmae_cli.ablation.definition import Definition, find_metric, measured, metric_names, trial_name
from dsdmae_cli.ablation.study import Row, Study
from dsdmae_cli.ablation.sweep import Base, parse_axes
from dsdmae_cli.errors import SettingsError

Storage = Callable[[], "Path | str"]


@pytest.fixture(params=["journal", "sqlite"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    return tmp_path / "study.journal" if request.param == "journal" else f"sqlite:///{tmp_path / 'study.db'}"


def definition(*sweeps: tuple[str, str], **more: Any) -> Definition:
    base = Base()
    pairs = list(sweeps) or [("mask-ratio", "0.75,0.9")]
    return Definition(base, parse_axes(pairs, base), find_metric("knn"), **more)


def test_a_probe_of_blocks_is_a_metric() -> None:
    metric = find_metric("linear:all")
    assert metric.command == ("probe", "--kind", "linear", "--blocks", "all")
    assert (metric.label, find_metric("ep:last:2").label) == (
        "linear-probe accuracy, best block", "ep-probe accuracy, blocks last:2",
    )  # fmt: skip
    assert find_metric("knn:3").command == ("probe", "--kind", "knn", "--blocks", "3")
    for wrong in ("linear:", "linear:first", "loss:all", "finetune:all", "none:all"):
        with pytest.raises(SettingsError, match="a probe takes blocks too, as linear:all"):
            find_metric(wrong)


def test_fine_tuning_to_name_pixels_has_a_mean_iou() -> None:
    for words in (["--task", "segment"], ["--task=segment", "--epochs", "2"], ["--set", "finetune.task=segment"]):
        assert measured(find_metric("finetune"), words).label == "fine-tuned mean IoU"
    assert measured(find_metric("finetune"), ["--epochs", "2"]).label == "fine-tuned accuracy"
    for other in ("knn", "linear", "segment"):
        assert measured(find_metric(other), []) == find_metric(other)


def test_every_installed_probe_is_a_metric() -> None:
    for plugin in plugins.discover("probe"):
        metric = find_metric(plugin.name)
        # k-NN at the end of pre-training comes with every run.
        assert metric.command == (() if plugin.name == "knn" else ("probe", "--kind", plugin.name))
        assert metric.is_share
        assert metric.higher_is_better
        assert plugin.name in metric_names()


def work_off(
    study: Study, value: Callable[[Row], float] = lambda row: float(next(iter(row.point.values())))
) -> list[Row]:
    """Take and finish all there is."""
    done = []
    study.top_up()
    while (row := study.claim()) is not None:
        study.finish(row, value(row), {"seconds": 1.0})
        done.append(row)
    return done


def test_whole_curves_first_then_the_next_seed(storage: Path | str) -> None:
    study = Study(definition(seeds=2), storage)
    done = [(row.point["mask-ratio"], row.seed) for row in work_off(study)]
    assert done == [("0.75", 0), ("0.9", 0), ("0.75", 1), ("0.9", 1)]
    assert [row.value for row in study.rows()] == [0.75, 0.9, 0.75, 0.9]
    assert {row.state for row in study.rows()} == {"done"}


def test_the_same_command_again_finds_nothing_to_do_and_more_seeds_go_on(storage: Path | str) -> None:
    work_off(Study(definition(), storage))
    assert work_off(Study(definition(), storage)) == []
    assert [row.seed for row in work_off(Study(definition(seeds=3), storage))] == [1, 1, 2, 2]


def test_two_workers_share_and_run_nothing_twice(storage: Path | str) -> None:
    one, two = (Study(definition(("mask-ratio", "0.75,0.8,0.9"), seeds=2), storage) for _ in range(2))
    one.top_up()
    two.top_up()
    taken: list[str] = []
    while True:
        rows = [(worker, row) for worker in (one, two) if (row := worker.claim()) is not None]
        if not rows:
            break
        for worker, row in rows:
            taken.append(trial_name(row.point, row.seed))
            worker.finish(row, 0.5, {})
    assert len(taken) == 6
    assert len(set(taken)) == 6


def test_a_grid_queued_twice_is_run_once(storage: Path | str) -> None:
    """Two processes that start in the same instant both find nothing queued."""
    one, two = (Study(definition(), storage) for _ in range(2))
    one._standing = dict  # type: ignore[method-assign,assignment]  # as if it had looked before the other queued
    two.top_up()
    one.top_up()
    del one._standing
    assert len(work_off(two)) == 2
    assert work_off(one) == []
    assert len(two.rows()) == 2


def test_a_failed_trial_is_kept_with_its_reason_and_not_run_again_unless_asked(storage: Path | str) -> None:
    study = Study(definition(), storage)
    study.top_up()
    row = study.claim()
    assert row is not None
    study.fail(row, "out of memory")
    assert len(work_off(study)) == 1
    failed, done = study.rows()
    assert (failed.state, failed.reason, failed.value) == ("failed", "out of memory", None)
    assert done.state == "done"
    assert work_off(Study(definition(), storage)) == []
    assert len(work_off(Study(definition(), storage, retry_failed=True))) == 1
    assert {row.state for row in Study(definition(), storage).rows()} == {"done"}


def test_a_stopped_trial_is_queued_by_the_next_start(storage: Path | str) -> None:
    study = Study(definition(), storage)
    study.top_up()
    row = study.claim()
    assert row is not None
    study.stop(row, "stopped at 40%")
    assert study.rows()[0].state == "stopped"
    again = Study(definition(), storage)
    assert len(work_off(again)) == 2
    assert {row.state for row in again.rows()} == {"done"}


def test_the_trial_of_a_dead_process_is_taken_up(storage: Path | str) -> None:
    gone = Study(definition(), storage)
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        gone.owner = {**gone.owner, "pid": process.pid}
    gone.top_up()
    assert gone.claim() is not None
    study = Study(definition(), storage)
    study.top_up()
    assert [row.state for row in study.rows()] == ["running", "waiting"]
    assert study.reclaim()
    assert not study.reclaim()
    assert len(work_off(study)) == 2


def test_a_silent_process_of_another_machine_is_given_up_by_our_own_clock(
    storage: Path | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = Study(definition(), storage)
    far.owner = {**far.owner, "host": "elsewhere"}
    far.top_up()
    row = far.claim()
    assert row is not None
    study = Study(definition(), storage)
    now = [0.0]
    monkeypatch.setattr("dsdmae_cli.ablation.study.time.monotonic", lambda: now[0])
    assert not study.reclaim()
    now[0] = 100.0
    assert not study.reclaim()
    far._beaten = -100.0
    far.beat()
    now[0] = 190.0
    assert not study.reclaim()  # it has beaten in between
    now[0] = 320.0
    assert study.reclaim()


def test_a_living_process_keeps_its_trial(storage: Path | str) -> None:
    one, two = Study(definition(), storage), Study(definition(), storage)
    one.top_up()
    assert one.claim() is not None
    assert not two.reclaim()
    assert len(work_off(two)) == 1


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (definition(("mask-ratio", "0.5,0.9")), "--sweep mask-ratio 0.75,0.9"),
        (definition(("mask-ratio", "0.9")), "say these values too, or choose another --out"),
        (
            definition(("mask-ratio", "0.75,0.9"), ("lambda", "0.2,0.6")),
            "and this command says mask-ratio 0.75,0.9 and",
        ),
        (definition(equal="compute"), "--equal epochs, and this command says compute"),
        (Definition(Base(), definition().axes, find_metric("loss")), "--metric knn"),
        (Definition(Base(flags={"train.epochs": "3"}), definition().axes, find_metric("knn")), "train.epochs"),
    ],
)
def test_another_study_in_the_same_place_is_refused(tmp_path: Path, other: Definition, said: str) -> None:
    Study(definition(), tmp_path / "j")
    with pytest.raises(SettingsError, match="choose another --out") as error:
        Study(other, tmp_path / "j")
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("key", "first", "then", "new"),
    [
        ("method", "dsdmae,mae", "mae,sdae,dsdmae", ["sdae"]),
        ("mask-ratio", "0.75..0.95:0.1", "0.65..0.95:0.1", ["0.65"]),
        ("noise-std", "1,2", "1,2,[0.5,1]", ["[0.5,1]"]),
    ],
)
def test_a_grid_may_grow(key: str, first: str, then: str, new: list[str], tmp_path: Path) -> None:
    work_off(Study(definition((key, first)), tmp_path / "j"), lambda row: 0.5)
    grown = Study(definition((key, then)), tmp_path / "j")
    assert [row.point[key] for row in work_off(grown, lambda row: 0.5)] == new
    with pytest.raises(SettingsError, match="say these values too"):
        Study(definition((key, first)), tmp_path / "j")


def test_a_worker_takes_and_reports_what_a_later_one_brought(tmp_path: Path) -> None:
    early = Study(definition(("method", "dsdmae,mae")), tmp_path / "j")
    early.top_up()
    late = Study(definition(("method", "mae,dsdmae,sdae")), tmp_path / "j")
    late.top_up()
    assert {row.point["method"] for row in work_off(early, lambda row: 0.5)} == {"dsdmae", "mae", "sdae"}
    assert work_off(late, lambda row: 0.5) == []
    assert early.definition.axes[0].values == ("mae", "dsdmae", "sdae")


def test_a_study_from_before_grids_could_grow_does(tmp_path: Path) -> None:
    """Optuna was told the words of a grid then, and allows no others beside them."""
    from optuna.distributions import CategoricalDistribution

    old = Study(definition(("method", "dsdmae,mae")), tmp_path / "j")
    old._distributions = lambda: {"method": CategoricalDistribution(("dsdmae", "mae"))}  # type: ignore[method-assign]
    assert len(work_off(old, lambda row: 0.5)) == 2
    grown = Study(definition(("method", "dsdmae,mae,sdae")), tmp_path / "j")
    assert [row.point["method"] for row in work_off(grown, lambda row: 0.5)] == ["sdae"]


def test_the_device_may_differ_between_machines(tmp_path: Path) -> None:
    Study(definition(), tmp_path / "j")
    elsewhere = Definition(Base(flags={"train.device": "cuda:1"}), definition().axes, find_metric("knn"))
    Study(elsewhere, tmp_path / "j")
    assert elsewhere.name == definition().name


@pytest.mark.parametrize("storage", ["nonsense://x", "sqlite:////no/such/folder/study.db", "mysql://nobody@0.0.0.0/x"])
def test_a_storage_that_cannot_be_opened_is_one_line(storage: str) -> None:
    with pytest.raises(SettingsError, match=r"cannot open the study in|there is no driver for") as error:
        Study(definition(), storage)
    assert "\n" not in str(error.value)


def test_a_damaged_journal_is_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    journal = tmp_path / "study.journal"
    work_off(Study(definition(), journal))
    whole = journal.read_bytes()
    journal.write_bytes(whole[:200] + bytes(range(128, 256)) + whole[200:])
    with pytest.raises(SettingsError, match=r"study\.journal: .*; where it is damaged, move it away: the same command"):
        Study(definition(), journal)


@pytest.mark.parametrize("search", ["tpe", "random"])
def test_a_search_draws_as_many_points_as_asked_each_with_all_seeds(tmp_path: Path, search: Any) -> None:
    asked = definition(("mask-ratio", "0.5..0.95"), ("method", "dsdmae,mae"), search=search, trials=4, seeds=2)
    done = work_off(Study(asked, tmp_path / "j"))
    names = {trial_name(row.point, row.seed) for row in done}
    assert len(done) == len(names) == 8
    assert all(0.5 <= float(row.point["mask-ratio"]) <= 0.95 for row in done)
    assert work_off(Study(asked, tmp_path / "j")) == []
    more = definition(("mask-ratio", "0.5..0.95"), ("method", "dsdmae,mae"), search=search, trials=5, seeds=2)
    assert len(work_off(Study(more, tmp_path / "j"))) == 2


@pytest.mark.parametrize("text", ["0.9000001..0.9000002", "0.12345..0.1234567", "1e-7..2.2e-7log", "0.9..0.90001:1e-6"])
def test_a_search_of_a_narrow_range_stays_within_it_and_finds_different_values(tmp_path: Path, text: str) -> None:
    """Values that four digits cannot tell apart were one value, out of the range, and ended the search."""
    asked = definition(("optim.weight_decay", text), search="random", trials=4)
    study = Study(asked, tmp_path / "j")
    drawn = [float(row.point["optim.weight_decay"]) for row in work_off(study)]
    span = asked.axes[0].span
    assert span is not None
    assert len(set(drawn)) == 4
    assert all(span.low <= value <= span.high for value in drawn)
    assert not study.used_up


def test_a_search_of_a_space_that_is_used_up_ends(tmp_path: Path) -> None:
    study = Study(definition(("method", "dsdmae,mae"), search="random", trials=9), tmp_path / "j")
    assert len(work_off(study, lambda row: 0.5)) == 2
    assert study.used_up


def test_tpe_learns_where_the_best_is(tmp_path: Path) -> None:
    asked = definition(("mask-ratio", "0.1..1"), search="tpe", trials=40)
    done = work_off(Study(asked, tmp_path / "j"), lambda row: -abs(float(row.point["mask-ratio"]) - 0.8))
    late = [abs(float(row.point["mask-ratio"]) - 0.8) for row in done[20:]]
    assert sum(late) / len(late) < 0.15  # chance would give 0.27


def test_hopeless_trials_are_pruned_and_only_if_asked(tmp_path: Path) -> None:
    for prune in (False, True):
        asked = definition(("mask-ratio", "0.5,0.6,0.7,0.8,0.9"), prune=prune)
        study = Study(asked, tmp_path / f"{prune}")
        study.top_up()
        for _ in range(4):
            row = study.claim()
            assert row is not None
            assert not any(study.report(row, share, 0.8) for share in (0.1, 0.48, 1))
            study.finish(row, 0.8, {})
        last = study.claim()
        assert last is not None
        assert not study.report(last, 0.1, 0.1)  # early on every run looks bad
        assert study.report(last, 0.52, 0.1) is prune  # compared at half of the run, though not at the same step


def test_names_of_trials_are_safe_and_different() -> None:
    plain = trial_name({"mask-ratio": "0.75"}, 0)
    assert plain == "mask-ratio-0.75-seed-0"
    odd = {trial_name({"dataset": value}, 0) for value in ("folder:/a/b", "folder:/a-b", "folder:-a-b", "x" * 300)}
    assert len(odd) == 4
    assert all("/" not in name and len(name) < 130 for name in odd)
