"""`dsdmae worth`: what is asked, what is chosen and by which images, what is said, and how time is kept."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote

import numpy as np
import pytest
from filelock import FileLock
from helpers import cli, digit_folder, masked_folder, one_line
from scipy import stats

from dsdmae_cli.config.compose import compose
from dsdmae_cli.config.schema import WORTH
from dsdmae_cli.errors import RunFailed, RunInterrupted, SettingsError
from dsdmae_cli.report import Report
from dsdmae_cli.runs.child import Slot
from dsdmae_cli.worth import page, running
from dsdmae_cli.worth.findings import Gain, read
from dsdmae_cli.worth.record import plan_text
from dsdmae_cli.worth.running import Runner, check_same
from dsdmae_cli.worth.tasks import Contender, Question, Task, epochs_of, usable_shares, words_of, write_settings
from dsdmae_cli.worth.words import answer

SCRATCH, RUN = Contender("scratch", "without pre-training", "scratch"), Contender("run", "pre-trained (r)", "runs/r")


def question(**changes: Any) -> Question:
    loaded = compose(WORTH, environ={}, base=({"data": {"dataset": "digits"}, "finetune": {"start": "runs/r"}}, "r"))
    plain = Question((SCRATCH, RUN), (0.1, 1.0), (140, 1400), 3, 60, "data", loaded.settings)
    return replace(plain, **changes)


# -- what is asked


def test_shares_that_leave_a_class_too_few_labels_are_left_out() -> None:
    labels = np.repeat([0, 1, 2], [100, 50, 30])
    good, bad = usable_shares((0.01, 0.05, 0.1, 1.0), labels)
    assert good == {0.05: 9, 0.1: 18, 1.0: 180}
    assert bad == {0.01: 3}
    assert usable_shares((0.01,), np.array([0, 1]))[0] == {1.0: 2}  # all labels are always judged with


@pytest.mark.parametrize(("share", "epochs"), [(1.0, 14), (0.25, 28), (0.01, 140), (0.0001, 140)])
def test_few_labels_get_more_epochs_and_fewer_steps(share: float, epochs: int) -> None:
    assert epochs_of(14, share) == epochs


def test_every_task_is_a_command_that_a_person_could_type(tmp_path: Path) -> None:
    asked = question()
    write_settings(asked, tmp_path)
    linear = words_of(Task(RUN, "linear", 2), asked, tmp_path, 14)
    assert linear[:4] == ["probe", "runs/r", "--config", str(tmp_path / "probe.toml")]
    assert linear[-4:] == ["--set", "probe.few_shot=[0.1, 1.0]", "--set", "probe.draws=1"]
    # A tracker is told of every task that judges, and is no part of the question: answers given without it stay.
    train = asked.settings.train.model_copy(update={"trackers": ("a", "b")})
    told = replace(asked, settings=asked.settings.model_copy(update={"train": train}))
    for way in ("linear", "ep", "finetune"):
        assert "--track a --track b" in " ".join(words_of(Task(RUN, way, 2), told, tmp_path, 14))
    assert "--track" not in words_of(Task(RUN, "finetune", 2, timing=True), told, tmp_path, 14)
    assert told.json() == asked.json()
    # A share is said as it is: 2.9% would come back as 0.028999999999999998.
    odd = words_of(Task(RUN, "linear", 2), replace(asked, shares=(0.029, 1.0)), tmp_path, 14)
    assert "probe.few_shot=[0.029, 1.0]" in odd
    tuned = " ".join(words_of(Task(SCRATCH, "finetune", 2, 0.1), asked, tmp_path, 14))
    assert tuned.startswith(f"finetune scratch --config {tmp_path / 'finetune-scratch.toml'} --seed 2 ")
    # 126 of 140 labels are trained on: batches of 8 make more than eight steps an epoch.
    # The rate is that of the batch of 128, which few labels do not fill: nothing is learned at that of a batch of 8.
    assert "--epochs 44 --batch-size 8 --lr 0.0005 --validation 0.1 --set finetune.labels=0.1" in tuned
    whole = " ".join(words_of(Task(SCRATCH, "finetune", 2), asked, tmp_path, 14))
    assert "--epochs 14 --batch-size 128 --lr 0.0005 " in whole
    other = Contender("beside1", "timm:x", "timm:x", own_backbone=True)
    assert str(tmp_path / "probe-data.toml") in words_of(Task(other, "ep", 0), asked, tmp_path, 14)
    assert "[backbone]" in (tmp_path / "finetune.toml").read_text()
    assert "[backbone]" not in (tmp_path / "finetune-data.toml").read_text()
    for path in tmp_path.glob("*.toml"):  # the command says what it begins with, and no file anything else
        assert "start = " not in path.read_text(), path


# -- what was found


def leave(
    folder: Path, task: Task, top1: float, held_out: float | None, shares: tuple[float, ...] = (0.1, 1.0)
) -> None:
    """A result as probe and finetune leave it; a linear probe's grows with the share."""
    result: dict[str, Any] = {"top1": top1, "num_images": 397, "seconds": 10.0, "flops": 1e12,
                              "pretrain_seconds": 60.0, "pretrain_flops": 5e12}  # fmt: skip
    if task.way == "linear":
        result["few_shot"] = [
            {"share": share, "images": 1400 * share, "top1": top1 * share**0.1, "values": [top1 * share**0.1],
             "held_out": [held_out]}
            for share in shares
        ]  # fmt: skip
    elif task.way == "ep":
        result["held_out"] = {} if held_out is None else {"0.5": 0.0, "2.0": held_out}
    else:
        result["validation"] = None if held_out is None else {"epoch": 3, "accuracy": held_out}
    path = folder / task.name
    path.mkdir(parents=True)
    (path / "result.json").write_text(json.dumps(result))


