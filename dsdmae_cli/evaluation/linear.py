"""MAE's linear probe on cached features: BatchNorm without affine terms, then a linear layer, several rates at once.

All heads see the same batches and so share the norm's statistics, which have no learned part; a head is then one slice
of a [H, d, c] weight, and H learning rates cost one pass over the features (the way of DINOv2, Oquab et al. 2023,
arXiv:2304.07193). Each head is what it would be if trained alone, which tests hold against plain torch modules.

The protocol is that of facebookresearch/mae, main_linprobe.py: LARS, rate = base x batch / 256, linear warm-up and then
half a cosine to zero, step by step. What differs: features of clean images are cached, so that there is no random
crop; and the rate is chosen on held-out training images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from dsdmae_cli.data.source import derive_seed, seeded
from dsdmae_cli.errors import RunFailed
from dsdmae_cli.evaluation.probes import Curves, best_of, of_all
from dsdmae_cli.evaluation.split import HeldOut, require_held_out
from dsdmae_cli.evaluation.updates import UPDATES, Optimizer
from dsdmae_cli.optim import learning_rate
from dsdmae_cli.report import NO_REPORT, Report, number_of
from dsdmae_cli.tasks.weights import balanced

# Base rates (of 256 images) that hold the best one for most features; MAE's own for LARS is 0.1.
BASE_LRS: dict[Optimizer, tuple[float, ...]] = {
    "lars": (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0),
    "sgd": (1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0),
    "adamw": (2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2),
}
_ROWS_AT_ONCE = 4096
_EPS = 1e-6
_NORM_MOMENTUM = 0.1
_INIT_STD = 0.01


@dataclass(frozen=True)
class Protocol:
    """How heads are trained.

    Attributes:
        optimizer: lars (momentum 0.9, trust 0.001), sgd (momentum 0.9) or adamw (0.9, 0.999).
        epochs: passes over the features.
        warmup_epochs: linear warm-up from zero; at most all of them.
        batch_size: images per step; all images where there are fewer. What is left over of an epoch is dropped, and
            takes its turn in another permutation.
        weight_decay: on the weights, not the biases: into the gradient for lars and sgd, decoupled for adamw.
        seed: of first weights and permutations.
        balanced: images count by tasks.weights.balanced of the labels that are trained on, and the loss of a batch is
            their sum over its images divided by their number; the choice of a rate is by plain accuracy.
    """

    optimizer: Optimizer = "lars"
    epochs: int = 90
    warmup_epochs: float = 10.0
    batch_size: int = 1024
    weight_decay: float = 0.0
    seed: int = 0
    balanced: bool = False


@dataclass(frozen=True)
class Heads:
    """Trained heads.

    Attributes:
        weight, bias: [H, d, c] and [H, c], for normalised features.
        mean, variance: [d] running statistics of the norm, as evaluation uses them.
    """

    weight: Float[Tensor, "h d c"]
    bias: Float[Tensor, "h c"]
    mean: Float[Tensor, " d"]
    variance: Float[Tensor, " d"]

    @torch.no_grad()
    def logits(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "h n c"]:
        """Of every head, where the heads are; features in any floating dtype on any device."""
        flat, bias = self.weight.transpose(1, 2).flatten(0, 1), self.bias.flatten()[:, None]
        scale = (self.variance + _EPS).rsqrt()
        parts = []
        for part in features.split(_ROWS_AT_ONCE):
            x = (part.to(flat) - self.mean).mul_(scale)
            parts.append(torch.addmm(bias, flat, x.T))
        return torch.cat(parts, dim=1).view(*self.bias.shape, len(features)).transpose(1, 2)

    def accuracy(self, features: Float[Tensor, "n d"], labels: Int64[Tensor, " n"]) -> Float[Tensor, " h"]:
        """Fraction of right answers of every head, on the CPU; zero for a head that gives non-finite logits."""
        right = torch.zeros(len(self.bias), dtype=torch.int64, device=self.weight.device)
        finite = torch.ones_like(right, dtype=torch.bool)
        for part, truth in zip(features.split(_ROWS_AT_ONCE), labels.split(_ROWS_AT_ONCE), strict=True):
            logits = self.logits(part)
            right += (logits.argmax(dim=2) == truth.to(logits.device)).sum(dim=1)
            finite &= logits.isfinite().flatten(1).all(dim=1)
        return torch.where(finite, right, 0).cpu().double() / len(labels)


@dataclass(frozen=True)
class LinearProbe:
    """The outcome of `select_and_fit`.

    Attributes:
        logits: [m, c] for the test images, on the CPU.
        chosen: the base learning rate that was chosen.
        held_out: accuracy on the held-out images after the last epoch, by base rate; empty if there was one rate.
        selection: curves of all heads on the fitting parts; None if there was one rate.
        final: curves of the head that was trained on all images.
        head: that head (H = 1).
        notes: what a person should know, such as a choice at the edge of the rates on offer.
    """

    logits: Float[Tensor, "m c"]
    chosen: float
    held_out: dict[float, float]
    selection: Curves | None
    final: Curves
    head: Heads
    notes: tuple[str, ...]


def select_and_fit(
    features: Float[Tensor, "n d"],
    labels: Int64[Tensor, " n"],
    split: HeldOut,
    test_features: Float[Tensor, "m d"],
    num_classes: int,
    base_lrs: Sequence[float],
    protocol: Protocol = Protocol(),
    device: torch.device | None = None,
    report: Report = NO_REPORT,
    others: Sequence[HeldOut] = (),
) -> LinearProbe:
    """Train a head per rate on `split.fit`, choose by `split.held`, train that one anew on both; never the test set.

    The choice is by accuracy after the last epoch (the last epoch is also what is reported); of equally good rates the
    lowest is taken.

    Args:
        features, labels: the training images.
        split: indices into them.
        device: where to compute; None = where the features are. They are copied there if they are not.
        report: shows how far it is.
        others: further splits of the same images, whose held-out ones count as much in the choice.

    Raises:
        DataError: there is a choice to make and no held-out image to make it on.
        RunFailed: every head diverged.
    """
    device = device or features.device
    features, labels = features.to(device), labels.to(device)
    base_lrs = sorted(base_lrs)
    held_out: dict[float, float] = {}
    selection, notes = None, []
    if len(base_lrs) > 1:
        tried = []
        for part in (split, *others):
            require_held_out(part, "learning rate", base_lrs)
            fit, held = (torch.from_numpy(indices).to(device) for indices in part)
            watched = (features[held], labels[held])
            tried.append(
                train_heads(features[fit], labels[fit], num_classes, base_lrs, protocol, watched, report=report)[1]
            )
        selection = _together(tried, [len(part.held) for part in (split, *others)])
        held_out = dict(zip(base_lrs, selection.held_out[-1], strict=True))
        notes = _notes(selection, held_out)
    chosen = best_of(held_out) if held_out else base_lrs[0]
    every = torch.from_numpy(np.sort(np.concatenate(split))).to(device)
    head, final = train_heads(features[every], labels[every], num_classes, [chosen], protocol, report=report)
    logits = head.logits(test_features)[0].cpu()
    if final.loss[-1][0] is None or not logits.isfinite().all():
        raise RunFailed(
            f"the linear probe diverged at a base learning rate of {chosen:g} ({protocol.optimizer}); give lower rates"
        )
    return LinearProbe(logits, chosen, held_out, selection, final, head, tuple(notes))


def _together(curves: Sequence[Curves], counts: Sequence[int]) -> Curves:
    """Of several held-out parts as of one; the loss is that of the first, None where a head diverged in any."""
    values = curves[0].values
    accuracy = [
        list(of_all([dict(zip(values, part, strict=True)) for part in epoch], counts).values())
        for epoch in zip(*(part.held_out for part in curves), strict=True)
    ]
    loss = [
        [None if None in of_head else of_head[0] for of_head in zip(*epoch, strict=True)]
        for epoch in zip(*(part.loss for part in curves), strict=True)
    ]
    return Curves(values, loss, accuracy)


def _notes(curves: Curves, held_out: dict[float, float]) -> list[str]:
    best = best_of(held_out)
    diverged = [lr for lr, loss in zip(curves.values, curves.loss[-1], strict=True) if loss is None]
    heads = "the head at base rate" if len(diverged) == 1 else "heads at base rates"
    notes = [f"{heads} {', '.join(f'{lr:g}' for lr in diverged)} diverged"] if diverged else []
    if best in (curves.values[0], curves.values[-1]):
        side = "lowest" if best == curves.values[0] else "highest"
        notes.append(f"the chosen base rate, {best:g}, is the {side} on offer; a wider range may do better")
    return notes


@torch.no_grad()
def train_heads(
    features: Float[Tensor, "n d"],
    labels: Int64[Tensor, " n"],
    num_classes: int,
    base_lrs: Sequence[float],
    protocol: Protocol,
    held_out: tuple[Float[Tensor, "k d"], Int64[Tensor, " k"]] | None = None,
    dtype: torch.dtype = torch.float32,
    report: Report = NO_REPORT,
) -> tuple[Heads, Curves]:
    """Train a head for each base learning rate at once, all from the same first weights on the same batches.

    Args:
        features: any floating dtype, on the device to compute on; a batch at a time is turned into `dtype`.
        labels: 0..num_classes-1, on the same device.
        held_out: features and labels to score after each epoch; they change nothing.
        report: shows how far it is.
    """
    device = features.device
    batch_size = min(protocol.batch_size, len(features))
    trainer = HeadTrainer(features.shape[1], batch_size, num_classes, base_lrs, protocol, device, dtype)
    weights = balanced(labels, num_classes).to(dtype)[labels] if protocol.balanced else None
    steps = len(features) // batch_size
    total, warmup = steps * protocol.epochs, steps * min(protocol.warmup_epochs, protocol.epochs)
    curves = Curves(tuple(base_lrs), [], [])
    name = f"{number_of(len(base_lrs), 'linear head')}"
    for epoch in report.watched(range(protocol.epochs), "training", name, protocol.epochs):
        generator = seeded(torch.device("cpu"), derive_seed(protocol.seed, "linear", epoch))
        order = torch.randperm(len(features), generator=generator).to(device)
        loss = torch.zeros(len(base_lrs), dtype=dtype, device=device)
        for step in range(steps):
            rows = order[step * batch_size : (step + 1) * batch_size]
            rate = learning_rate(epoch * steps + step, total, warmup, batch_size / 256, 0.0)
            if features.dtype == dtype:
                x = torch.index_select(features, 0, rows, out=trainer.batch)
            else:
                x = trainer.batch.copy_(features[rows])
            loss += trainer.step(x, labels[rows], rate, None if weights is None else weights[rows])
        curves.loss.append([value if math.isfinite(value) else None for value in (loss / steps).tolist()])
        if held_out is not None:
            curves.held_out.append(trainer.heads().accuracy(*held_out).tolist())
    return trainer.heads(), curves


class HeadTrainer:
    """Weights of all heads as one matrix, its gradient written out, and the optimiser.

    One product of [H c, d] and [d, b] does all heads. An autograd graph would cost more than the arithmetic of
    matrices this small. Outside its two products a step on wide features is bound by memory, so that it works in place.

    Args:
        width: of the features.
        batch_size: most rows of a step; `batch` is room for so many.
        statistics: mean and variance of the features that normalise them; None = each batch's own, as BatchNorm does.
    """

    def __init__(
        self,
        width: int,
        batch_size: int,
        num_classes: int,
        base_lrs: Sequence[float],
        protocol: Protocol,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        statistics: tuple[Float[Tensor, " d"], Float[Tensor, " d"]] | None = None,
    ) -> None:
        num_heads = len(base_lrs)
        generator = seeded(torch.device("cpu"), derive_seed(protocol.seed, "linear weights"))
        first = torch.randn(width, num_classes, generator=generator, dtype=dtype) * _INIT_STD
        self.weight = first.T.to(device).repeat(num_heads, 1, 1)  # [H, c, d]
        self.bias = torch.zeros(num_heads, num_classes, 1, dtype=dtype, device=device)
        self.fixed = statistics is not None
        mean, variance = statistics or (torch.zeros(width), torch.ones(width))
        self.mean, self.variance = (part.to(device, dtype, copy=True) for part in (mean, variance))
        self.lrs = torch.tensor(list(base_lrs), dtype=dtype, device=device)
        self.update = UPDATES[protocol.optimizer]((self.weight,), (self.bias,), protocol.weight_decay)
        # A new allocation of this size in each step costs as much as a product: the system hands out its pages anew.
        self.batch, self.squares = (torch.empty(batch_size, width, dtype=dtype, device=device) for _ in range(2))
        self.columns = torch.arange(batch_size, device=device)

    def step(
        self,
        features: Float[Tensor, "b d"],
        labels: Int64[Tensor, " b"],
        rate: float,
        weights: Float[Tensor, " b"] | None = None,
    ) -> Float[Tensor, " h"]:
        """One step of all heads at `rate` times their base rates; their losses before it.

        Args:
            features: overwritten.
            weights: of the rows in the loss; None = all count alike.
        """
        x = self._normalised(features)
        columns = self.columns[: len(x)]
        # Images lie last, so that sums over a few classes are sums of long rows.
        logits = torch.addmm(self.bias.flatten(0, 1), self.weight.flatten(0, 1), x.T)
        log_p = logits.view(*self.bias.shape[:2], len(x)).log_softmax(dim=1)
        right = log_p[:, labels, columns]
        loss = -(right if weights is None else right * weights).mean(dim=1)
        residual = log_p.exp_()
        residual[:, labels, columns] -= 1
        residual /= len(x)
        if weights is not None:
            residual *= weights
        gradient = (residual.flatten(0, 1) @ x).view_as(self.weight)
        self.update((gradient, residual.sum(dim=2, keepdim=True)), rate * self.lrs)
        return loss

    def _normalised(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        """BatchNorm1d(affine=False) in training: the batch's statistics, and the running ones moved toward them.

        With given statistics, normalised by those.
        """
        if self.fixed:
            return x.sub_(self.mean).mul_((self.variance + _EPS).rsqrt())
        mean = x.mean(dim=0)
        x.sub_(mean)
        variance = torch.square(x, out=self.squares[: len(x)]).mean(dim=0)
        self.mean.lerp_(mean, _NORM_MOMENTUM)
        # torch's running variance is the unbiased one. A batch of one image has none.
        self.variance.lerp_(variance * (len(x) / max(1, len(x) - 1)), _NORM_MOMENTUM)
        return x.mul_((variance + _EPS).rsqrt())

    def heads(self) -> Heads:
        """As they are now; they share memory with what is trained."""
        return Heads(self.weight.transpose(1, 2), self.bias.squeeze(2), self.mean, self.variance)
