"""Efficient probing (EP): learned queries gather a frozen encoder's patch tokens, several rates at once.

Psomas et al. 2025 (arXiv:2506.10178), its public code as of 2026: M queries attend to the tokens themselves, without a
projection of keys; each gathers its own slice of the values, x W_v cut into M parts; the parts side by side are
normalised by BatchNorm without affine terms and read by a linear layer. Masked methods spread what they know over the
patches, where the mean of all tokens with one linear layer finds little of it.

Attention weights are the same for all features of a slice, so that tokens are gathered first and projected then: once a
query and not once a token.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from dsdmae_cli.data.augment import prepare
from dsdmae_cli.data.base import ImageDataset, Subset
from dsdmae_cli.data.source import Unreadable, derive_seed, seeded
from dsdmae_cli.errors import RunFailed
from dsdmae_cli.evaluation.features import square_batches
from dsdmae_cli.evaluation.probes import ProbeData, best_of
from dsdmae_cli.evaluation.split import require_held_out
from dsdmae_cli.evaluation.updates import UPDATES, Optimizer
from dsdmae_cli.optim import learning_rate
from dsdmae_cli.report import number_of
from dsdmae_cli.runtime import autocast
from dsdmae_cli.tasks.weights import balanced as class_weights

# Tokens of all training images are kept where they take no more than this; else each epoch encodes them anew.
_MOST_BYTES = 4 * 2**30
_KEPT_AS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_ROWS_AT_ONCE = 256
_EPS, _NORM_MOMENTUM, _INIT_STD, _QUERY_STD = 1e-6, 0.1, 0.01, 0.02


@dataclass(frozen=True)
class Found:
    """The outcome of `select_and_fit`: test logits, the base rate, and held-out accuracy by base rate."""

    logits: Float[Tensor, "m c"]
    chosen: float
    held_out: dict[float, float]


class Heads:
    """H heads, all from the same first weights.

    Args:
        width: d of the tokens; a query's slice of the values has max(1, d // M) features.
        num_queries: M.
        seed: of the first weights.
    """

    def __init__(
        self, num_heads: int, width: int, num_queries: int, num_classes: int, seed: int, device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        slice_width = max(1, width // num_queries)
        generator = seeded(torch.device("cpu"), derive_seed(seed, "ep weights"))

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=dtype)

        uniform = torch.rand(num_queries, width, slice_width, generator=generator, dtype=dtype)
        first = (
            draw(num_queries, width) * _QUERY_STD,
            (2 * uniform - 1) / math.sqrt(width),  # as torch's Linear begins
            draw(num_queries * slice_width, num_classes) * _INIT_STD,
        )
        self.queries, self.values, self.weight = (
            t.to(device).repeat(num_heads, *(1,) * t.ndim).requires_grad_() for t in first
        )
        self.bias = torch.zeros(num_heads, num_classes, dtype=dtype, device=device, requires_grad=True)
        gathered = num_heads * num_queries * slice_width
        self.mean, self.variance = (torch.full((gathered,), v, dtype=dtype, device=device) for v in (0.0, 1.0))

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """Weights, and the bias last."""
        return self.queries, self.values, self.weight, self.bias

    def logits(self, tokens: Float[Tensor, "b t d"], training: bool = False) -> Float[Tensor, "h b c"]:
        """Of every head; in training by the batch's own statistics, which move the running ones.

        Under autocast the products over tokens run in its dtype, what they give is normalised and read in the weights'.
        """
        x = tokens if torch.is_autocast_enabled(tokens.device.type) else tokens.to(self.queries)
        attention = torch.einsum("btd,hmd->bhmt", x, self.queries / math.sqrt(x.shape[-1])).softmax(dim=-1)
        gathered = torch.einsum("bhmt,btd->bhmd", attention, x)
        parts = torch.einsum("bhmd,hmdk->bhmk", gathered, self.values).flatten(1).to(self.queries)
        parts = F.batch_norm(parts, self.mean, self.variance, training=training, momentum=_NORM_MOMENTUM, eps=_EPS)
        parts = parts.view(len(x), len(self.bias), -1)
        return torch.einsum("bhk,hkc->hbc", parts, self.weight) + self.bias[:, None]


class Tokens:
    """Patch tokens of clean training images, kept in memory where they fit."""

    def __init__(self, data: ProbeData) -> None:
        self.data = data
        count, net, dtype = len(data.train_images), data.encoder, _KEPT_AS[data.precision]
        size = count * net.num_tokens * net.width * dtype.itemsize
        self.kept: Tensor | None = None
        if size <= _MOST_BYTES:
            data.report.note(f"encoding {number_of(count, 'training image')}, whose tokens take {size / 2**20:.0f} MiB")
            self.kept = torch.cat([batch.to(dtype) for batch in encoded(data, data.train_images)])
        else:
            data.report.note(
                f"tokens of {number_of(count, 'training image')} would take {size / 2**30:.1f} GiB, more than"
                f" {_MOST_BYTES / 2**30:.0f}: every epoch encodes them anew"
            )

    def of(self, rows: Int64[Tensor, " b"]) -> Float[Tensor, "b t d"]:
        """Tokens of these images."""
        if self.kept is not None:
            return self.kept[rows.to(self.kept.device)]
        return torch.cat(list(encoded(self.data, Subset(self.data.train_images, rows.cpu().numpy()))))


@torch.no_grad()
def encoded(data: ProbeData, dataset: ImageDataset) -> Iterator[Float[Tensor, "b t d"]]:
    """Tokens of a dataset's images in order, batch by batch, as the encoder in eval mode gives them."""
    size, unreadable = data.encoder.image_size, Unreadable(len(dataset), data.image_settings)
    for batch in square_batches(dataset, range(len(dataset)), size, _ROWS_AT_ONCE, data.device, unreadable):
        with autocast(data.device, data.precision):
            tokens = data.encoder(prepare(batch.images, size, data.image_settings.interpolation))
        yield tokens