def test_the_way_is_chosen_by_held_out_images_and_never_by_test_images(tmp_path: Path) -> None:
    asked = question(shares=(1.0,), labels=(1400,))
    for seed in range(3):
        leave(tmp_path, Task(RUN, "linear", seed), 0.90, 0.70, (1.0,))
        leave(tmp_path, Task(RUN, "finetune", seed), 0.60, 0.80)
        leave(tmp_path, Task(SCRATCH, "linear", seed), 0.40, 0.50, (1.0,))
        leave(tmp_path, Task(SCRATCH, "finetune", seed), 0.50, 0.45)
    found = read(asked, tmp_path)
    assert found.best_way(RUN, 1.0) == "finetune"
    assert found.best_way(SCRATCH, 1.0) == "linear"
    [gain] = found.gains(RUN, SCRATCH)
    assert gain.mean == pytest.approx(0.60 - 0.40)


def test_a_way_without_all_seeds_is_not_chosen(tmp_path: Path) -> None:
    asked = question(shares=(1.0,), labels=(1400,))
    for seed in range(3):
        leave(tmp_path, Task(RUN, "linear", seed), 0.5, 0.6, (1.0,))
    leave(tmp_path, Task(RUN, "ep", 0), 0.9, 0.9)
    assert read(asked, tmp_path).best_way(RUN, 1.0) == "linear"


def test_gains_are_paired_by_seed_with_students_interval(tmp_path: Path) -> None:
    asked, scratch, run = question(), [0.40, 0.42, 0.47], [0.50, 0.51, 0.58]
    for seed in range(3):
        leave(tmp_path, Task(SCRATCH, "linear", seed), scratch[seed], 0.4)
        leave(tmp_path, Task(RUN, "linear", seed), run[seed], 0.5)
    found = read(asked, tmp_path)
    gain = found.gains(RUN, SCRATCH)[-1]
    # 397 test images leave more open than three seeds that agree.
    p, q = np.mean(run), np.mean(scratch)
    half = 1.96 * np.sqrt((p * (1 - p) + q * (1 - q)) / 397)
    assert (gain.labels, gain.share) == (1400, 1.0)
    assert gain.interval == pytest.approx((p - q - half, p - q + half))
    assert gain.sign == 1
    expected = stats.ttest_1samp(np.subtract(run, scratch), 0).confidence_interval(0.95)
    many = replace(found, test_images=10**6).gains(RUN, SCRATCH)[-1]
    assert many.interval == pytest.approx((expected.low, expected.high))
    scores = found.of(RUN, 1.0)["linear"]
    assert (scores.seconds, scores.flops) == (30.0, 3e12)


# -- what is said


def gain(labels: int, mean: float, low: float, high: float, share: float = 0.5) -> Gain:
    return Gain(labels, share, mean / 100, (low / 100, high / 100))


GOOD, GREAT = gain(500, 3.0, 1.0, 5.0), gain(100, 6.1, 4.8, 7.4)
OPEN, BAD = gain(10000, 0.3, -0.9, 1.5, 1.0), gain(10000, -2.0, -3.0, -1.0, 1.0)


FEW = gain(50, 0.1, -1, 2)


