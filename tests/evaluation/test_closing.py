"""The closing sentences of a run: each verdict from figures that call for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers import train

from dsdmae_cli.evaluation.closing import (
    DIVERGED,
    closing_words,
    diverged,
    last_words,
    open_words,
    wilson_interval,
)  # fmt: skip
from dsdmae_cli.recipes.pretrain import summary
from dsdmae_cli.runs.judged import untrained_line


def scores(*knn: float) -> list[dict[str, float]]:
    return [{"epoch": 10.0 * i, "knn": value, "rank": 20.0, "step": i} for i, value in enumerate(knn)]


@pytest.mark.parametrize(
    ("knn", "said"),
    [
        ((0.64, 0.70, 0.74, 0.745), "Better than untrained by 10.5 points (k-NN 74.5%, untrained 64.0%; 6.4 points"),
        ((0.64, 0.60, 0.70, 0.78), "more --epochs may pay."),
        ((0.64, 0.64, 0.64, 0.65), "No difference that these images show: k-NN 65.0%, untrained 64.0%"),
        ((0.64, 0.60, 0.64, 0.68), "Too early to say: k-NN 68.0%, untrained 64.0%"),
        ((0.64, 0.40, 0.45, 0.52), "rising since epoch 10 (40.0%): too early. Networks learn to blur first"),
        ((0.64, 0.50, 0.45, 0.44), "by 20.0 points (k-NN 44.0%, untrained 64.0%), and not rising."),
    ],
)  # fmt: skip
def test_the_verdict(knn: tuple[float, ...], said: str) -> None:
    assert said in closing_words(scores(*knn), 397)


def test_a_run_that_levelled_off_is_not_told_to_go_on() -> None:
    assert "--epochs" not in closing_words(scores(0.64, 0.80, 0.84, 0.841), 397)


def test_a_handful_of_images_leaves_no_more_open_than_there_is() -> None:
    assert "100.0 points are what 2 test images leave open" in closing_words(scores(0.5, 0.5), 2)
    assert "100.0 points are what 1 test image leaves open" in closing_words(scores(0.0, 0.0), 1)
    said = open_words({"knn_interval": [0.2, 1.0], "knn_images": 1})
    assert said == ", of 1 test image (95% interval 20% to 100%)"


def test_many_images_tell_apart_what_few_do_not() -> None:
    assert closing_words(scores(0.30, 0.31, 0.32), 200).startswith("No difference")
    assert closing_words(scores(0.30, 0.31, 0.32), 20000).startswith("Better")


def test_without_labels_nothing_is_claimed() -> None:
    records = [{"epoch": 0.0, "rank": 24.0}, {"epoch": 9.0, "rank": 31.2}]
    assert closing_words(records, 0).startswith("Without labels nobody can say")
    assert "vary in 31 directions (24 untrained)" in closing_words(records, 0)
    assert closing_words([{"epoch": 1.0, "loss": 0.1}], 0) == ""
    # Scores that nothing can be compared with, and one that is no number, claim nothing either.
    assert closing_words(scores(0.3, 0.4)[1:], 397) == ""
    assert closing_words(scores(0.3, float("nan")), 397) == ""


def test_labels_that_no_held_out_image_has_are_no_reason_to_probe() -> None:
    records = [{"epoch": 0.0, "rank": 24.0}, {"epoch": 9.0, "rank": 31.2}]
    said = closing_words(records, 0, labels="classes")
    assert said.startswith("No held-out image has a label")
    assert "dsdmae probe RUN --labels FILE.csv" in said
    assert said.endswith("dsdmae embed RUN --out NAME.npz.")


def test_masks_are_said_to_judge_by_where_there_are_no_classes() -> None:
    records = [{"epoch": 0.0, "rank": 24.0}, {"epoch": 9.0, "rank": 31.2}]
    said = closing_words(records, 0, labels="masks")
    assert said.startswith(
        "The masks can say whether this is better than untrained; the features vary in 31 directions"
    )
    assert "dsdmae probe RUN --kind segment" in said
    assert "dsdmae finetune RUN --task segment" in said
    assert "abels" not in said
    assert closing_words(scores(0.3, 0.5, 0.6), 397, labels="masks").startswith("Better")  # classes say more


def test_the_last_words_can_be_typed() -> None:
    unlabelled = {"closing": "Nobody can say. dsdmae worth RUN --dataset folder:LABELLED.", "labels": None}
    assert last_words(unlabelled, "mine") == ["Nobody can say. dsdmae worth mine --dataset folder:LABELLED."]
    labelled = {"closing": "Better.", "labels": "classes", "knn_accuracy": 0.5}
    assert last_words(labelled, "mine") == ["Better.", "go on with     dsdmae probe mine"]
    unjudged = {"closing": "No label. dsdmae embed RUN.", "labels": "classes", "knn_accuracy": None}
    assert last_words(unjudged, "mine") == ["No label. dsdmae embed mine."]
    assert last_words(labelled | {"closing": ""}, "mine") == []  # what learns no features


def test_a_handful_of_images_says_little() -> None:
    for few in (1, 2):
        assert not closing_words(scores(0.0, 1.0, 1.0), few).startswith("Better")
    assert closing_words(scores(0.0, 1.0, 1.0), 5).startswith("Better")  # five of five against none
    assert not closing_words(scores(0.4, 0.8, 0.8), 5).startswith("Better")


def test_the_interval_is_wilsons() -> None:
    from scipy.stats import binomtest

    for right, n in [(5, 5), (0, 5), (3, 5), (1, 1), (310, 397)]:
        reference = binomtest(right, n).proportion_ci(0.95, method="wilson")
        assert wilson_interval(right / n, n) == pytest.approx((reference.low, reference.high), abs=1e-4)


@pytest.mark.parametrize(
    ("result", "command"),
    [
        ({}, "dsdmae probe scratch --like 'my run' --config out/settings.toml"),
        ({"kind": "finetune"}, "dsdmae finetune scratch --like 'my run' --config out/settings.toml --layer-decay 1"),
        ({"method": "scratch"}, None),
        ({"method": "pixels"}, None),
    ],
)  # fmt: skip
def test_a_figure_is_followed_by_how_to_get_its_untrained_one(result: dict[str, Any], command: str | None) -> None:
    plain = {"kind": "probe", "start": "my run", "method": "mae", "run": "out"}
    assert untrained_line(plain | result) == ([] if command is None else [f"untrained      {command}"])


def test_a_run_that_diverged_has_no_score_of_the_network_before(digits: Path, tmp_path: Path) -> None:
    """Features that are not finite are not looked at: the score of an earlier look, the untrained network's among them,
    was that of the run, and an ablation could take it for the best."""
    result = train(
        digits, tmp_path / "run", "optim.lr=1e38", "optim.warmup_epochs=0", "train.max_nonfinite=1000",
        "train.knn_every=1", "train.knn_images=10",
    )  # fmt: skip
    assert result["skipped_steps"] > 0
    assert result["knn_accuracy_untrained"] is not None
    assert [result[key] for key in ("knn_accuracy", "knn_interval", "feature_rank", "feature_spread")] == [None] * 4
    assert result["closing"] == DIVERGED
    assert DIVERGED in summary(result)
    head = (tmp_path / "run" / "report.html").read_text().partition("<section>")[0]
    assert "last loss" in head
    assert "k-NN (k =" not in head
    assert "features vary in" not in head


def test_diverged_is_what_was_looked_at_before_and_not_after_the_last_step() -> None:
    looks = [{"step": 0, "knn": 0.3}, {"step": 5, "knn": 0.4}, {"step": 10, "loss": 1.0}]
    assert diverged(looks, 10)
    assert not diverged([*looks, {"step": 10, "rank": 3.0}], 10)
    assert not diverged([{"step": 10, "loss": 1.0}], 10)  # nothing is looked at