def select_and_fit(
    data: ProbeData, base_lrs: Sequence[float], num_queries: int, optimizer: Optimizer, balanced: bool = False
) -> Found:
    """Train a head per rate on `split.fit`, choose by `split.held`, train that one anew on both; never the test set.

    The choice is by accuracy after the last epoch; of equally good rates the lowest is taken.

    Args:
        balanced: as linear.Protocol has it.

    Raises:
        DataError: there is a choice to make and no held-out image to make it on.
        RunFailed: the head that was chosen gives answers that are not finite.
    """
    base_lrs, split, tokens = sorted(base_lrs), data.split, Tokens(data)
    held_out: dict[float, float] = {}
    if len(base_lrs) > 1:
        require_held_out(split, "learning rate", base_lrs)
        heads = train(tokens, data, split.fit, base_lrs, num_queries, optimizer, balanced)
        held_out = dict(zip(base_lrs, _accuracy(heads, tokens, data, split.held).tolist(), strict=True))
    chosen = best_of(held_out) if held_out else base_lrs[0]
    heads = train(tokens, data, np.sort(np.concatenate(split)), [chosen], num_queries, optimizer, balanced)
    logits = torch.cat([_answers(heads, batch, data)[0] for batch in encoded(data, data.test_images)])
    if not logits.isfinite().all():
        raise RunFailed(f"the ep probe diverged at a base learning rate of {chosen:g} ({optimizer}); give lower rates")
    return Found(logits, chosen, held_out)


def train(
    tokens: Tokens, data: ProbeData, rows: Int64[np.ndarray, " n"], base_lrs: Sequence[float], num_queries: int,
    optimizer: Optimizer, balanced: bool = False,
) -> Heads:  # fmt: skip
    """A head for each base rate (of 256 images), all on the same batches."""
    schedule, device = data.schedule, data.device
    batch_size = min(data.batch_size, len(rows))
    heads = Heads(len(base_lrs), data.encoder.width, num_queries, data.num_classes, schedule.seed, device)
    update = UPDATES[optimizer](heads.parameters[:3], heads.parameters[3:])
    lrs = torch.tensor(list(base_lrs), device=device)
    chosen, labels = torch.from_numpy(rows), data.train_labels.to(device)
    of_class = class_weights(data.train_labels[chosen], data.num_classes).float().to(device) if balanced else None
    steps = len(rows) // batch_size
    total, warmup = steps * schedule.epochs, steps * min(schedule.warmup_epochs, schedule.epochs)
    data.report.start(total, 0, steps)
    for epoch in range(schedule.epochs):
        generator = seeded(torch.device("cpu"), derive_seed(schedule.seed, "ep", epoch))
        order = chosen[torch.randperm(len(rows), generator=generator)]
        for step in range(steps):
            batch = order[step * batch_size : (step + 1) * batch_size]
            done = epoch * steps + step
            rate = learning_rate(done, total, warmup, batch_size / 256, 0.0)
            with autocast(device, data.precision):
                logits = heads.logits(tokens.of(batch), training=True).float()
            truth = labels[batch.to(device)]
            loss = weighted_loss(logits, truth, of_class)
            gradients = torch.autograd.grad(loss, heads.parameters)
            with torch.no_grad():
                update([gradient.clone() for gradient in gradients], rate * lrs)
            data.report.stepped(done + 1)
    data.report.stop()
    return heads


def weighted_loss(
    logits: Float[Tensor, "h b c"], truth: Int64[Tensor, " b"], of_class: Float[Tensor, " c"] | None
) -> Float[Tensor, ""]:
    """Cross-entropy, summed over the heads: each image's, times its class's weight, over the number of images."""
    each = torch.stack([F.cross_entropy(of_head, truth, reduction="none") for of_head in logits])
    return (each if of_class is None else each * of_class[truth]).mean(dim=1).sum()


@torch.no_grad()
def _answers(heads: Heads, tokens: Float[Tensor, "b t d"], data: ProbeData) -> Float[Tensor, "h b c"]:
    with autocast(data.device, data.precision):
        return heads.logits(tokens).float().cpu()


@torch.no_grad()
def _accuracy(heads: Heads, tokens: Tokens, data: ProbeData, rows: Int64[np.ndarray, " n"]) -> Float[Tensor, " h"]:
    """Fraction of right answers of every head; zero for one that gives answers that are not finite."""
    every = torch.from_numpy(rows).split(_ROWS_AT_ONCE)
    logits = torch.cat([_answers(heads, tokens.of(part), data) for part in every], dim=1)
    right = (logits.argmax(dim=2) == data.train_labels[torch.from_numpy(rows)]).double().mean(dim=1)
    return torch.where(logits.isfinite().flatten(1).all(dim=1), right, 0.0)