@pytest.mark.parametrize(
    ("gains", "parts"),
    [
        ([GREAT, GOOD], ["Worth it at every number of labels tried: +6.1 points (4.8, 7.4) with 100, ",
                         "+3.0 points (1.0, 5.0) with 500."]),
        ([GREAT], ["Worth it with 100 labels: +6.1 points (4.8, 7.4)."]),
        ([GREAT, GOOD, OPEN], ["Worth it up to 500 labels: +6.1 points (4.8, 7.4) with 100, ",
                               "+3.0 points (1.0, 5.0) with 500; no difference that 3 seeds show with",
                               " all 10,000 labels: +0.3 points (-0.9, 1.5)."]),
        ([GREAT, BAD], ["Worth it with 100 labels: +6.1 points (4.8, 7.4); worse with all 10,000 labels: ",
                        "-2.0 points (-3.0, -1.0)."]),
        ([OPEN], ["No difference that 3 seeds show with 10,000 labels: +0.3 points (-0.9, 1.5)."]),
        ([BAD], ["Not worth it, worse with 10,000 labels: -2.0 points (-3.0, -1.0)."]),
        ([FEW, GREAT, GOOD], ["Worth it from 100 labels on: +6.1 points (4.8, 7.4) with 100, +3.0 points (1.0, 5.0)",
                              " with 500; no difference that 3 seeds show with 50 labels: +0.1 points (-1.0, 2.0)."]),
    ],
)  # fmt: skip
def test_the_first_sentence_is_the_answer(gains: list[Gain], parts: list[str]) -> None:
    assert answer(gains, 3) == "".join(parts)


def test_one_seed_claims_nothing() -> None:
    said = answer([Gain(100, 0.5, 0.061, None)], 1)
    assert said == "One seed, so that nothing can be said of chance: +6.1 points."


def test_the_page_says_it_and_stands_alone(tmp_path: Path) -> None:
    asked = question()
    for seed in range(3):
        for contender, top1 in ((SCRATCH, 0.4), (RUN, 0.5)):
            leave(tmp_path, Task(contender, "linear", seed), top1 + 0.01 * seed, 0.4)
            for share in asked.shares:
                leave(tmp_path, Task(contender, "finetune", seed, share), top1 / 2, 0.3)
    said = page.write(read(asked, tmp_path, ["a note of <care>"]), tmp_path, "dsdmae worth runs/r", 14, 300.0)
    html, md = ((tmp_path / f"report.{kind}").read_text() for kind in ("html", "md"))
    assert said.startswith("Worth it at every number of labels tried: +")
    assert html.index(said) < html.index("<svg")
    assert md.split("\n")[2] == said
    assert "http:" not in html  # opens offline
    assert "a note of &lt;care&gt;" in html
    assert "51.0 ± 2.5 (linear probe)" in md
    assert "| 1 min 00 s, 5 TFLOP |" in md
    assert "![Accuracy over labels](figures/worth.svg)" in md
    svg = (tmp_path / "figures" / "worth.svg").read_text()
    # Two networks, two ways, two numbers of labels, a mark each, and one in the legend; a dot for each seed.
    assert (len(re.findall('class="f. k"', svg)), len(re.findall('class="d s.', svg))) == (2 * 2 * 2 + 4, 3 * 8)


# -- how time is kept


class FakeChild:
    """A command that takes a moment and leaves a result, or fails, or waits to be stopped."""

    fails: str | None = None
    waits: str | None = None
    started: ClassVar[list[list[str]]] = []
    epoch_seconds = 30.0

    def __init__(self, words: list[str], log: Path, slot: Slot) -> None:
        self.words, self.log, self.reason, self.stopped = words, log, "", False
        self.folder = Path(words[-1])
        FakeChild.started.append(words)

    def poll(self) -> str:
        name = self.folder.name
        if FakeChild.waits is not None and FakeChild.waits in name:
            return "stopped" if self.stopped else "running"
        if FakeChild.fails is not None and FakeChild.fails in name:
            self.reason = "out of memory"
            return "failed"
        if not self.folder.exists():
            key, way, *_ = [*name.split("-"), "finetune"]
            known: Any = way if way in ("linear", "ep") else "finetune"
            task = Task(RUN if key == "run" else SCRATCH, known, 0)
            leave(self.folder.parent / "made" / name, task, 0.5, 0.5)
            (self.folder.parent / "made" / name / task.name).rename(self.folder)
            result = json.loads((self.folder / "result.json").read_text())
            result["train_seconds"] = FakeChild.epoch_seconds
            (self.folder / "result.json").write_text(json.dumps(result))
        return "done"

    def stop(self) -> None:
        self.stopped = True

    def kill(self) -> None:
        self.stopped = True


