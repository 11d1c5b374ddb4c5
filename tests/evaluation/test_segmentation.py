"""Labels of pixels against scikit-learn, torch's own upsampling and sums written out."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score
from sklearn.preprocessing import StandardScaler
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from dsdmae_cli.config.compose import compose
from dsdmae_cli.config.resolve import resolve
from dsdmae_cli.config.schema import PROBE
from dsdmae_cli.data.masks import VOID
from dsdmae_cli.evaluation.dense import DenseData
from dsdmae_cli.evaluation.dense_knn import PatchBank, label_shares
from dsdmae_cli.evaluation.dense_linear import sample, train_pixels
from dsdmae_cli.evaluation.overlap import bootstrap, interval, ious, paired_gain
from dsdmae_cli.evaluation.segmentation import Counts, segmentation_scores
from dsdmae_cli.evaluation.split import HeldOut
from dsdmae_cli.evaluation.windows import Frame, cut_image, cut_mask, frame, labels_of, nearest, put_together
from dsdmae_cli.report import Report


def draw(seed: int, classes: int = 5, images: int = 7, size: tuple[int, int] = (6, 9)) -> tuple[torch.Tensor, ...]:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, (images, *size)).astype(np.uint8)
    predicted = np.where(rng.random(truth.shape) < 0.6, truth, rng.integers(0, classes, truth.shape)).astype(np.uint8)
    truth[rng.random(truth.shape) < 0.2] = VOID
    return torch.from_numpy(predicted), torch.from_numpy(truth)


@pytest.mark.parametrize("seed", range(6))
def test_scores_are_scikit_learns(seed: int) -> None:
    predicted, truth = draw(seed)
    judged = truth != VOID
    mine, theirs = predicted[judged].numpy(), truth[judged].numpy()
    scores = segmentation_scores(Counts.none(5).with_images(predicted, truth), truth.numel())
    assert scores.per_class_iou == pytest.approx(jaccard_score(theirs, mine, average=None, labels=range(5)))
    assert scores.mean_iou == pytest.approx(jaccard_score(theirs, mine, average="macro"))
    assert scores.pixel_accuracy == pytest.approx(accuracy_score(theirs, mine))
    assert (scores.confusion == confusion_matrix(theirs, mine, labels=range(5))).all()
    assert scores.void_share == pytest.approx(float((~judged).double().mean()))
    assert scores.num_images == 7


def test_a_class_that_nobody_shows_has_no_iou_and_one_that_is_only_answered_has_zero() -> None:
    truth = torch.tensor([[[0, 0, 1, VOID]]], dtype=torch.uint8)
    predicted = torch.tensor([[[0, 2, 1, 3]]], dtype=torch.uint8)  # 3 is answered in the void alone
    scores = segmentation_scores(Counts.none(4).with_images(predicted, truth), 4)
    assert scores.per_class_iou == (0.5, 1.0, 0.0, None)
    assert scores.mean_iou == pytest.approx(0.5)


def test_images_one_by_one_count_as_all_at_once() -> None:
    predicted, truth = draw(1)
    whole, parts = Counts.none(5).with_images(predicted, truth), Counts.none(5)
    for one, mask in zip(predicted, truth, strict=True):
        parts = parts.with_images(one[None], mask[None])
    assert (whole.images == parts.images).all()
    assert (whole.confusion == parts.confusion).all()


def test_the_bootstrap_draws_whole_images() -> None:
    predicted, truth = draw(2, images=30)
    counts = Counts.none(5).with_images(predicted, truth).images
    values = bootstrap(counts)
    rng = np.random.default_rng(9)
    # Written out, with draws of its own.
    again = [np.nanmean(ious(counts[rng.integers(0, 30, 30)].sum(axis=0))) for _ in range(3000)]
    assert interval(values[:, 0]) == pytest.approx(np.percentile(again, [2.5, 97.5]), abs=0.006)
    assert (bootstrap(counts) == values).all()


def test_a_paired_gain_is_narrower_than_two_intervals_of_the_same_images() -> None:
    predicted, truth = draw(3, images=40)
    better = torch.where(torch.rand(truth.shape, generator=torch.Generator().manual_seed(0)) < 0.1, truth, predicted)
    better = torch.where(truth == VOID, predicted, better)
    mine, other = (Counts.none(5).with_images(p, truth).images for p in (better, predicted))
    gain, (low, high) = paired_gain(mine, other)
    assert 0 < low < gain < high
    alone = [np.ptp(interval(bootstrap(counts)[:, 0])) for counts in (mine, other)]
    assert high - low < min(alone)
    assert paired_gain(mine, mine) == (0.0, (0.0, 0.0))


@pytest.mark.parametrize("shape", [((3, 4), (12, 20)), ((2, 5), (7, 11)), ((1, 3), (4, 12))])
def test_sampled_features_are_upsampled_tokens(shape: tuple[tuple[int, int], tuple[int, int]]) -> None:
    """A pixel's features are those of torch's bilinear picture at that pixel."""
    (rows, columns), (height, width) = shape
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(2, rows * columns, 3, generator=generator)
    # Each pixel's label is its number, so that it says where it was drawn.
    masks = torch.arange(height * width, dtype=torch.uint8).view(1, height, width).expand(2, -1, -1).contiguous()
    assert height * width <= VOID
    picture = F.interpolate(tokens.unflatten(1, (rows, columns)).movedim(3, 1), (height, width), mode="bilinear")
    features, labels = sample(tokens, masks, (rows, columns), 50, generator)
    assert len(labels) == 100
    window = torch.arange(2).repeat_interleave(50)
    expected = picture.flatten(2).movedim(1, 2)[window, labels]
    assert torch.allclose(features, expected, atol=1e-5)


def test_no_void_pixel_is_learned_from() -> None:
    masks = torch.full((2, 4, 4), VOID, dtype=torch.uint8)
    masks[0, :2] = 1
    features, labels = sample(torch.randn(2, 4, 3), masks, (2, 2), 64, torch.Generator().manual_seed(0))
    assert labels.tolist() == [1] * len(labels)
    assert 16 < len(labels) == len(features) < 48


def test_shares_of_labels_under_patches() -> None:
    _, truth = draw(4, classes=3, images=3, size=(6, 8))
    truth[0, :3, :4] = VOID
    shares = label_shares(truth, (2, 2), 3)
    for n, row, column in np.ndindex(3, 2, 2):
        under = truth[n, 3 * row : 3 * row + 3, 4 * column : 4 * column + 4]
        counts = np.array([int((under == label).sum()) for label in range(3)], dtype=float)
        expected = counts / counts.sum() if counts.sum() else counts
        assert shares[n, 2 * row + column].numpy() == pytest.approx(expected)
    assert shares[0, 0].sum() == 0


def test_neighbours_vote_with_their_shares() -> None:
    generator = torch.Generator().manual_seed(0)
    features, shares = torch.randn(40, 6, generator=generator), torch.rand(40, 4, generator=generator)
    shares = shares / shares.sum(dim=1, keepdim=True)
    queries = torch.randn(2, 5, 6, generator=generator)
    votes = PatchBank.of(features, shares, torch.device("cpu")).votes(queries, 7, 0.07)
    center = features.double().mean(dim=0)
    unit = F.normalize(features.double() - center, dim=1)
    for query, found in zip(queries.flatten(0, 1), votes.flatten(0, 1), strict=True):
        cosine = unit @ F.normalize(query.double() - center, dim=0)
        near = cosine.argsort(descending=True)[:7]
        weights = (cosine[near] / 0.07).exp()
        expected = (weights[:, None] * shares[near].double()).sum(dim=0) / weights.sum()
        assert torch.allclose(found.double(), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("size", "window", "scale", "expected"),
    [
        ((180, 240), (144, 192), None, ((144, 192), 1)),  # the same shape: one window
        ((180, 240), (144, 144), None, ((144, 192), 2)),
        ((100, 100), (144, 192), None, ((192, 192), 2)),  # enlarged until it covers the window
        ((300, 400), (96, 96), 1.0, ((300, 400), 5 * 6)),
        ((145, 192), (144, 192), None, ((144, 192), 1)),  # a row too many is squeezed
        ((90, 120), (144, 192), 0.5, ((144, 192), 1)),  # never smaller than the window
    ],
)
def test_windows_cover_the_picture(
    size: tuple[int, int], window: tuple[int, int], scale: float | None, expected: tuple[tuple[int, int], int]
) -> None:
    lying = frame(size, window, scale, 2 / 3)
    assert (lying.size, len(lying.corners)) == expected
    covered = np.zeros(lying.size, dtype=bool)
    for top, left in lying.corners:
        assert 0 <= top <= lying.size[0] - window[0]
        assert 0 <= left <= lying.size[1] - window[1]
        covered[top : top + window[0], left : left + window[1]] = True
    assert covered.all()
    for side in (0, 1):
        starts = sorted({corner[side] for corner in lying.corners})
        assert all(b - a <= 2 / 3 * window[side] + 1 for a, b in pairwise(starts))


def test_windows_put_together_give_back_the_picture() -> None:
    """Scores that are the pixels themselves, one token a pixel: averages of equal values where windows overlap."""
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (23, 31, 3), dtype=np.uint8)
    lying = frame((23, 31), (10, 12), 1.0, 2 / 3)
    windows = torch.from_numpy(np.stack(cut_image(picture, lying))).float()
    together = put_together(windows, lying)
    assert torch.allclose(together.movedim(0, 2), torch.from_numpy(picture).float(), atol=1e-3)


@pytest.mark.parametrize("size", [(23, 31), (50, 17), (7, 90), (1, 1)])
def test_labels_are_those_of_scores_at_every_pixel(size: tuple[int, int]) -> None:
    """Rows at a time, as F.interpolate has them all; where two scores are equal within rounding either may be it."""
    generator = torch.Generator().manual_seed(0)
    for window, corners in (((10, 12), ((0, 0),)), ((8, 12), ((0, 0), (4, 0), (6, 0)))):
        lying = Frame((14 if len(corners) > 1 else 10, 12), window, corners)
        scores = torch.randn(len(corners), 4, 6, 5, generator=generator)
        all_at_once = F.interpolate(put_together(scores, lying)[None], size, mode="bilinear", align_corners=False)[0]
        for most in (1, 5 * size[1] * 3, 10**6):
            labels = labels_of(scores, lying, size, most)
            taken = all_at_once.gather(0, labels[None].long())[0]
            assert (all_at_once.max(dim=0).values - taken).max() < 1e-5


def test_a_mask_is_scaled_by_its_nearest_pixels() -> None:
    mask = np.random.default_rng(0).integers(0, 5, (13, 17)).astype(np.uint8)
    for size in ((26, 34), (5, 9), (13, 17)):
        theirs = F.interpolate(torch.from_numpy(mask)[None, None].float(), size, mode="nearest-exact")[0, 0]
        assert (nearest(mask, size) == theirs.numpy()).all()
    lying = frame((13, 17), (13, 13), None, 0.5)
    parts = cut_mask(mask, lying)
    assert all((part == mask[:, left : left + 13]).all() for part, (_, left) in zip(parts, lying.corners, strict=True))


def test_a_picture_of_answers_is_drawn(tmp_path: Path) -> None:
    from dsdmae_cli.segmentation.drawing import Shown, class_colours, draw_segmentation

    predicted, truth = draw(5, size=(12, 16))
    image = np.zeros((12, 16, 3), dtype=np.uint8)
    shown = [Shown(image, truth[i].numpy(), predicted[i].numpy()) for i in range(2)]
    draw_segmentation(shown, list("abcde"), tmp_path / "seen.png")
    assert (tmp_path / "seen.png").stat().st_size > 1000
    colours = class_colours(255)
    assert tuple(colours[VOID]) == (255, 255, 255)
    assert len({tuple(colour) for colour in class_colours(40)[:40].tolist()}) == 40


def test_a_head_learns_what_scikit_learn_finds() -> None:
    """One window a step, windows that differ: a batch's own statistics would teach what no test window has."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(24, 16, 5, generator=generator) + 3 * torch.randn(24, 1, 5, generator=generator)
    labels = (tokens @ torch.randn(5, 3, generator=generator)).argmax(dim=2)
    masks = labels.view(24, 4, 4).to(torch.uint8)  # a token a pixel
    resolved = resolve(
        compose(PROBE, assignments=["probe.kind=segment", "train.epochs=60", "train.batch_size=1"], environ={}).settings
    )
    data = DenseData(
        tokens, masks, torch.arange(24), (4, 4), HeldOut(np.arange(24), np.arange(0)), 3, resolved.train,
        torch.device("cpu"), Report(),
    )  # fmt: skip
    heads, _ = train_pixels(data, torch.arange(24), [0.1], 64)
    mine = heads.logits(tokens.flatten(0, 1))[0].argmax(dim=1)
    x, y = StandardScaler().fit_transform(tokens.flatten(0, 1).numpy()), labels.flatten().numpy()
    theirs = LogisticRegression(C=100, max_iter=2000).fit(x, y)
    assert theirs.score(x, y) > 0.98
    assert float((mine == labels.flatten()).double().mean()) > theirs.score(x, y) - 0.03


