"""What a probe is given: features of both splits of a dataset, and the images behind them without test labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from dsdmae_cli.backbone import Backbone
from dsdmae_cli.data.base import ImageDataset, Subset
from dsdmae_cli.data.source import Unreadable
from dsdmae_cli.evaluation.dataset_features import dataset_features
from dsdmae_cli.evaluation.judging import LabelledSplits
from dsdmae_cli.evaluation.probes import ProbeData
from dsdmae_cli.evaluation.split import hold_out, hold_out_others
from dsdmae_cli.report import Report
from dsdmae_cli.settings.resolved import ResolvedProbeSettings


class Truth(NamedTuple):
    """What no probe sees: labels of the test images that could be read, and which of the test set those are."""

    labels: Int64[Tensor, " m"]
    indices: Int64[Tensor, " m"]


class Unlabelled(Subset):
    """Some images of a dataset without their labels."""

    def __init__(self, dataset: ImageDataset, indices: Int64[np.ndarray, " m"]) -> None:
        super().__init__(dataset, indices)
        self.labels = None


def gather(
    encoders: Mapping[str, Backbone],
    judged: LabelledSplits,
    settings: ResolvedProbeSettings,
    device: torch.device,
    precision: str,
    report: Report,
) -> tuple[dict[str, ProbeData], Truth]:
    """Features of both splits by each encoder, from the cache where they are, and what else a probe may see.

    Args:
        encoders: what is tried, by name (inner.candidates); frozen, in eval mode, on the device.

    Raises:
        DataError: too many images cannot be read.
    """

    def features(dataset: ImageDataset, split: str) -> tuple[list[Tensor], Int64[Tensor, " n"]]:
        unreadable, pool = Unreadable(len(dataset), settings.data, split), settings.probe.pool
        found = dataset_features(
            list(encoders.values()), dataset, settings.data.interpolation, [pool], device, precision, unreadable,
            report, cache=settings.probe.cache,
        )  # fmt: skip
        for note in sorted({cached.note for cached in found if cached.note}):
            report.warn(note)
        for line in unreadable.lines():
            report.warn(f"skipped {line}")
        return [cached.features.by_pool[pool] for cached in found], found[0].features.indices

    train_features, train = features(judged.train, "training")
    test_features, test = features(judged.test, "test")
    labels = torch.from_numpy(judged.train_labels)[train]
    share = settings.probe.validation, settings.train.seed
    split, others = hold_out(labels.numpy(), *share), hold_out_others(labels.numpy(), *share)
    # A subset of arrays is a copy of them.
    train_images = judged.train if len(train) == len(judged.train) else Subset(judged.train, train.numpy())
    test_images = Unlabelled(judged.test, test.numpy())
    tried = {
        name: ProbeData(
            train_features=to_learn,
            train_labels=labels,
            test_features=to_judge,
            split=split,
            num_classes=len(judged.classes),
            encoder=encoder,
            train_images=train_images,
            test_images=test_images,
            image_settings=settings.data,
            schedule=settings.train,
            device=device,
            precision=precision,
            report=report,
            others=others,
        )
        for (name, encoder), to_learn, to_judge in zip(encoders.items(), train_features, test_features, strict=True)
    }
    return tried, Truth(torch.from_numpy(judged.test_labels)[test], test)


def drawn(data: ProbeData, chosen: Int64[np.ndarray, " k"], validation: float) -> ProbeData:
    """The same with some of the training images alone, of which a share is held out anew."""
    labels = data.train_labels[torch.from_numpy(chosen)]
    return replace(
        data,
        train_features=data.train_features[torch.from_numpy(chosen)],
        train_labels=labels,
        train_images=Subset(data.train_images, chosen),
        split=hold_out(labels.numpy(), validation, data.schedule.seed),
        others=hold_out_others(labels.numpy(), validation, data.schedule.seed),
    )
