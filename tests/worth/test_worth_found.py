"""`dsdmae worth`: what is chosen and by which images, and what is said of it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from worth_questions import RUN, SCRATCH, leave, question

from dsdmae_cli.worth import page
from dsdmae_cli.worth.findings import Gain, read
from dsdmae_cli.worth.tasks import Task
from dsdmae_cli.worth.words import answer


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