@pytest.fixture
def faked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "Child", FakeChild)
    monkeypatch.setattr(running, "_POLL_SECONDS", 0.001)
    for name, value in (("fails", None), ("waits", None), ("started", []), ("epoch_seconds", 30.0)):
        monkeypatch.setattr(FakeChild, name, value)


SLOTS = [Slot("worker 1", {}), Slot("worker 2", {})]


def done(folder: Path) -> set[str]:
    return {path.parent.name for path in (folder / "judged").glob("*/result.json")}


def test_a_dry_run_refuses_the_directory_that_the_question_itself_would(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    asked = question()
    assert plan_text(asked, [], tmp_path / "new")[0]["folder"] == str(tmp_path / "new")
    for out, said in ((tmp_path, "other things"), (tmp_path / "file" / "x", "Not a directory")):
        with pytest.raises(SettingsError, match=said):
            plan_text(asked, [], out)
    (tmp_path / "held").mkdir()
    with FileLock(tmp_path / "held" / ".lock"), pytest.raises(SettingsError, match="another process is running in"):
        plan_text(asked, [], tmp_path / "held")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "held"]


def test_the_budget_decides_the_epochs(faked: None, tmp_path: Path) -> None:
    runner = Runner(question(minutes=30), tmp_path, SLOTS, Report())
    runner.run()
    # 0.95 * 1800 s in two places, for six rounds of an epoch of 30 s and, with a tenth of the labels, of 0.316 of it.
    assert runner.epochs == int(0.95 * 1800 * 2 / (6 * 30 * (1 + 0.32)))
    assert len(done(tmp_path)) == 1 + 6 + 6 + 12
    tuned = [words for words in FakeChild.started if words[0] == "finetune" and "pace" not in words[-1]]
    assert {words[words.index("--epochs") + 1] for words in tuned} == {"14", "44"}
    assert json.loads((tmp_path / "worth.json").read_text())["epochs"] == 14


