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
from dsdmae_cli.runtime import choose_micro_batch


def dataset_features(
    encoder: Backbone,
    dataset: ImageDataset,
    interpolation: Interpolation,
    pools: Sequence[Pool],
    device: torch.device,
    precision: str,
    unreadable: Unreadable,
    *,
    cache: bool = True,
) -> Cached:
    """Features of all images of a dataset that can be read.

    Args:
        encoder: on the device.
        precision: "bf16", "fp16" or "fp32".
        unreadable: counts what could not be read, also where features come from the cache.

    Raises:
        DataError: too many images cannot be read, or none can.
    """
    size, indices = encoder.image_size, list(range(len(dataset)))
    batch_size = max(64, choose_micro_batch("auto", len(indices), encoder.num_tokens, encoder.width, device))

    def compute() -> Features:
        batches = square_batches(dataset, indices, size, batch_size, device, unreadable)
        return extract(encoder, batches, pools, precision, interpolation)

    if not cache:
        return Cached(compute(), False, None, 0, None)
    key = FeatureKey(
        encoder=encoder_digest(encoder),
        dataset=dataset.fingerprint(),
        indices=indices_digest(indices),
        image_size=size,
        interpolation=interpolation,
        pools=tuple(pools),
        precision=precision,
        dtype="float32",
        device=device.type,
    )
    cached = cached_features(key, compute)
    if cached.found:
        for index in sorted(set(indices) - set(cached.features.indices.tolist())):
            unreadable.add(dataset.name(index), "unreadable when its features were computed")
    return cached
