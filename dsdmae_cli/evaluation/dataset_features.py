"""Features of a whole dataset, from the cache or computed: what probe and embed start with."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dsdmae_cli.backbone import Backbone
from dsdmae_cli.data.augment import Interpolation
from dsdmae_cli.data.base import ImageDataset
from dsdmae_cli.data.source import Unreadable
from dsdmae_cli.evaluation.features import (
    Cached,
    FeatureKey,
    Features,
    Pool,
    cached_features,
    encoder_digest,
    extract,
    indices_digest,
    square_batches,
)
from dsdmae_cli.report import Report
from dsdmae_cli.runtime import choose_micro_batch


def dataset_features(
    encoders: Sequence[Backbone],
    dataset: ImageDataset,
    interpolation: Interpolation,
    pools: Sequence[Pool],
    device: torch.device,
    precision: str,
    unreadable: Unreadable,
    report: Report,
    *,
    cache: bool = True,
) -> list[Cached]:
    """Features by each encoder of all images of a dataset that can be read; what is not cached takes one pass.

    Args:
        encoders: on the device, of one image size; several are blocks of one network to choose from (inner.py).
        precision: "bf16", "fp16" or "fp32".
        unreadable: counts what could not be read, also where features come from the cache.
        report: shows how far it is.

    Raises:
        DataError: too many images cannot be read, or none can.
    """
    indices = list(range(len(dataset)))

    def compute(places: Sequence[int]) -> list[Features]:
        wanted = [encoders[place] for place in places]
        size, tokens = wanted[0].image_size, max(encoder.num_tokens for encoder in wanted)
        width = max(encoder.width for encoder in wanted)
        batch_size = max(64, choose_micro_batch("auto", len(indices), tokens, width, device))
        batches = square_batches(dataset, indices, size, batch_size, device, unreadable)
        batches = report.watched(
            batches, "features of", f"{len(indices):,} images", len(indices), lambda b: len(b.indices)
        )
        return extract(wanted, batches, pools, precision, interpolation)

    if not cache:
        return [Cached(features, False, None, 0, None) for features in compute(range(len(encoders)))]
    fingerprint, which = dataset.fingerprint(), indices_digest(indices)
    keys = [
        FeatureKey(
            encoder=encoder_digest(encoder),
            dataset=fingerprint,
            indices=which,
            image_size=encoder.image_size,
            interpolation=interpolation,
            pools=tuple(pools),
            precision=precision,
            dtype="float32",
            device=device.type,
        )
        for encoder in encoders
    ]
    found = cached_features(keys, compute)
    if found[0].found:
        for index in sorted(set(indices) - set(found[0].features.indices.tolist())):
            unreadable.add(dataset.name(index), "unreadable when its features were computed")
    return found
