"""`dsdmae ablate` as a person meets it: errors before anything runs, whole sweeps of tiny runs, what they leave."""

from __future__ import annotations

import csv
import json
import re
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import assignments, cli, digit_folder, listing, one_line, start, steps_done, wait_until, words
from test_ablate_study import definition

from dsdmae_cli.ablation import report
from dsdmae_cli.ablation.study import Study
from dsdmae_cli.config.flags import flags_of

TINY = words([text for text in assignments("digits") if not text.startswith("train.knn_every")])
SWEEP = ("--sweep", "mask-ratio", "0.5,0.9")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return digit_folder(tmp_path / "digits", train=42, test=20)


def tiny(images: Path, *more: str) -> list[str]:
    """A study of runs of ten steps on a few real digits."""
    swept = {"optim.lr"} if "lr" in more else set()
    given = [t for t in assignments(images, "train.knn_every=1") if t.partition("=")[0] not in swept]
    return ["ablate", *words(given), *more]


def table(folder: Path) -> list[dict[str, str]]:
    """table.csv without what a clock measured."""
    with (folder / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((), "needs --sweep KEY VALUES"),
        (("--sweep",), "--sweep has no values"),
        (("--sweep", "lambda"), "--sweep lambda has no values"),
        (("--sweep", "lamda", "0..1"), "did you mean lambda?"),
        (("--sweep", "lambda", "1..0"), "runs backwards"),
        (("--sweep", "lambda", "0.5,7"), "(from --sweep lambda) is not allowed"),
        (("--sweep", "lambda", "0,1", "--sweep", "lambda", "0.5"), "both set method.lambda"),
        (("--sweep", "lambda", "0,1", "--lambda", "0.5"), "--sweep lambda and --lambda both set"),
        (("--sweep", "lambda", "0,1", "--paper", "fig4"), "leave one out"),
        (("--paper", "fig5"), "it takes fig3, fig4, table3"),
        ((*SWEEP, "--metric", "linear", "--also", "knn,linear"), "--also linear is what --metric measures already"),
        (
            (*SWEEP, "--also", "accuracy"),
            "--also accuracy: it takes knn, loss, finetune, attentive, ep, linear, logistic",
        ),
        ((*SWEEP, "--metric", "accuracy"), "it takes knn, loss, finetune, attentive, ep, linear, logistic"),
        ((*SWEEP, "--metric", "logistik"), "did you mean logistic?"),
        ((*SWEEP, "--metric-options", "--epochs 3"), "knn is measured by the run itself"),
        ((*SWEEP, "--search", "tpe"), "--search tpe needs --trials N"),
        ((*SWEEP, "--trials", "3"), "--trials is for --search"),
        ((*SWEEP, "--search", "bayes"), "it takes grid, tpe, random"),
        ((*SWEEP, "--workers", "2", "--parallel"), "give one"),
        ((*SWEEP, "--workers", "500", "--device", "cpu"), "would slow each other down"),
        ((*SWEEP, "--seeds", "0"), "--seeds"),
        ((*SWEEP, "--equal", "flops"), "it takes epochs, compute"),
        (("--sweep", "train.epochs", "2,3", "--equal", "compute"), "and so does --sweep train.epochs; leave one out"),
        (("--sweep", "method", "dsdmae,nosuch", "--equal", "compute"), "'nosuch' is not installed"),
        ((*SWEEP, "--set", "train.knn_every=none"), "--metric knn needs train.knn_every"),
        (
            (*SWEEP, "--set", "train.knn_every=none", "--metric", "linear", "--prune"),
            "--prune goes by the k-NN accuracy",
        ),
        ((*SWEEP, "--epochs", "x"), "--epochs"),
        ((*SWEEP, "--storage", "nonsense://"), "cannot open the study in nonsense://"),
        ((*SWEEP, "--storage", "bogus"), "cannot open the study in bogus: Could not parse"),
        ((*SWEEP, "--storage", "sqlite:////"), "cannot open the study in sqlite:////: Is a directory"),
        ((*SWEEP, "--storage", f"sqlite:///{__file__}"), "file is not a database"),
        (("--sweep", "backbone.embed_dim", "30,32"), "trial backbone.embed_dim 30"),
        (("--sweep", "dataset", "digits,folder:/no/such/folder"), "/no/such/folder"),
    ],
)
def test_refused_in_one_line_before_anything_runs(
    given: tuple[str, ...], said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, out, err = cli(capfd, "ablate", *given, "--out", tmp_path / "study")
    assert code == 2, err
    assert said in one_line(err)
    assert not out
    assert not (tmp_path / "study" / "trials").exists()


def test_what_needs_no_plan_is_refused_before_any_is_worked_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def nobody_there(url: str) -> Any:
        raise OSError(111, "Connection refused")

    monkeypatch.setattr("dsdmae_cli.ablation.storage.create_engine", lambda url: SimpleNamespace(
        dispose=lambda: None, connect=lambda: nobody_there(url)))  # fmt: skip
    monkeypatch.setattr("dsdmae_cli.recipes.ablate.Plans", lambda definition: pytest.fail("plans are worked out"))
    monkeypatch.setattr("dsdmae_cli.ablation.dry_run.Plans", lambda definition: pytest.fail("plans are worked out"))
    journal = tmp_path / "other" / "study.journal"
    Study(definition(("mask-ratio", "0.1,0.2")), journal)
    before = journal.read_bytes()
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "study.journal").write_bytes(b"{torn\n")
    for given, said in (
        (("--storage", "postgresql://me:SECRET@host/x"), "postgresql://me:***@host/x: Connection refused"),
        (("--workers", "500", "--device", "cpu"), "would slow each other down"),
        (("--out", journal.parent), "study.journal holds a study with --sweep mask-ratio 0.1,0.2"),
        (("--out", tmp_path / "torn"), "where it is damaged, move it away"),
    ):
        for more in ((), ("--dry-run",)):
            if more and "Connection" in said:
                continue  # which connects to nothing
            code, _, err = cli(capfd, "ablate", *TINY, *SWEEP, "--out", tmp_path / "study", *given, *more)
            assert (code, said in one_line(err)) == (2, True), err
            assert "SECRET" not in err
    assert journal.read_bytes() == before
    assert not (tmp_path / "study").exists()


