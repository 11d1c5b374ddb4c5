"""Scores against scikit-learn, scipy and plain resampling; splits and draws by what they promise."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, log_loss, recall_score, top_k_accuracy_score
from sklearn.metrics import confusion_matrix as reference_confusion

from dsdmae_cli.errors import DataError
from dsdmae_cli.evaluation.metrics import bootstrap_interval, score, spread, top_k_hits
from dsdmae_cli.evaluation.split import few_shot, hold_out


def _answers(n: int = 500, c: int = 12, absent: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that know something, and labels without one of the classes."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, c - 1, (n,), generator=generator)
    labels[labels == absent] = c - 1
    logits = torch.randn(n, c, generator=generator)
    logits[torch.arange(n), labels] += 1.5
    return logits, labels


def test_scores_equal_scikit_learns() -> None:
    logits, labels = _answers()
    found = score(logits, labels)
    p, y, said = logits.double().softmax(1).numpy(), labels.numpy(), logits.argmax(1).numpy()
    classes = range(12)
    assert found.top1 == accuracy_score(y, said)
    assert found.top5 == top_k_accuracy_score(y, p, k=5, labels=classes)
    assert (found.confusion == reference_confusion(y, said, labels=classes)).all()
    recall = recall_score(y, said, labels=classes, average=None, zero_division=np.nan)
    np.testing.assert_allclose([np.nan if a is None else a for a in found.per_class], recall)
    assert found.per_class[3] is None
    assert found.images_per_class == tuple(np.bincount(y, minlength=12))
    present = np.unique(y)
    assert found.mean_per_class == pytest.approx(np.nanmean(recall))
    seen = np.isin(said, present)  # scikit-learn warns of predictions of a class that is not there
    assert balanced_accuracy_score(y[seen], said[seen]) >= found.mean_per_class
    assert found.nll == pytest.approx(log_loss(y, p, labels=classes))
    assert found.num_images == 500


def test_calibration_error_is_the_mean_gap_over_bins() -> None:
    logits, labels = _answers()
    p = logits.double().softmax(1)
    confidence, said = (t.numpy() for t in p.max(1))
    right = said == labels.numpy()
    expected = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence > low) & (confidence <= low + 1 / 15)
        if inside.any():
            expected += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    assert score(logits, labels).calibration_error == pytest.approx(expected)


def test_top5_is_capped_by_the_number_of_classes() -> None:
    found = score(torch.randn(20, 3), torch.arange(20) % 3)
    assert (found.top5_k, found.top5) == (3, 1.0)


def test_classes_without_votes_are_no_guesses() -> None:
    votes = torch.tensor([[0.0, 1.0, 0.0, 0.0], [0.0, 0.5, 0.5, 0.0]])
    found = score(votes.log(), torch.tensor([0, 2]))
    assert found.nll is None
    assert found.top1 == 0  # of equal votes the lower class is said
    assert top_k_hits(votes.log(), torch.tensor([0, 2]), 4).tolist() == [False, True]


def test_as_dict_is_strict_json() -> None:
    logits, labels = _answers()
    content = json.loads(json.dumps(score(logits, labels).as_dict(), allow_nan=False))
    assert content["per_class"][3] is None
    assert len(content["top1_interval"]) == 2
    assert np.trace(content["confusion"]) == content["top1"] * 500
    wide = torch.zeros(4, 1000)
    assert score(wide, torch.arange(4)).as_dict()["confusion"] is None


@given(st.integers(1, 4000), st.data())
def test_interval_is_the_binomials(n: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, n))
    low, high = bootstrap_interval(right, n)
    if right in (0, n):  # where resampled images would all say the same
        expected = binomtest(right, n).proportion_ci(method="wilson")
        np.testing.assert_allclose([low, high], expected, atol=1e-4)
        assert high - low > 0
    else:
        np.testing.assert_allclose([low, high], binom.ppf([0.025, 0.975], n, right / n) / n)
    assert 0 <= low <= right / n <= high <= 1


def test_interval_is_that_of_resampled_images() -> None:
    right = np.arange(1000) < 437
    draws = np.random.default_rng(0).choice(right, (4000, 1000)).mean(axis=1)
    np.testing.assert_allclose(bootstrap_interval(437, 1000), np.quantile(draws, (0.025, 0.975)), atol=2.5e-3)


def test_spread_over_draws() -> None:
    assert spread([0.5]).std is None
    found = spread([0.5, 0.7, 0.6])
    assert (found.mean, found.std) == (pytest.approx(0.6), pytest.approx(0.1))


_LABELS = st.lists(st.integers(-1, 4), min_size=2, max_size=80).filter(lambda x: len(set(x) - {-1}) > 1)


@given(_LABELS, st.floats(0.01, 0.9), st.integers(0, 3))
def test_a_held_out_part_shares_nothing_and_leaves_every_class(
    given_labels: list[int], share: float, seed: int
) -> None:
    labels = np.array(given_labels, dtype=np.int64)
    fit, held = hold_out(labels, share, seed)
    assert sorted([*fit, *held]) == np.flatnonzero(labels >= 0).tolist()
    assert (np.diff(fit) > 0).all()
    for label in set(given_labels) - {-1}:
        size = given_labels.count(label)
        taken = int((labels[held] == label).sum())
        assert taken == (0 if size == 1 else min(max(1, round(share * size)), size - 1))
    again = hold_out(labels, share, seed)
    assert all((a == b).all() for a, b in zip((fit, held), again, strict=True))


@given(_LABELS, st.integers(0, 3), st.integers(0, 2))
def test_few_shot_draws_are_stratified_and_nested(given_labels: list[int], seed: int, draw: int) -> None:
    labels = np.array(given_labels, dtype=np.int64)
    before: set[int] = set()
    for share in (0.01, 0.1, 0.5, 1.0):
        chosen = few_shot(labels, share, seed, draw)
        for label in set(given_labels) - {-1}:
            assert (labels[chosen] == label).sum() == max(1, round(share * given_labels.count(label)))
        assert (labels[chosen] >= 0).all()
        assert before <= set(chosen.tolist())
        before = set(chosen.tolist())


def test_draws_differ_by_number_and_seed() -> None:
    labels = np.arange(1000) % 10
    draws = [few_shot(labels, 0.05, seed, draw).tolist() for seed in (0, 1) for draw in (0, 1)]
    assert len({tuple(d) for d in draws}) == 4
    assert not (hold_out(labels, 0.1, 0).held == hold_out(labels, 0.1, 1).held).all()


@pytest.mark.parametrize("labels", [[-1, -1, -1], [2, 2, -1]])
def test_one_class_is_told(labels: list[int]) -> None:
    with pytest.raises(DataError, match=r"of [01] classes \(\d of 3 are labelled\)"):
        hold_out(np.array(labels), 0.1, 0)
