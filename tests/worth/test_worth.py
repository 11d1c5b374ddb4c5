"""`dsdmae worth`: what is asked, and the command."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from helpers import cli, digit_folder, masked_folder, one_line
from worth_questions import RUN, SCRATCH, question

from dsdmae_cli.worth.tasks import Contender, Task, epochs_of, usable_shares, words_of, write_settings

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