def test_a_directory_of_something_else_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for out, said in ((tmp_path, "other things (notes.txt)"), (tmp_path / "notes.txt", "Not a directory")):
        for more in ((), ("--dry-run",)):
            code, _, err = cli(capfd, "ablate", *TINY, *SWEEP, "--out", out, *more)
            assert code == 2
            assert said in one_line(err)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_dry_run_prices_every_trial_and_writes_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    given = ["ablate", *TINY, *SWEEP, "--seeds", "2", "--out", str(tmp_path / "study"), "--dry-run"]
    code, out, _ = cli(capfd, *given, "--json")
    plan = json.loads(out)
    assert code == 0
    assert [t["run"] for t in plan["trials"]] == [f"mask-ratio-{r}-seed-{s}" for r in (0.5, 0.9) for s in (0, 1)]
    assert all(t["seconds"] > 0 and t["gflop"] > 0 and t["steps"] == 350 for t in plan["trials"])
    assert plan["total"]["gflop"] == pytest.approx(sum(t["gflop"] for t in plan["trials"]))
    code, out, _ = cli(capfd, *given)
    assert len(out.splitlines()) == 6
    assert "total: 4 runs to do" in out
    assert "not included: starting the processes" in out
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((*SWEEP,), "--metric knn cannot be measured: images of"),
        (("--sweep", "lr", "1e-3,1e-4"), "have no labels; take --metric loss, put each class into a folder"),
        ((*SWEEP, "--metric", "loss", "--also", "knn"), "--also knn cannot be measured: images of"),
        ((*SWEEP, "--metric", "logistic"), "--metric logistic cannot be measured: the training images of"),
        ((*SWEEP, "--metric", "loss", "--also", "linear:all"), "--also linear:all cannot be measured"),
        ((*SWEEP, "--metric", "finetune", "--metric-options", "--preset strong"), "--metric finetune cannot be"),
        ((*SWEEP, "--metric", "finetune", "--metric-options", "--task segment"), "have no masks"),
        ((*SWEEP, "--metric", "segment"), "have no masks"),
        (
            (*SWEEP, "--metric", "logistic", "--metric-options", "--dataset digits", "--prune"),
            "--prune goes by the k-NN accuracy on the way: images of",
        ),
    ],
)
def test_images_without_labels_are_refused_before_anything_is_trained(
    given: tuple[str, ...], said: str, dry: tuple[str, ...], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    images = digit_folder(tmp_path / "digits", train=12, test=4)
    for path in images.rglob("*.png"):
        path.rename(path.parents[1] / path.name)
    code, out, err = cli(capfd, *tiny(images, *given), "--out", tmp_path / "study", *dry)
    assert code == 2, err
    assert one_line(err).startswith("dsdmae: error: --"), "it is so of all trials"
    assert said in one_line(err)
    assert not out
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    "given", [("--metric", "loss"), ("--metric", "logistic", "--metric-options", "--dataset digits")]
)
def test_a_metric_that_needs_none_of_their_labels_is_planned(
    given: tuple[str, ...], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    images = digit_folder(tmp_path / "digits", train=12, test=4)
    for path in images.rglob("*.png"):
        path.rename(path.parents[1] / path.name)
    code, out, err = cli(capfd, *tiny(images, *SWEEP, *given), "--out", tmp_path / "study", "--dry-run")
    assert code == 0, err
    assert "total: 2 runs to do" in out


def test_equal_compute_gives_each_trial_its_epochs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    swept = ("--sweep", "method.decoder_depth", "1,2,8", "--equal", "compute", "--dry-run")
    given = [t for t in assignments("digits", "train.epochs=6") if "decoder_depth" not in t and "knn_every" not in t]
    code, out, err = cli(capfd, "ablate", *words(given), *swept, "--json", "--out", tmp_path / "study")
    assert code == 0, err
    one, two, eight = json.loads(out)["trials"]
    # The budget is the base's: a decoder of four blocks, as DSdMAE has it, for six epochs.
    assert one["epochs"] > two["epochs"] > 6 > eight["epochs"]
    for trial in (one, two, eight):
        budget = trial["gflop"] / trial["gflop_to_budget"]
        per_epoch = trial["gflop"] / trial["epochs"]
        assert abs(trial["gflop"] - budget) <= 0.501 * per_epoch
        assert trial["steps"] == 175 * trial["epochs"]


def test_a_setting_that_is_too_large_for_equal_compute_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    given = [t for t in assignments("digits", "train.epochs=1") if "decoder_depth" not in t and "knn_every" not in t]
    swept = ("--sweep", "method.decoder_depth", "1,24", "--equal", "compute", "--dry-run")
    code, out, err = cli(capfd, "ablate", *words(given), *swept)
    assert code == 0
    assert "warning: method.decoder_depth 24: one epoch takes" in err
    assert "decoder_depth 1: one epoch" not in err
    assert "of the budget" in out


def test_help_shows_the_option_of_two_words(capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = cli(capfd, "ablate", "--help")
    assert code == 0
    assert "KEY VALUES" in out


def test_completion_knows_keys_and_values() -> None:
    def complete(text: str, word: int) -> list[str]:
        environ = {"_DSDMAE_COMPLETE": "complete_bash", "COMP_WORDS": text, "COMP_CWORD": str(word)}
        driver = "import sys; sys.argv = ['dsdmae']; from dsdmae_cli.cli import app; app(prog_name='dsdmae')"
        out, err = start("-c", driver, environ=environ).communicate(timeout=60)
        assert "Traceback" not in err, err
        return out.split()

    assert complete("dsdmae ablate --sweep ma", 3) == ["mask-ratio"]
    assert complete("dsdmae ablate --sweep optim.w", 3) == ["optim.warmup_epochs", "optim.weight_decay"]
    assert complete("dsdmae ablate --sweep heads ", 4) == ["both,decoder,regressor"]
    assert "--metric" in complete("dsdmae ablate --sweep lambda 0..1 --me", 5)


def test_every_flag_of_pretrain_is_there() -> None:
    # Weights to begin with bring a network along; a sweep may change it.
    of_pretrain = [flag.name for flag in flags_of("pretrain") if flag.name != "--from"]
    assert [flag.name for flag in flags_of("ablate")] == of_pretrain


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_sweep_leaves_runs_and_a_report(
    images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, meanwhile, write = tmp_path / "study", [], report.write_meanwhile

    def seen(*given: Any) -> None:
        write(*given)
        meanwhile.append((out / "report.html").read_text())

    monkeypatch.setattr("dsdmae_cli.ablation.run._WRITE_SECONDS", 0.0)
    monkeypatch.setattr(report, "write_meanwhile", seen)
    command = tiny(images, *SWEEP, "--seeds", "2", "--out", str(out), "--json")
    code, printed, err = cli(capfd, *command)
    assert code == 0, err
    result = json.loads(printed)
    assert result["complete"]
    assert [s["settings"] for s in result["settings"]] == [{"mask-ratio": "0.5"}, {"mask-ratio": "0.9"}]
    names = {f"mask-ratio-{r}-seed-{s}" for r in (0.5, 0.9) for s in (0, 1)}
    assert {p.name for p in (out / "trials").iterdir()} == names
    for name in names:
        run = json.loads((out / "trials" / name / "result.json").read_text())
        [trial] = [t for t in result["trials"] if t["facts"]["run"] == name]
        assert trial["value"] == run["knn_accuracy"]
        assert trial["facts"]["seconds"] == run["seconds"]
    assert listing(out) >= {"report.md", "report.html", "table.csv", "study.json", "figures/ablation.svg"}
    assert all('class="state running"' in text for text in meanwhile)
    # Two runs at a time may end between two looks, and are then told of at once.
    told = [int(count) for text in meanwhile for count in re.findall(r"So far, with (\d) of 4 runs done\.", text)]
    assert len(told) == len(meanwhile) > 0
    assert told == sorted(set(told))
    assert set(told) <= {1, 2, 3}
    page = (out / "report.html").read_text()
    assert "So far" not in page
    assert 'class="state done"' in page
    assert "http:" not in page  # offline
    for setting in result["settings"]:
        assert f"{100 * setting['mean']:.2f}%" in page
        assert f"{100 * setting['mean']:.2f}%" in (out / "report.md").read_text()
    # The same command again trains nothing, and says the same.
    before = {path: path.stat().st_mtime_ns for path in (out / "trials").rglob("*")}
    code, again, _ = cli(capfd, *command)
    assert code == 0
    assert json.loads(again) == result
    assert {path: path.stat().st_mtime_ns for path in (out / "trials").rglob("*")} == before


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("how", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.long)])
def test_a_sweep_killed_in_the_middle_ends_with_the_same_table(
    how: signal.Signals, images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def command(name: str) -> list[str]:
        return tiny(images, *SWEEP, "--set", "train.epochs=40", "--workers", "1", "--out", str(tmp_path / name))

    assert cli(capfd, *command("whole"))[0] == 0
    study = start("-m", "dsdmae_cli", *command("cut"))
    second = tmp_path / "cut" / "trials" / "mask-ratio-0.9-seed-0"
    wait_until(lambda: steps_done(second) > 20, study, seconds=600)
    study.send_signal(how)
    _, err = study.communicate(timeout=600)
    if how is signal.SIGINT:
        assert study.returncode == 130, err
        assert "1 of 2 trials done" in err
        assert "the same command goes on" in err
        assert [row["state"] for row in table(tmp_path / "cut")] == ["done", "stopped"]
    assert cli(capfd, *command("cut"))[0] == 0
    assert table(tmp_path / "cut") == table(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_methods_at_equal_compute_and_a_grid_that_grows(
    images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "study"
    given = [t for t in assignments(images, "train.knn_every=1", "train.epochs=4") if not t.startswith("method.")]

    def run(methods: str, *more: str) -> tuple[int, str, str]:
        swept = ("--sweep", "method", methods, "--equal", "compute", "--out", str(out), "--json", *more)
        return cli(capfd, "ablate", *words(given), *swept)

    code, printed, err = run("dsdmae,mae")
    assert code == 0, err
    before = {s["settings"]["method"]: s for s in json.loads(printed)["settings"]}
    assert before["dsdmae"]["epochs"] == 4
    assert before["mae"]["epochs"] != 4  # a step of it costs something else
    for setting in before.values():
        result = json.loads((out / "trials" / f"method-{setting['settings']['method']}-seed-0/result.json").read_text())
        assert result["epochs"] == setting["epochs"]
        assert abs(setting["gflop_to_budget"] - 1) <= 0.5 / setting["epochs"]
    page = (out / "report.html").read_text()
    assert "of the budget" in page
    assert "untrained" in page

    code, _, err = run("dsdmae,mae", "--equal", "epochs")
    assert code == 2
    assert "--equal compute, and this command says epochs" in one_line(err)
    code, printed, err = run("mae,maskfeat,dsdmae")
    assert code == 0, err
    after = {s["settings"]["method"]: s for s in json.loads(printed)["settings"]}
    assert list(after) == ["mae", "maskfeat", "dsdmae"]
    assert {name: after[name] for name in before} == before  # those were not run again
    code, _, err = run("dsdmae,mae")
    assert code == 2
    assert "say these values too" in one_line(err)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_hopeless_trial_is_stopped_early_and_named(
    images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "study"
    # Four runs that learn, and one at a rate that destroys the network at once. By the loss: k-NN on twenty images is
    # too coarse to tell them apart on every machine.
    swept = ("--sweep", "lr", "1e-3,2e-3,3e-3,4e-3,0.3", "--metric", "loss", "--prune")
    command = tiny(images, *swept, "--workers", "1", "--set", "train.epochs=16")
    code, printed, err = cli(capfd, *command, "--out", str(out))
    assert code == 0, err
    *good, hopeless = table(out)
    assert [row["state"] for row in good] == ["done"] * 4
    assert hopeless["state"] == "pruned"
    assert hopeless["value"] == ""
    assert 30 <= 100 * int(hopeless["steps"]) / int(good[0]["steps"]) < 100
    assert not (out / "trials" / hopeless["run"] / "result.json").exists()
    for text in (printed, (out / "report.md").read_text(), (out / "report.html").read_text()):
        assert "1 pruned at " in text
    code, again, err = cli(capfd, *command, "--out", str(out), "--json")
    assert code == 0, err
    assert json.loads(again)["complete"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_share_a_study(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "study"
    command = tiny(images, *SWEEP, "--seeds", "2", "--workers", "1", "--out", str(out))
    both = [start("-m", "dsdmae_cli", *command) for _ in range(2)]
    said = [process.communicate(timeout=600)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    begun = [[line.partition(": begins")[0] for line in err.splitlines() if ": begins" in line] for err in said]
    assert all(begun)
    assert sorted(begun[0] + begun[1]) == sorted(set(begun[0] + begun[1]))
    assert {row["state"] for row in table(out)} == {"done"}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_failed_trial_is_kept_and_the_rest_goes_on(
    images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "study"
    # A learning rate at which every step is non-finite within a few.
    command = tiny(images, "--sweep", "lr", "1e-3,1e30", "--set", "train.max_nonfinite=3", "--out", str(out))
    code, printed, err = cli(capfd, *command)
    assert code == 0, err
    good, bad = table(out)
    assert (good["state"], bad["state"]) == ("done", "failed")
    assert "non-finite" in bad["reason"]
    assert bad["reason"] in printed
    assert bad["reason"].split("`")[0][:40] in (out / "report.md").read_text()
    # Where all fail, the same command alone would say the same again.
    command[command.index("1e-3,1e30")], command[command.index(str(out))] = "1e30,2e30", str(tmp_path / "none")
    code, _, err = cli(capfd, *command)
    assert code == 1
    assert err.splitlines()[-1].endswith(f"in {tmp_path / 'none' / 'logs'}, and --retry-failed runs them once more")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("metric", ["linear", "logistic"])
def test_metrics_of_other_commands_are_measured(
    metric: str, images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "study"
    words = (*SWEEP, "--metric", metric, "--also", "knn,logistic:1", "--out", str(out), "--json")
    code, printed, err = cli(capfd, *tiny(images, *words))
    assert code == 0, err
    for trial in json.loads(printed)["trials"]:
        run = out / "trials" / f"{trial['facts']['run']}"
        inner = json.loads(run.with_name(f"{run.name}-logistic-1").joinpath("result.json").read_text())
        assert inner["block"] == "1"
        assert trial["facts"]["also"] == {"knn": trial["facts"]["knn"], "logistic:1": inner["top1"]}
        judged: dict[str, Any] = json.loads(
            (out / "trials" / f"{trial['facts']['run']}-{metric}/result.json").read_text()
        )
        assert (trial["value"], judged["probe"]) == (judged["top1"], metric)
