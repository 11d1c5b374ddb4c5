"""The attentive probe: heads with a cross-attention block on a frozen encoder's tokens, trained by the engine."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dsdmae_cli.backbone import Backbone
from dsdmae_cli.data.augment import prepare
from dsdmae_cli.data.base import ImageDataset, Subset
from dsdmae_cli.data.open import open_source, place
from dsdmae_cli.data.source import Batching, Unreadable, derive_seed
from dsdmae_cli.engine import Trainer
from dsdmae_cli.evaluation.features import square_batches
from dsdmae_cli.evaluation.judging import Judged
from dsdmae_cli.evaluation.split import HeldOut
from dsdmae_cli.report import Report
from dsdmae_cli.runtime import Runtime, autocast, choose_micro_batch
from dsdmae_cli.settings.models import LoopSettings
from dsdmae_cli.settings.resolved import ResolvedOptim, ResolvedProbeSettings
from dsdmae_cli.tasks.classifier import AttentiveProbe

_RATES = (1e-4, 3e-4, 1e-3, 3e-3)
_BATCH = 256


class Answers(NamedTuple):
    """Test logits by index of the test image (NaN for one that cannot be read), the rate, and held-out accuracy."""

    logits: Float[Tensor, "m c"]
    chosen: float
    held_out: dict[float, float]


class _Quiet:
    """Hooks of a training that leaves nothing on the way but a line now and then."""

    def __init__(self, report: Report, total_epochs: int) -> None:
        self.report, self.total_epochs = report, total_epochs

    def stepped(self, step: int) -> None:
        self.report.stepped(step)

    def logged(self, record: dict[str, float]) -> None:
        self.report.record(dict(record))

    def epoch_ended(self, epoch: int) -> None:
        pass

    def should_stop(self) -> bool:
        return False


def attentive_logits(
    settings: ResolvedProbeSettings,
    encoder: Backbone,
    judged: Judged,
    split: HeldOut,
    batch_size: int,
    device: torch.device,
    precision: str,
    report: Report,
) -> Answers:
    """Train a head per rate on `split.fit`, choose by `split.held`, train that one anew on both.

    Training images are varied as the [data] section says.
    """
    given = settings.probe.learning_rates
    rates = sorted(_RATES if given == "auto" else given)
    held_out: dict[float, float] = {}
    if len(rates) > 1:
        fit, held = Subset(judged.train, split.fit), Subset(judged.train, split.held)
        probe = _train(settings, encoder, fit, rates, len(judged.classes), batch_size, device, precision, report)
        logits, indices = _answers(settings, probe, held, device, precision)
        assert held.labels is not None
        truth = torch.from_numpy(held.labels)[indices]
        right = (logits.argmax(dim=2) == truth).double().mean(dim=1)
        held_out = dict(zip(rates, right.tolist(), strict=True))
    chosen = max(held_out, key=held_out.__getitem__) if held_out else rates[0]
    every = Subset(judged.train, np.sort(np.concatenate(split)))
    probe = _train(settings, encoder, every, [chosen], len(judged.classes), batch_size, device, precision, report)
    found, indices = _answers(settings, probe, judged.test, device, precision)
    logits = torch.full((len(judged.test), len(judged.classes)), torch.nan)
    logits[indices] = found[0]
    return Answers(logits, chosen, held_out)


def _train(
    settings: ResolvedProbeSettings,
    encoder: Backbone,
    dataset: ImageDataset,
    rates: list[float],
    num_classes: int,
    batch_size: int,
    device: torch.device,
    precision: str,
    report: Report,
) -> AttentiveProbe:
    train = settings.train
    torch.manual_seed(derive_seed(train.seed, "attentive"))
    peak = max(rates)
    method = AttentiveProbe(encoder, num_classes, [rate / peak for rate in rates]).to(device)
    batch_size = min(batch_size, len(dataset))
    loop = LoopSettings.model_validate({"epochs": train.epochs, "batch_size": batch_size, "seed": train.seed})
    warmup = min(train.warmup_epochs, train.epochs / 2)
    optim = ResolvedOptim.model_validate({"lr": peak, "warmup_epochs": warmup, "betas": (0.9, 0.999)})
    micro = choose_micro_batch("auto", batch_size, encoder.num_tokens, encoder.width, device)
    unreadable = Unreadable(len(dataset), settings.data)
    placement = place(dataset, settings.data, device)
    batching = Batching(len(dataset), batch_size, micro, train.seed)
    source = open_source(dataset, settings.data, placement, batching, device, unreadable, labelled=True)
    runtime = Runtime(device, precision, device.type == "cuda", micro)
    trainer = Trainer(method, source, optim, loop, runtime, _Quiet(report, train.epochs))
    report.start(trainer.total_steps, 0, trainer.steps_per_epoch)
    trainer.fit()
    report.stop()
    source.close()
    return method


@torch.no_grad()
def _answers(
    settings: ResolvedProbeSettings, probe: AttentiveProbe, dataset: ImageDataset, device: torch.device, precision: str
) -> tuple[Tensor, Tensor]:
    """([heads, n, classes], [n] indices) of the images that can be read."""
    probe.eval()
    size = probe.backbone.image_size
    unreadable = Unreadable(len(dataset), settings.data)
    logits, indices = [], []
    for batch in square_batches(dataset, range(len(dataset)), size, _BATCH, device, unreadable):
        with autocast(device, precision):
            images = prepare(batch.images, size, settings.data.interpolation)
            logits.append(probe.logits(images).float().cpu())
        indices.append(batch.indices)
    return torch.cat(logits, dim=1), torch.cat(indices)
