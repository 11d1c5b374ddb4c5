"""The attentive probe: heads with a cross-attention block on a frozen encoder's tokens, trained by the engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dsdmae_cli.data.augment import prepare
from dsdmae_cli.data.base import ImageDataset, Subset
from dsdmae_cli.data.open import open_source, place
from dsdmae_cli.data.source import Batching, Unreadable, derive_seed
from dsdmae_cli.engine import Hooks, Trainer
from dsdmae_cli.evaluation.features import square_batches
from dsdmae_cli.evaluation.probes import ProbeData, best_of
from dsdmae_cli.evaluation.split import require_held_out
from dsdmae_cli.report import Report
from dsdmae_cli.runtime import Runtime, autocast, choose_micro_batch
from dsdmae_cli.settings.models import LoopSettings
from dsdmae_cli.settings.resolved import ResolvedOptim
from dsdmae_cli.tasks.classifier import AttentiveProbe
from dsdmae_cli.transfer import Gathered

# Of weight matrices; biases, norms and the query have none (optim.py).
DECAY = 0.05
_BATCH = 256


class Attentive(NamedTuple):
    """The outcome of `select_and_fit`: test logits, the rate, and held-out accuracy by rate."""

    logits: Float[Tensor, "m c"]
    chosen: float
    held_out: dict[float, float]


class _Told(Hooks):
    """Hooks of a training that leaves nothing on the way but a line now and then."""

    def __init__(self, report: Report) -> None:
        self.report = report

    def stepped(self, step: int) -> None:
        self.report.stepped(step)

    def logged(self, record: dict[str, float]) -> None:
        self.report.record(dict(record))


def select_and_fit(data: ProbeData, rates: Sequence[float]) -> Attentive:
    """Train a head per rate on `split.fit`, choose by `split.held`, train that one anew on both; never the test set.

    Training images are varied as the [data] section says. The choice is by accuracy after the last epoch; of equally
    good rates the lowest is taken.

    Args:
        rates: of AdamW, as they are: none is scaled by the batch.

    Raises:
        DataError: there is a choice to make and no held-out image to make it on.
    """
    rates, split = sorted(rates), data.split
    held_out: dict[float, float] = {}
    if len(rates) > 1:
        require_held_out(split, "learning rate", rates)
        probe = _train(data, Subset(data.train_images, split.fit), rates)
        logits = _answers(data, probe, Subset(data.train_images, split.held))
        right = (logits.argmax(dim=2) == data.train_labels[torch.from_numpy(split.held)]).double().mean(dim=1)
        held_out = dict(zip(rates, right.tolist(), strict=True))
    chosen = best_of(held_out) if held_out else rates[0]
    probe = _train(data, Subset(data.train_images, np.sort(np.concatenate(split))), [chosen])
    return Attentive(_answers(data, probe, data.test_images)[0], chosen, held_out)


def _train(data: ProbeData, dataset: ImageDataset, rates: list[float]) -> AttentiveProbe:
    schedule, device = data.schedule, data.device
    peak = max(rates)
    batch_size = min(data.batch_size, len(dataset))
    loop = LoopSettings.model_validate({"epochs": schedule.epochs, "batch_size": batch_size, "seed": schedule.seed})
    warmup = min(schedule.warmup_epochs, schedule.epochs / 2)
    optim = ResolvedOptim.model_validate(
        {"lr": peak, "weight_decay": DECAY, "warmup_epochs": warmup, "betas": (0.9, 0.999)}
    )
    micro = choose_micro_batch("auto", batch_size, data.encoder.num_tokens, data.encoder.width, device)
    unreadable = Unreadable(len(dataset), data.image_settings)
    placement = place(dataset, data.image_settings, device)
    batching = Batching(len(dataset), batch_size, micro, schedule.seed)
    source = open_source(dataset, data.image_settings, placement, batching, device, unreadable, labelled=True)
    runtime = Runtime(device, data.precision, device.type == "cuda", micro)
    # The engine seeds torch's global generators for every micro-batch; they are the caller's again afterwards.
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(derive_seed(schedule.seed, "attentive"))
        method = AttentiveProbe(data.encoder, data.num_classes, [rate / peak for rate in rates]).to(device)
        trainer = Trainer(method, source, optim, loop, runtime, _Told(data.report))
        data.report.start(trainer.total_steps, 0, trainer.steps_per_epoch)
        trainer.fit()
    data.report.stop()
    source.close()
    return method


@torch.no_grad()
def _answers(data: ProbeData, probe: AttentiveProbe, dataset: ImageDataset) -> Float[Tensor, "h n c"]:
    """Of every head, on the CPU."""
    probe.eval()
    size = data.encoder.image_size
    unreadable = Unreadable(len(dataset), data.image_settings)
    logits = Gathered()
    for batch in square_batches(dataset, range(len(dataset)), size, _BATCH, data.device, unreadable):
        with autocast(data.device, data.precision):
            logits.add(probe.logits(prepare(batch.images, size, data.image_settings.interpolation)).float())
    return logits.cat(dim=1)
