"""The linear probe of patches: normalised tokens and a linear layer, logits upsampled to pixels.

Tokens are normalised by mean and variance over all that are learned from: BatchNorm without affine terms whose batch
is everything. A batch of a few windows has statistics of its own, which no test window is given: with one window a
step, trained heads were right for half of the very pixels that they had learned (docs/results/camvid.md).

Upsampling is linear and its weights add up to one, so that the logits of a pixel are those of the tokens' bilinear
mixture at its place: the loss of a pixel needs four tokens and no picture of logits. A step learns from pixels drawn
anew at random, many rates at once as in linear.py, whose heads these are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Generator, Tensor

from dsdmae_cli.data.masks import VOID
from dsdmae_cli.data.source import derive_seed, seeded
from dsdmae_cli.errors import RunFailed
from dsdmae_cli.evaluation.dense import DenseData
from dsdmae_cli.evaluation.linear import Heads, HeadTrainer, Protocol
from dsdmae_cli.evaluation.probes import Curves, best_of
from dsdmae_cli.evaluation.split import require_held_out
from dsdmae_cli.optim import learning_rate

_WINDOWS_AT_ONCE = 16


@dataclass(frozen=True)
class DenseLinear:
    """The outcome of `select_and_fit`.

    Attributes:
        answer: logits of tokens, [b, t, d] to [b, t, c].
        chosen: the learning rate that was chosen.
        held_out: mean IoU on the held-out images after the last epoch, by rate; empty if there was one rate.
        selection: losses of all heads on the fitting part; None if there was one rate.
        notes: what a person should know, such as a choice at the edge of the rates on offer.
    """

    answer: Callable[[Tensor], Tensor]
    chosen: float
    held_out: dict[float, float]
    selection: Curves | None
    notes: tuple[str, ...]


def select_and_fit(data: DenseData, rates: Sequence[float], points: int) -> DenseLinear:
    """Train a head per rate on the fitting part, choose on the held-out part, train that one anew on both.

    Args:
        rates: AdamW's.
        points: pixels of each window that a step learns from.

    Raises:
        DataError: there is a choice to make and no held-out image to make it on.
        RunFailed: every head diverged.
    """
    rates = sorted(rates)
    held_out: dict[float, float] = {}
    selection, notes = None, []
    if len(rates) > 1:
        require_held_out(data.split, "learning rate", rates, of_classes=False)
        heads, selection = train_pixels(data, data.windows(torch.from_numpy(data.split.fit)), rates, points)
        held_out = {rate: data.held_out_iou(_answer(heads, head)) for head, rate in enumerate(rates)}
        best = best_of(held_out)
        if best in (rates[0], rates[-1]):
            side = "lowest" if best == rates[0] else "highest"
            notes.append(f"the chosen rate, {best:g}, is the {side} on offer; a wider range may do better")
    chosen = best_of(held_out) if held_out else rates[0]
    head, final = train_pixels(data, torch.arange(len(data.tokens)), [chosen], points)
    if final.loss[-1][0] is None:
        raise RunFailed(f"the linear probe of patches diverged at a learning rate of {chosen:g}; give lower rates")
    return DenseLinear(_answer(head, 0), chosen, held_out, selection, tuple(notes))


def _answer(heads: Heads, head: int) -> Callable[[Tensor], Tensor]:
    def answer(tokens: Float[Tensor, "b t d"]) -> Float[Tensor, "b t c"]:
        return heads.logits(tokens.flatten(0, 1))[head].unflatten(0, tokens.shape[:2])

    return answer


@torch.no_grad()
def train_pixels(
    data: DenseData, windows: Int64[Tensor, " n"], rates: Sequence[float], points: int
) -> tuple[Heads, Curves]:
    """Train a head for each of AdamW's rates at once, all from the same first weights on the same pixels.

    Linear warm-up, then half a cosine to zero, step by step.

    Args:
        windows: which are learned from.
    """
    schedule, batch = data.schedule, min(data.batch_size, len(windows))
    protocol = Protocol("adamw", seed=schedule.seed)
    statistics = mean_variance(data.tokens, windows)
    trainer = HeadTrainer(
        data.tokens.shape[2], batch * points, data.num_classes, rates, protocol, data.device, statistics=statistics
    )
    steps = len(windows) // batch
    total, warmup = steps * schedule.epochs, steps * min(schedule.warmup_epochs, schedule.epochs)
    curves = Curves(tuple(rates), [], [])
    for epoch in range(schedule.epochs):
        generator = seeded(torch.device("cpu"), derive_seed(schedule.seed, "dense linear", epoch))
        order = windows[torch.randperm(len(windows), generator=generator)]
        loss = torch.zeros(len(rates), device=data.device)
        for step in range(steps):
            rows = order[step * batch : (step + 1) * batch]
            x, labels = sample(data.tokens[rows], data.masks[rows], data.grid, points, generator)
            if len(labels):
                rate = learning_rate(epoch * steps + step, total, warmup, 1.0, 0.0)
                loss += trainer.step(x.to(data.device), labels.to(data.device), rate)
        curves.loss.append([value if math.isfinite(value) else None for value in (loss / steps).tolist()])
    return trainer.heads(), curves


def mean_variance(
    tokens: Float[Tensor, "n t d"], windows: Int64[Tensor, " k"]
) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"]]:
    """Of each feature over all tokens of some windows, in float64, a few windows at a time: those of all may fill the
    memory once, and not twice.

    The variance is that around the mean (two passes), without Bessel's correction.
    """
    count, zero = len(windows) * tokens.shape[1], tokens.new_zeros(tokens.shape[2], dtype=torch.float64)
    parts = windows.split(_WINDOWS_AT_ONCE)
    mean = sum((tokens[part].double().sum(dim=(0, 1)) for part in parts), zero) / count
    variance = sum(((tokens[part].double() - mean).square_().sum(dim=(0, 1)) for part in parts), zero) / count
    return mean, variance


def sample(
    tokens: Float[Tensor, "b t d"],
    masks: UInt8[Tensor, "b h w"],
    grid: tuple[int, int],
    points: int,
    generator: Generator,
) -> tuple[Float[Tensor, "m d"], Int64[Tensor, " m"]]:
    """Bilinear features and labels of random pixels, with replacement; of those that are void nothing is given.

    Args:
        points: pixels drawn in each window.
        generator: on the CPU.
    """
    b, (height, width) = len(tokens), masks.shape[1:]
    y = torch.randint(height, (b, points), generator=generator)
    x = torch.randint(width, (b, points), generator=generator)
    labels = masks[torch.arange(b)[:, None], y, x]
    window, point = torch.nonzero(labels != VOID, as_tuple=True)
    features = mixture(tokens, grid, window, _place(y, height, grid[0])[window, point],
                       _place(x, width, grid[1])[window, point])  # fmt: skip
    return features, labels[window, point].long()


def _place(pixels: Int64[Tensor, "b p"], side: int, tokens: int) -> Float[Tensor, "b p"]:
    """Where pixels lie among tokens, as interpolate(..., align_corners=False) has it."""
    return ((pixels + 0.5) * (tokens / side) - 0.5).clamp(0, tokens - 1)


def mixture(
    tokens: Float[Tensor, "b t d"],
    grid: tuple[int, int],
    window: Int64[Tensor, " m"],
    row: Float[Tensor, " m"],
    column: Float[Tensor, " m"],
) -> Float[Tensor, "m d"]:
    """Features between tokens, bilinear.

    Args:
        window: which of the b each is of.
        row, column: where it lies, in tokens.
    """
    flat, first = tokens.flatten(0, 1), window * (grid[0] * grid[1])
    top, left = row.long(), column.long()
    bottom, right = (top + 1).clamp(max=grid[0] - 1), (left + 1).clamp(max=grid[1] - 1)
    down, across = (row - top)[:, None], (column - left)[:, None]
    upper = torch.lerp(flat[first + top * grid[1] + left], flat[first + top * grid[1] + right], across)
    lower = torch.lerp(flat[first + bottom * grid[1] + left], flat[first + bottom * grid[1] + right], across)
    return torch.lerp(upper, lower, down)
