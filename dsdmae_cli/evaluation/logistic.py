"""Multinomial logistic regression on frozen features, C chosen on a held-out part of the training images.

The objective is scikit-learn's for standardised features X, mean negative log-likelihood + ||W||^2 / (2 C n), with
an intercept that is not penalised. The solver is torch's L-BFGS on whatever device is there, in float32 unless told
otherwise. scikit-learn is the reference that tests hold it against (two classes apart: there scikit-learn fits one
weight vector and not two, so that its C is twice ours for the same model).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from dsdmae_cli.evaluation.probes import best_of, of_all
from dsdmae_cli.evaluation.split import HeldOut, require_held_out
from dsdmae_cli.report import number_of
from dsdmae_cli.tasks.weights import balanced as class_weights
from dsdmae_cli.transfer import Gathered

# Logits of 16,384 images and 1,000 classes are 64 MiB.
_ROWS_AT_ONCE = 16_384
CS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)


@dataclass(frozen=True)
class Logistic:
    """A fitted classifier.

    Attributes:
        c: inverse strength of the penalty.
        mean, scale: [d] standardisation of the features.
        weight, bias: [d, c] and [c], for standardised features; a class without training images has a bias of -inf.
        iterations: L-BFGS steps taken.
        gradient: largest entry of the objective's gradient where it stopped.
        converged: whether that is within ten times the tolerance; in float32 the line search ends a little above it.
    """

    c: float
    mean: Float[Tensor, " d"]
    scale: Float[Tensor, " d"]
    weight: Float[Tensor, "d c"]
    bias: Float[Tensor, " c"]
    iterations: int
    gradient: float
    converged: bool

    def logits(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n c"]:
        """On the CPU, for features of any floating dtype on any device."""
        found = Gathered()
        for part in features.split(_ROWS_AT_ONCE):
            found.add(self._standardise(part) @ self.weight + self.bias)
        return found.cat()

    def _standardise(self, part: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        return (part.to(self.weight) - self.mean) / self.scale


@dataclass(frozen=True)
class LogisticProbe:
    """The outcome of `select_and_fit`.

    Attributes:
        logits: [m, c] for the test images, on the CPU.
        chosen: the C that was chosen.
        held_out: accuracy on the held-out images by C; empty if there was one C and so nothing to choose.
        model: fitted on all training images with the chosen C.
        notes: what a person should know, such as a fit that did not converge.
    """

    logits: Float[Tensor, "m c"]
    chosen: float
    held_out: dict[float, float]
    model: Logistic
    notes: tuple[str, ...]


def select_and_fit(
    features: Float[Tensor, "n d"],
    labels: Int64[Tensor, " n"],
    split: HeldOut,
    test_features: Float[Tensor, "m d"],
    num_classes: int,
    cs: Sequence[float] = CS,
    device: torch.device | None = None,
    max_iterations: int = 1000,
    balanced: bool = False,
    others: Sequence[HeldOut] = (),
) -> LogisticProbe:
    """Fit each C on `split.fit`, choose by accuracy on `split.held`, refit on both; the test set has no say.

    Of equally good values the smallest C, the strongest penalty, is taken.

    Args:
        features, labels: the training images.
        split: indices into them.
        device: where to compute; None = where the features are.
        balanced: images count by tasks.weights.balanced of the labels that are fitted; C is chosen by plain accuracy.
        others: further splits of the same images, whose held-out ones count as much in the choice.

    Raises:
        DataError: there is a choice to make and no held-out image to make it on.
    """
    cs = sorted(cs)
    tried: dict[float, Logistic] = {}
    found: list[dict[float, float]] = []
    splits = (split, *others) if len(cs) > 1 else ()
    for part in splits:
        require_held_out(part, "C", cs)
        fit, held = (torch.from_numpy(indices).to(features.device) for indices in part)
        found.append({})
        model = None
        for c in cs:  # each is the next one's start, and the chosen one the last fit's
            model = fit_logistic(
                features[fit], labels[fit], num_classes, c, device, max_iterations=max_iterations, start=model,
                balanced=balanced,
            )  # fmt: skip
            right = model.logits(features[held]).argmax(dim=1) == labels[held].cpu()
            tried[c], found[-1][c] = model, float(right.double().mean())
    held_out = of_all(found, [len(part.held) for part in splits])
    chosen = best_of(held_out) if held_out else cs[0]
    every = torch.from_numpy(np.sort(np.concatenate(split))).to(features.device)
    final = fit_logistic(
        features[every], labels[every], num_classes, chosen, device,
        max_iterations=max_iterations, start=tried.get(chosen), balanced=balanced,
    )  # fmt: skip
    notes = [note for model in tried.values() for note in _note(model, "held-out choice")]
    return LogisticProbe(
        logits=final.logits(test_features),
        chosen=chosen,
        held_out=held_out,
        model=final,
        notes=(*notes, *_note(final, "final fit")),
    )


def _note(model: Logistic, where: str) -> list[str]:
    if model.converged:
        return []
    stopped = f"stopped after {number_of(model.iterations, 'step')} with a largest gradient of {model.gradient:.1e}"
    return [f"logistic regression, {where}, C = {model.c:g}: {stopped}"]


@torch.no_grad()
def fit_logistic(
    features: Float[Tensor, "n d"],
    labels: Int64[Tensor, " n"],
    num_classes: int,
    c: float = 1.0,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    tolerance: float = 1e-4,
    max_iterations: int = 1000,
    start: Logistic | None = None,
    balanced: bool = False,
) -> Logistic:
    """Standardise the features and minimise the objective.

    Args:
        features: any floating dtype, any device; one standardised copy in `dtype` is made on `device`.
        labels: 0..num_classes-1. A class that does not occur is left out of the fit and never predicted.
        c: inverse strength of the penalty on the weights.
        tolerance: on the largest entry of the gradient (scikit-learn's default).
        start: where to start, for features much like these and the same classes; None = zero.
        balanced: the loss of an image counts by tasks.weights.balanced; standardisation stays as it is.
    """
    device = device or features.device
    scale, mean = torch.std_mean(features.to(device, dtype), dim=0, correction=0)
    scale = torch.where(scale > 10 * torch.finfo(dtype).eps * mean.abs(), scale, 1.0)  # a constant feature
    x = torch.ones(len(features), len(mean) + 1, dtype=dtype, device=device)  # the last column is the intercept's
    x[:, :-1] = (features.to(device, dtype) - mean) / scale
    present, target = labels.to(device).unique(return_inverse=True)
    parameters = torch.zeros(len(present), x.shape[1], dtype=dtype, device=device)
    if start is not None:
        parameters[:, :-1], parameters[:, -1] = start.weight[:, present].T, start.bias[present]
    # What the labels add to the loss is linear in the parameters, so that one sum over the images is enough.
    weights = class_weights(target, len(present)).to(x)[target] if balanced else None
    weighted = x if weights is None else x * weights[:, None]
    moments = torch.zeros_like(parameters).index_add_(0, target, weighted).div_(len(x))
    del weighted
    penalty = 1 / (c * len(x))
    solver = torch.optim.LBFGS(
        [parameters],
        max_iter=max_iterations,
        max_eval=25 * max_iterations,  # a line search takes 25 at most
        tolerance_grad=tolerance,
        tolerance_change=0,  # small steps are no sign of an optimum
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def loss() -> float:
        value, parameters.grad = _objective(x, moments, parameters, penalty, weights)
        return value

    solver.step(loss)
    _, slope = _objective(x, moments, parameters, penalty, weights)
    gradient = float(slope.abs().max())
    weight = torch.zeros(x.shape[1] - 1, num_classes, dtype=dtype, device=device)
    bias = torch.full((num_classes,), -torch.inf, dtype=dtype, device=device)
    weight[:, present], bias[present] = parameters[:, :-1].T, parameters[:, -1]
    steps = int(solver.state[parameters]["n_iter"])
    return Logistic(c, mean, scale, weight, bias, steps, gradient, gradient <= 10 * tolerance)


def _objective(
    x: Float[Tensor, "n d+1"],
    moments: Float[Tensor, "c d+1"],
    parameters: Float[Tensor, "c d+1"],
    penalty: float,
    weights: Float[Tensor, " n"] | None,
) -> tuple[float, Float[Tensor, "c d+1"]]:
    """Value and gradient, written out: a graph of all logits would be several times the features.

    Logits lie as [c, images]: sums over a few classes are then sums of long rows, which is 3 times as fast on a CPU.
    """
    weight = parameters[:, :-1]
    gradient = -moments
    gradient[:, :-1] += penalty * weight
    sums: list[Tensor] = []
    of_parts = [None] * len(x) if weights is None else weights.split(_ROWS_AT_ONCE)
    for part, w in zip(x.split(_ROWS_AT_ONCE), of_parts, strict=False):
        logits = parameters @ part.T
        highest = logits.amax(dim=0)
        p = logits.sub_(highest).exp_()
        total = p.sum(dim=0)
        each = total.log() + highest
        sums.append((each if w is None else each * w).sum())
        gradient.addmm_(p.div_(total if w is None else total / w), part, alpha=1 / len(x))
    # Read at once, and added up in float64.
    *parts, linear, squares = torch.stack([*sums, (parameters * moments).sum(), weight.square().sum()]).tolist()
    return sum(parts) / len(x) - linear + 0.5 * penalty * squares, gradient