def test_tokens_are_not_copied_whole_to_be_normalised() -> None:
    """They may fill the memory; and far from zero, where float32 has no digits left, the variance is right."""
    tokens = torch.randn(300, 16, 5, generator=torch.Generator().manual_seed(0)) + 3000
    masks = torch.zeros(300, 4, 4, dtype=torch.uint8)
    given = ["probe.kind=segment", "train.epochs=1", "train.batch_size=1"]
    resolved = resolve(compose(PROBE, assignments=given, environ={}).settings)
    data = DenseData(
        tokens, masks, torch.arange(300), (4, 4), HeldOut(np.arange(300), np.arange(0)), 2, resolved.train,
        torch.device("cpu"), Report(),
    )  # fmt: skip
    with _Largest() as made:
        heads, _ = train_pixels(data, torch.arange(0, 300, 2), [0.1], 4)
    assert made.numel <= 16 * 16 * 5
    seen = tokens[::2].double().numpy().reshape(-1, 5)
    np.testing.assert_allclose(heads.mean.numpy(), seen.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(heads.variance.numpy(), seen.var(axis=0), rtol=1e-6)


class _Largest(TorchDispatchMode):
    """The most numbers that a tensor held which any operation made."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.numel = max(self.numel, out.numel())
        return out


def test_images_that_are_void_all_over_leave_an_interval() -> None:
    counts = np.zeros((3, 3, 2), np.int64)
    counts[0] = [[5, 0], [8, 2], [6, 4]]
    drawn = bootstrap(counts)
    assert np.isfinite(drawn).all()
    assert set(np.unique(drawn[:, 0]).round(9)) == {0.0, round((5 / 9 + 0) / 2, 9)}


def test_a_bank_of_patches_is_made_ready_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not for every picture: that took most of the time of a probe."""
    bank = PatchBank.of(torch.randn(40, 6), torch.rand(40, 4), torch.device("cpu"))
    monkeypatch.setattr("dsdmae_cli.evaluation.knn._mean", lambda _: pytest.fail("found anew"))
    assert bank.votes(torch.randn(2, 5, 6), 7, 0.07).shape == (2, 5, 4)