def test_a_budget_that_is_too_short_is_said(faked: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    runner = Runner(question(minutes=0.5), tmp_path, SLOTS, Report())
    runner.run()
    assert runner.epochs == 1
    assert "too short for fine-tuning" in capfd.readouterr().err
    assert "too short" in runner.notes[0]


def test_a_task_that_fails_stops_no_other_and_is_tried_again(faked: None, tmp_path: Path) -> None:
    asked = question(minutes=30)
    FakeChild.fails = "run-finetune-100%-1"
    first = Runner(asked, tmp_path, SLOTS, Report())
    first.run()
    assert first.failed == {"run-finetune-100%-1": "out of memory"}
    assert len(done(tmp_path)) == 24
    FakeChild.fails, FakeChild.epoch_seconds = None, 3000.0
    FakeChild.started.clear()
    again = Runner(asked, tmp_path, SLOTS, Report())
    again.run()
    assert (again.epochs, again.failed) == (14, {})
    assert [Path(words[-1]).name for words in FakeChild.started] == ["run-finetune-100%-1"]
    assert again.seconds > first.seconds - 1  # the earlier sitting counts


def test_where_all_fails_it_is_said(faked: None, tmp_path: Path) -> None:
    FakeChild.fails = "run-"
    with pytest.raises(RunFailed, match=r"run-linear-0 failed: out of memory; what the tasks said is in .*logs"):
        Runner(question(), tmp_path, SLOTS, Report()).run()


def test_weights_that_change_while_they_are_judged_are_refused(faked: None, tmp_path: Path) -> None:
    asked = question(contenders=(SCRATCH, replace(RUN, weights="other")))
    with pytest.raises(RunFailed, match="changed while they were judged"):
        Runner(asked, tmp_path, SLOTS, Report()).run()


def test_ctrl_c_stops_the_children_and_says_how_to_go_on(faked: None, tmp_path: Path) -> None:
    FakeChild.waits = "ep"
    runner = Runner(question(), tmp_path, SLOTS, Report())
    pid = os.getpid()

    def interrupt(task: Task, slot: Slot, epochs: int) -> Any:
        child = Runner._start(runner, task, slot, epochs)
        if task.way == "ep":
            os.kill(pid, signal.SIGINT)
        return child

    runner._start = interrupt  # type: ignore[method-assign]
    began = time.monotonic()
    with pytest.raises(RunInterrupted) as stopped:
        runner.run()
    assert stopped.value.exit_code == 130
    assert time.monotonic() - began < 20
    assert done(tmp_path) == {f"{key}-linear-{seed}" for key in ("scratch", "run") for seed in range(3)}


def test_a_directory_of_something_else_is_left_alone(tmp_path: Path) -> None:
    asked = question()
    check_same(asked, tmp_path / "new")
    (tmp_path / ".lock").touch()  # left by a command that was stopped early
    check_same(asked, tmp_path)
    (tmp_path / "photo.jpg").write_bytes(b"")
    with pytest.raises(SettingsError, match=r"holds no `dsdmae worth` but other things \(photo.jpg\)"):
        check_same(asked, tmp_path)
    (tmp_path / "worth.json").write_text(json.dumps(asked.json() | {"epochs": 3}))
    check_same(asked, tmp_path)
    with pytest.raises(SettingsError, match=r"another question \(seeds differ\)"):
        check_same(replace(asked, seeds=5), tmp_path)


# -- the command


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("scratch",), "scratch was not pre-trained"),
        (("pixels",), "pixels was not pre-trained"),
        (("runs/none",), "runs/none"),
        (("RUN", "--budget", "inf"), "--budget inf: give a number of minutes"),
        (
            ("RUN", "--set", "train.epochs=3"),
            "train.epochs (from --set train.epochs=3) is decided by",
        ),
        (("RUN", "--shares", "1,200%"), "--shares 1,200%: give shares of the labels above 0 and up to all"),
        (("RUN", "--shares", "many"), "--shares many"),
        (("RUN", "--beside", "scratch"), "scratch was not pre-trained"),
        (("RUN", "--track", "wanbd"), "wanbd"),
        (
            ("RUN", "--dataset", "folder:MASKED"),
            "they have masks: dsdmae probe RUN --kind segment judges by them (beside it: dsdmae probe scratch",
        ),
        ((), "say what to judge"),
        ((), "packaged or packaged-white-noise"),  # and not scratch or pixels, which are refused
    ],
)
def test_what_cannot_be_asked_is_one_line(
    words: tuple[str, ...], said: str, pretrained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    given = [str(pretrained) if word == "RUN" else word for word in words]
    if "folder:MASKED" in given:
        given[-1] = f"folder:{masked_folder(tmp_path / 'masked')}"
    code, _, err = cli(capfd, "worth", *given, "--dry-run")
    assert code == 2
    assert said in one_line(err)


def test_the_plan_is_printed_and_nothing_written(
    pretrained: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, out, _ = cli(capfd, "worth", pretrained, "--dry-run", "--shares", "5,100%", "--seeds", "2")
    assert code == 0
    assert "4 linear probes, 4 efficient probes, 4 fine-tunings (2 seeds)" in out
    assert "5% of the labels is 10 of 10 classes, too few; left out" in out


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a moment on a few labelled digits."""
    from helpers import train

    folder = tmp_path_factory.mktemp("worth")
    train(digit_folder(folder / "digits", train=75, test=19), folder / "run", "train.epochs=1")
    return folder / "run"


@pytest.mark.slow
def test_from_a_run_to_its_page(pretrained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = (
        "worth",
        pretrained,
        "--out",
        tmp_path / "page",
        "--seeds",
        "2",
        "--shares",
        "100%",
        "--budget",
        "0.1",
        "--json",
    )
    code, out, err = cli(capfd, *words)
    assert code == 0, err
    result = json.loads(out)
    assert result["finetune_epochs"] == 1
    assert {row["way"] for row in result["scores"]} == {"linear", "ep", "finetune"}
    text = (tmp_path / "page" / "report.html").read_text(encoding="utf-8")
    links = re.findall(r'href="(judged/[^"]+)"', text)
    pages = {f"judged/{path.parent.name}" for path in (tmp_path / "page" / "judged").glob("*/result.json")}
    assert {unquote(link).removesuffix("/report.html") for link in links} == pages - {"judged/pace"}
    assert all((tmp_path / "page" / unquote(link)).is_file() for link in links)
    assert (tmp_path / "page" / "report.html").exists()
    capfd.readouterr()
    before = (tmp_path / "page" / "report.html").read_bytes()
    code, again, _ = cli(capfd, *words)  # all is there: nothing is done again
    assert code == 0
    assert json.loads(again) == result
    assert (tmp_path / "page" / "report.html").read_bytes() == before
