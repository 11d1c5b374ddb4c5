"""k-NN and logistic regression against scikit-learn; the linear probe against plain torch modules, LARS included."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_class_weight, compute_sample_weight
from timm.optim.lars import Lars
from torch import Tensor, nn
from torch.nn import functional as F

from dsdmae_cli.data.source import derive_seed
from dsdmae_cli.errors import DataError, RunFailed
from dsdmae_cli.evaluation import knn, linear, logistic, reducing
from dsdmae_cli.evaluation.knn import knn_accuracy
from dsdmae_cli.evaluation.linear import Protocol, train_heads
from dsdmae_cli.evaluation.logistic import fit_logistic
from dsdmae_cli.evaluation.metrics import score
from dsdmae_cli.evaluation.split import HeldOut, hold_out
from dsdmae_cli.evaluation.updates import Optimizer
from dsdmae_cli.tasks.weights import balanced

NUM_TRAIN = 1200
# LARS barely moves on so few steps at MAE's rates.
FAST = {"lars": (2.0, 5.0, 20.0), "sgd": (0.02, 0.05, 0.2), "adamw": (1e-4, 1e-3, 2e-2)}

Set = tuple[Tensor, Tensor, Tensor, Tensor]


@pytest.fixture(scope="module")
def digits() -> Set:
    """Real digits: training features and labels, test features and labels."""
    x, y = (torch.from_numpy(a) for a in load_digits(return_X_y=True))
    return x[:NUM_TRAIN].float(), y[:NUM_TRAIN], x[NUM_TRAIN:].float(), y[NUM_TRAIN:]


# ------------------------------------------------------------------------------------------------------ k-NN


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_knn_equals_scikit_learn(digits: Set, temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    # Blocks that do not divide the data, the last smaller than k.
    monkeypatch.setattr(knn, "_BANK_AT_ONCE", 397)
    monkeypatch.setattr(knn, "_QUERIES_AT_ONCE", 100)
    x, y, queries, truth = digits
    found = knn.knn_probabilities(x, y, queries, 10, (1, 5, 20), temperature)
    center = x.double().mean(0)
    for k, probabilities in found.items():
        model = KNeighborsClassifier(
            k, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / temperature)
        )
        model.fit((x - center).numpy(), y.numpy())
        expected = model.predict_proba((queries - center).numpy())
        np.testing.assert_allclose(probabilities.numpy(), expected, atol=2e-4)
        assert (probabilities.argmax(1).numpy() == expected.argmax(1)).all()
        accuracy = float((probabilities.argmax(1) == truth).float().mean())
        assert knn_accuracy(x, y, queries, truth, k, temperature) == pytest.approx(accuracy)
        assert accuracy > 0.9


def test_knn_takes_half_precision_and_more_neighbours_than_there_are(digits: Set) -> None:
    x, y, queries, _ = digits
    exact = knn.knn_probabilities(x[:50], y[:50], queries, 10, (50,))[50]
    found = knn.knn_probabilities(x[:50].half(), y[:50], queries.half(), 10, (1000,))[1000]
    torch.testing.assert_close(found, exact, atol=1e-3, rtol=0)
    torch.testing.assert_close(found.sum(1), torch.ones(len(queries)))


def test_votes_do_not_overflow(digits: Set) -> None:
    x, y, queries, _ = digits
    assert knn.knn_probabilities(x, y, queries, 10, (20,), temperature=1e-3)[20].isfinite().all()


# -------------------------------------------------------------------------------------------------- logistic


@pytest.mark.parametrize("c", [0.01, 1.0])
def test_logistic_equals_scikit_learn(digits: Set, c: float) -> None:
    x, y, queries, truth = digits
    scaler = StandardScaler().fit(x.double().numpy())
    reference = LogisticRegression(C=c, tol=1e-9, max_iter=20_000)
    reference.fit(scaler.transform(x.double().numpy()), y.numpy())
    model = fit_logistic(x, y, 10, c, dtype=torch.float64, tolerance=1e-8, max_iterations=5000)
    assert model.converged
    np.testing.assert_allclose(model.weight.T.numpy(), reference.coef_, atol=1e-4)
    np.testing.assert_allclose(model.bias.numpy(), reference.intercept_, atol=1e-4)
    logits = model.logits(queries)
    np.testing.assert_allclose(logits, reference.decision_function(scaler.transform(queries.double())), atol=1e-3)
    # As it is used: float32, and stopped where scikit-learn would.
    quick = fit_logistic(x, y, 10, c)
    assert quick.converged
    assert (quick.logits(queries).argmax(1) == logits.argmax(1)).double().mean() > 0.995
    known = LogisticRegression(C=c, max_iter=2000).fit(scaler.transform(x), y).score(scaler.transform(queries), truth)
    assert abs(score(quick.logits(queries), truth).top1 - known) < 0.005


def test_balanced_logistic_equals_scikit_learn(digits: Set) -> None:
    x, y, _, _ = digits
    kept = (y > 4) | (torch.arange(len(y)) % 5 == 0)  # half the classes are five times as frequent
    x, y = x[kept], y[kept]
    scaler = StandardScaler().fit(x.double().numpy())
    reference = LogisticRegression(C=0.1, tol=1e-9, max_iter=20_000, class_weight="balanced")
    reference.fit(scaler.transform(x.double().numpy()), y.numpy())
    model = fit_logistic(x, y, 10, 0.1, dtype=torch.float64, tolerance=1e-8, max_iterations=5000, balanced=True)
    np.testing.assert_allclose(model.weight.T.numpy(), reference.coef_, atol=1e-4)
    np.testing.assert_allclose(model.bias.numpy(), reference.intercept_, atol=1e-4)
    plain = fit_logistic(x, y, 10, 0.1, dtype=torch.float64, tolerance=1e-8, max_iterations=5000)
    assert (plain.weight - model.weight).abs().max() > 1e-2


def test_two_classes_stand_for_half_of_scikit_learns_c(digits: Set) -> None:
    x, y, _, _ = digits
    two = y < 2
    scaled = StandardScaler().fit_transform(x[two].double().numpy())
    reference = LogisticRegression(C=0.2, tol=1e-10, max_iter=20_000).fit(scaled, y[two].numpy())
    model = fit_logistic(x[two], y[two], 2, 0.1, dtype=torch.float64, tolerance=1e-9, max_iterations=5000)
    np.testing.assert_allclose((model.weight[:, 1] - model.weight[:, 0]).numpy(), reference.coef_[0], atol=1e-4)


def test_a_class_without_images_is_never_predicted(digits: Set) -> None:
    x, y, queries, _ = digits
    kept = y != 4
    model = fit_logistic(x[kept], y[kept], 11)
    logits = model.logits(queries)
    assert logits.shape == (len(queries), 11)
    assert logits[:, [4, 10]].eq(-torch.inf).all()
    assert logits[:, :4].isfinite().all()


def test_logistic_says_when_it_did_not_converge(digits: Set) -> None:
    x, y, queries, _ = digits
    split = hold_out(y.numpy(), 0.2, 0)
    found = logistic.select_and_fit(x, y, split, queries, 10, cs=(1.0,), max_iterations=3)
    assert found.held_out == {}
    [note] = found.notes
    assert note.startswith("logistic regression, final fit, C = 1: stopped after 3 steps with a largest gradient of ")


def test_logistic_chooses_on_held_out_images_and_refits_on_all(digits: Set) -> None:
    x, y, queries, truth = digits
    split = hold_out(y.numpy(), 0.2, 0)
    found = logistic.select_and_fit(x, y, split, queries, 10, cs=(1e-6, 1e-2))
    for c, accuracy in found.held_out.items():
        alone = fit_logistic(x[split.fit], y[split.fit], 10, c).logits(x[split.held]).argmax(1) == y[split.held]
        assert accuracy == pytest.approx(float(alone.double().mean()), abs=0.005)
    assert found.chosen == 1e-2
    torch.testing.assert_close(found.logits, fit_logistic(x, y, 10, 1e-2).logits(queries), atol=0.02, rtol=0)
    assert score(found.logits, truth).top1 > 0.9


def test_nothing_held_out_is_told(digits: Set) -> None:
    x, y, queries, _ = digits
    one_each = np.unique(y.numpy(), return_index=True)[1]
    split = hold_out(y[one_each].numpy(), 0.2, 0)
    assert not len(split.held)
    with pytest.raises(DataError, match=r"no class has two training images.* 6 values of C; give a single C"):
        logistic.select_and_fit(x[one_each], y[one_each], split, queries, 10)
    assert logistic.select_and_fit(x[one_each], y[one_each], split, queries, 10, cs=(1.0,)).chosen == 1.0


# ------------------------------------------------------------------------------------------------ linear probe


class _MaeLars(torch.optim.Optimizer):
    """LARS from the formula: matrices get g <- g + decay w, scaled by trust |w| / |g|; then momentum, then the rate."""

    def __init__(self, parameters: object, lr: float, weight_decay: float = 0.0) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})  # type: ignore[arg-type]

    @torch.no_grad()
    def step(self, closure: object = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for w in group["params"]:
                g = w.grad.clone()
                if w.ndim > 1:
                    g += group["weight_decay"] * w
                    g *= 0.001 * w.norm() / g.norm()
                velocity = self.state[w].setdefault("velocity", torch.zeros_like(w))
                velocity.copy_(0.9 * velocity + g)
                w -= group["lr"] * velocity


def _timm_lars(model: nn.Linear, decay: float) -> torch.optim.Optimizer:
    groups = [{"params": [model.weight], "always_adapt": True}, {"params": [model.bias]}]
    return Lars(groups, lr=1.0, momentum=0.9, trust_coeff=0.001, eps=0.0, weight_decay=decay)


def _decayed(kind: Callable[..., torch.optim.Optimizer], **more: object) -> Callable[[nn.Linear, float], object]:
    return lambda model, decay: kind(
        [{"params": [model.weight], "weight_decay": decay}, {"params": [model.bias], "weight_decay": 0.0}],
        lr=1.0, **more,
    )  # fmt: skip


def _reference(
    x: Tensor, y: Tensor, base_lr: float, protocol: Protocol, optimizer: Callable[[nn.Linear, float], object]
) -> tuple[nn.Module, list[float]]:
    """A loop as one would write it: BatchNorm1d, Linear, autograd, an optimiser, a schedule."""
    norm = nn.BatchNorm1d(x.shape[1], affine=False, eps=1e-6, dtype=torch.float64)
    head = nn.Linear(x.shape[1], 10, dtype=torch.float64)
    first, _ = train_heads(x, y, 10, [base_lr], Protocol(protocol.optimizer, epochs=0), dtype=torch.float64)
    head.weight.data.copy_(first.weight[0].T)
    nn.init.zeros_(head.bias)
    stepper = optimizer(head, protocol.weight_decay)
    assert isinstance(stepper, torch.optim.Optimizer)
    steps, losses = len(x) // protocol.batch_size, []
    for epoch in range(protocol.epochs):
        generator = torch.Generator().manual_seed(derive_seed(protocol.seed, "linear", epoch))
        order = torch.randperm(len(x), generator=generator)
        total = 0.0
        for step in range(steps):
            at = epoch + step / steps
            peak = base_lr * protocol.batch_size / 256
            progress = (at - protocol.warmup_epochs) / (protocol.epochs - protocol.warmup_epochs)
            rate = peak * (at / protocol.warmup_epochs if progress < 0 else 0.5 * (1 + math.cos(math.pi * progress)))
            for group in stepper.param_groups:
                group["lr"] = rate
            rows = order[step * protocol.batch_size : (step + 1) * protocol.batch_size]
            each = F.cross_entropy(head(norm(x[rows].double())), y[rows], reduction="none")
            if protocol.balanced:
                each = each * torch.from_numpy(compute_sample_weight("balanced", y.numpy()))[rows]
            loss = each.mean()
            stepper.zero_grad()
            loss.backward()
            stepper.step()
            total += loss.item()
        losses.append(total / steps)
    return nn.Sequential(norm, head).eval(), losses


@pytest.mark.parametrize(
    ("name", "optimizer", "decay"),
    [
        ("lars", _decayed(_MaeLars), 0.0),
        ("lars", _decayed(_MaeLars), 1e-2),
        ("lars", _timm_lars, 0.0),
        ("sgd", _decayed(torch.optim.SGD, momentum=0.9), 0.0),
        ("sgd", _decayed(torch.optim.SGD, momentum=0.9), 1e-3),
        ("adamw", _decayed(torch.optim.AdamW), 1e-2),
    ],
)
def test_every_head_is_what_it_would_be_alone(
    digits: Set, name: Optimizer, optimizer: Callable[[nn.Linear, float], object], decay: float
) -> None:
    x, y, queries, _ = digits
    protocol = Protocol(name, epochs=5, warmup_epochs=1.5, batch_size=128, weight_decay=decay)
    base_lrs = FAST[name]
    heads, curves = train_heads(x, y, 10, base_lrs, protocol, dtype=torch.float64)
    logits = heads.logits(queries)
    for index, base_lr in enumerate(base_lrs):
        model, losses = _reference(x, y, base_lr, protocol, optimizer)
        with torch.no_grad():
            torch.testing.assert_close(logits[index], model(queries.double()), rtol=1e-8, atol=1e-8)
        np.testing.assert_allclose([row[index] for row in curves.loss], losses, rtol=1e-9)
    assert float(model[0].running_var.max()) == pytest.approx(float(heads.variance.max()))  # type: ignore[index]


def test_balanced_heads_are_what_sample_weights_make_of_them(digits: Set) -> None:
    x, y, queries, _ = digits
    kept = (y > 4) | (torch.arange(len(y)) % 5 == 0)
    x, y = x[kept], y[kept]
    protocol = Protocol("sgd", epochs=5, warmup_epochs=1.5, batch_size=128, balanced=True)
    heads, curves = train_heads(x, y, 10, [0.05], protocol, dtype=torch.float64)
    model, losses = _reference(x, y, 0.05, protocol, _decayed(torch.optim.SGD, momentum=0.9))
    with torch.no_grad():
        torch.testing.assert_close(heads.logits(queries)[0], model(queries.double()), rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose([row[0] for row in curves.loss], losses, rtol=1e-9)
    plain, _ = train_heads(x, y, 10, [0.05], replace(protocol, balanced=False), dtype=torch.float64)
    assert (plain.bias - heads.bias).abs().max() > 1e-3


def test_class_weights_are_scikit_learns() -> None:
    labels = np.array([0] * 7 + [2] * 2 + [3])
    expected = compute_class_weight("balanced", classes=np.array([0, 2, 3]), y=labels)
    np.testing.assert_allclose(balanced(torch.from_numpy(labels), 5), [expected[0], 0, *expected[1:], 0])


@pytest.mark.parametrize("name", ["lars", "sgd", "adamw"])
def test_probe_learns_and_repeats(digits: Set, name: Optimizer) -> None:
    x, y, queries, truth = digits
    split = hold_out(y.numpy(), 0.2, 0)
    protocol = Protocol(name, epochs=12, warmup_epochs=2, batch_size=128)
    found = linear.select_and_fit(x, y, split, queries, 10, FAST[name], protocol)
    accuracy = score(found.logits, truth).top1
    assert accuracy > 0.88
    assert found.chosen == max(found.held_out, key=lambda lr: found.held_out[lr])
    assert found.selection is not None
    assert [len(found.selection.loss), len(found.selection.held_out), len(found.final.held_out)] == [12, 12, 0]
    assert list(found.held_out.values()) == found.selection.held_out[-1]
    heads, _ = train_heads(x[split.fit], y[split.fit], 10, FAST[name], protocol)
    right = heads.logits(x[split.held]).argmax(2) == y[split.held]
    np.testing.assert_allclose(right.double().mean(1), list(found.held_out.values()))
    again = linear.select_and_fit(x, y, split, queries, 10, FAST[name], protocol)
    assert again.logits.equal(found.logits)
    other = linear.select_and_fit(x, y, split, queries, 10, FAST[name], Protocol(name, 12, 2, 128, seed=1))
    assert not other.logits.equal(found.logits)


def test_the_test_set_has_no_say(digits: Set) -> None:
    x, y, queries, _ = digits
    split = hold_out(y.numpy(), 0.2, 0)
    protocol = Protocol("sgd", epochs=3, warmup_epochs=1)
    ours = linear.select_and_fit(x, y, split, queries, 10, FAST["sgd"], protocol)
    theirs = linear.select_and_fit(x, y, split, torch.zeros(3, 64), 10, FAST["sgd"], protocol)
    assert (ours.chosen, ours.held_out) == (theirs.chosen, theirs.held_out)
    assert ours.head.weight.equal(theirs.head.weight)


def test_images_left_out_of_a_split_are_never_learned_from(digits: Set) -> None:
    x, y, queries, _ = digits
    labels = y.clone()
    labels[::2] = -1
    spoiled = x.clone()
    spoiled[::2] = math.nan
    split = hold_out(labels.numpy(), 0.2, 0)
    found = linear.select_and_fit(spoiled, labels, split, queries, 10, FAST["sgd"], Protocol("sgd", epochs=3))
    assert found.logits.isfinite().all()


def test_a_diverged_head_loses_and_is_named(digits: Set) -> None:
    x, y, queries, _ = digits
    split = hold_out(y.numpy(), 0.2, 0)
    protocol = Protocol("sgd", epochs=3, warmup_epochs=1, batch_size=128)
    rates = (0.05, 1e38)
    found = linear.select_and_fit(x, y, split, queries, 10, rates, protocol)
    assert found.chosen == 0.05
    assert found.held_out[1e38] == 0
    assert found.selection is not None
    assert found.selection.loss[-1][1] is None
    assert found.notes[0] == "the head at base rate 1e+38 diverged"
    alone, _ = train_heads(x[split.fit], y[split.fit], 10, rates[:1], protocol)
    assert found.held_out[0.05] == pytest.approx(float(alone.accuracy(x[split.held], y[split.held])[0]))
    with pytest.raises(RunFailed, match=r"diverged at a base learning rate of 1e\+38 \(sgd\); give lower rates"):
        linear.select_and_fit(x, y, split, queries, 10, rates[1:], protocol)


def test_a_choice_at_the_edge_is_noted(digits: Set) -> None:
    x, y, queries, _ = digits
    split = hold_out(y.numpy(), 0.2, 0)
    found = linear.select_and_fit(x, y, split, queries, 10, (1e-6, 0.05), Protocol("sgd", epochs=3))
    assert found.notes == ("the chosen base rate, 0.05, is the highest on offer; a wider range may do better",)


def test_nothing_to_choose_on_is_told_and_one_rate_needs_nothing(digits: Set) -> None:
    x, y, queries, _ = digits
    one_each = np.unique(y.numpy(), return_index=True)[1]
    split = HeldOut(np.arange(10), np.arange(0))
    arguments = (x[one_each], y[one_each], split, queries, 10)
    with pytest.raises(DataError, match="2 values of learning rate; give a single learning rate"):
        linear.select_and_fit(*arguments, (0.01, 0.1))
    found = linear.select_and_fit(*arguments, (0.1,), Protocol("sgd", epochs=20))
    assert (found.held_out, found.selection) == ({}, None)


# -------------------------------------------------------------------------------------------------- reducing


@pytest.mark.parametrize("count", [NUM_TRAIN, 40])  # more images than features, and fewer
def test_pca_equals_scikit_learn(digits: Set, count: int) -> None:
    x = digits[0][:count]
    points, shares = reducing.pca(x, 3)
    reference = PCA(3, svd_solver="full").fit(x.double().numpy())
    expected = torch.from_numpy(reference.transform(x.double().numpy())).float()
    torch.testing.assert_close(points.abs(), expected.abs(), atol=1e-3, rtol=1e-4)
    np.testing.assert_allclose(shares, reference.explained_variance_ratio_)
    assert reducing.pca(x, 3)[0].equal(points)


def test_tsne_keeps_neighbours_together(digits: Set) -> None:
    x, y = digits[0][:200], digits[1][:200]
    points = reducing.tsne(x)
    assert points.shape == (200, 2)
    nearest = torch.cdist(points, points).fill_diagonal_(math.inf).argmin(1)
    assert float((y[nearest] == y).float().mean()) > 0.8
