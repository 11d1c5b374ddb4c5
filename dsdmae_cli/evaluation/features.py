"""An encoder and images to pooled features, one pass for all poolings, and a cache of them on disk.

A cache file is named by the SHA-256 of all that decides what is in it: the encoder, the images, how they are prepared
and the precision. It is therefore never out of date, and can be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dsdmae_cli.backbone import Backbone, evaluating
from dsdmae_cli.checkpoint import weights_sha256
from dsdmae_cli.data.augment import Interpolation, prepare
from dsdmae_cli.data.base import ImageDataset
from dsdmae_cli.data.run_data import Rows
from dsdmae_cli.data.source import Unreadable
from dsdmae_cli.data.square import decode_square
from dsdmae_cli.errors import DataError, RunFailed, SettingsError
from dsdmae_cli.evaluation.inner import tokens_of
from dsdmae_cli.files import aside
from dsdmae_cli.report import number_of
from dsdmae_cli.runtime import autocast
from dsdmae_cli.settings.size import Size
from dsdmae_cli.transfer import Gathered, sent

Pool = Literal["mean", "cls", "max", "mean+cls", "tokens"]
POOLS: tuple[Pool, ...] = get_args(Pool)

# Of the file and of how features are computed: a change to either must raise it, or old features would be read.
FORMAT_VERSION = 3


# ------------------------------------------------------------------------------------------------ extraction


class Batch(NamedTuple):
    """Prepared images that could be read, and which images of the dataset they are."""

    images: UInt8[Tensor, "b c s t"]
    indices: Int64[Tensor, " b"]


def square_batches(
    dataset: ImageDataset,
    indices: Sequence[int],
    image_size: Size,
    batch_size: int,
    device: torch.device,
    unreadable: Unreadable,
    *,
    may_be_none: bool = False,
) -> Iterator[Batch]:
    """Images decoded batch by batch, the next while this one is used; unreadable ones are counted and left out.

    Args:
        may_be_none: who asks can do without any.

    Raises:
        DataError: too many cannot be read, or none can.
    """
    chunks = [list(indices[start : start + batch_size]) for start in range(0, len(indices), batch_size)]

    def decode(chunk: list[int]) -> Batch:
        arrays, kept = decode_square(dataset, chunk, image_size, unreadable, may_be_empty=True)
        images = torch.from_numpy(np.ascontiguousarray(arrays.transpose(0, 3, 1, 2)))
        return Batch(sent(images, device), torch.tensor(kept, dtype=torch.int64))

    any_read = may_be_none
    with ThreadPoolExecutor(1) as ahead:
        coming = ahead.submit(decode, chunks[0]) if chunks else None
        for following in [*chunks[1:], None]:
            if coming is None:
                break
            batch = coming.result()
            coming = ahead.submit(decode, following) if following is not None else None
            if len(batch.indices):
                any_read = True
                yield batch
    if not any_read and len(unreadable):  # a single one is never too many
        raise DataError(f"none of {number_of(len(indices), 'image')} can be read (first: {unreadable.first})")


class Features(NamedTuple):
    """Features on the CPU by pooling, and which image of the dataset each row is of."""

    by_pool: dict[str, Float[Tensor, "n ..."]]
    indices: Int64[Tensor, " n"]


@torch.no_grad()
def extract(
    encoders: Sequence[Backbone],
    batches: Iterator[Batch],
    pools: Sequence[Pool],
    precision: str = "fp32",
    interpolation: Interpolation = "bicubic",
    dtype: torch.dtype = torch.float32,
) -> list[Features]:
    """Features of clean images by each encoder, all in one pass over the images, the encoders in eval mode.

    Args:
        encoders: of one image size; those that look at blocks of one network (inner.py) cost one pass through it.
        batches: on the encoders' device.
        pools: which summaries of the tokens: their mean or maximum over the grid, the class token, or mean and class
            token side by side ("mean+cls"); or the patch tokens themselves ("tokens"), [n, tokens, d].
        precision: of the forward pass: bf16, fp16 or fp32.
        dtype: of what is returned. float16 halves the memory, and is enough for features that end in a norm.

    Raises:
        SettingsError: a pool needs a class token and an encoder has none.
        RunFailed: features are not finite, in `precision` or in `dtype`.
    """
    for encoder in encoders:
        check_pools(encoder, pools)
    found: list[dict[str, Gathered]] = [{pool: Gathered() for pool in pools} for _ in encoders]
    indices: list[Tensor] = []
    finite: list[Tensor] = []
    with ExitStack() as stack:
        for encoder in encoders:
            stack.enter_context(evaluating(encoder))
        for batch in batches:
            images = prepare(batch.images, encoders[0].image_size, interpolation)
            with autocast(batch.images.device, precision):
                each = tokens_of(encoders, images)
            for parts, (patches, class_token) in zip(found, each, strict=True):
                for pool in pools:
                    pooled = _POOLING[pool](patches, class_token).to(dtype)
                    finite.append(pooled.isfinite().all())
                    parts[pool].add(pooled)
            indices.append(batch.indices)
    if finite and not torch.stack(finite).all():
        how = f"in {precision}, " if precision != "fp32" else ""
        raise RunFailed(
            f"the encoder gives features that are not finite ({how}kept as {_short(dtype)}); its weights may be"
            " damaged, or it needs --precision fp32"
        )
    return [Features({pool: part.cat() for pool, part in parts.items()}, torch.cat(indices)) for parts in found]


def check_pools(encoder: Backbone, pools: Sequence[str]) -> None:
    """Raise SettingsError if a pool is unknown, or asks for a class token that the encoder does not have."""
    for pool in pools:
        if pool not in POOLS:
            raise SettingsError(f"no pooling {pool!r}; there are {', '.join(POOLS)}")
        if "cls" in pool and not encoder.has_class_token:
            raise SettingsError(f"--pool {pool} needs a class token and this encoder has none; use mean or max")


def _mean(patches: Tensor, class_token: Tensor | None) -> Tensor:
    return patches.float().mean(dim=1)


def _class(patches: Tensor, class_token: Tensor | None) -> Tensor:
    assert class_token is not None
    return class_token.float()


_POOLING: dict[str, Callable[[Tensor, Tensor | None], Tensor]] = {
    "mean": _mean,
    "cls": _class,
    "max": lambda patches, class_token: patches.float().amax(dim=1),
    "tokens": lambda patches, class_token: patches.float(),
    "mean+cls": lambda patches, class_token: torch.cat([_mean(patches, None), _class(patches, class_token)], dim=1),
}


@torch.no_grad()
def mean_features(
    encoder: Backbone,
    images: UInt8[Tensor, "n c h w"] | Rows,
    batch_size: int,
    precision: str = "fp32",
) -> Float[Tensor, "n d"]:
    """Tokens of clean images, averaged over the grid, where the images are; the encoder in eval mode."""
    features = []
    with evaluating(encoder):
        for batch in images.split(batch_size):
            with autocast(batch.device, precision):
                features.append(encoder(prepare(batch, encoder.image_size, "bicubic")).float().mean(dim=1))
    return torch.cat(features)


# ----------------------------------------------------------------------------------------------------- cache


@dataclass(frozen=True)
class FeatureKey:
    """All that decides what features are.

    Attributes:
        encoder: `encoder_digest` of the network and its weights.
        dataset: `fingerprint()` of the dataset.
        indices: `indices_digest` of the images that were asked for.
        image_size: to which images are decoded.
        interpolation: of a resize on the device.
        pools: in order.
        precision: what the forward pass ran in ("fp32", "bf16", ...).
        dtype: of the features as kept.
        device: "cpu", "cuda", ...: kernels differ in the last bits.
        version: of the format, and of how features are computed.
    """

    encoder: str
    dataset: str
    indices: str
    image_size: Size
    interpolation: str
    pools: tuple[str, ...]
    precision: str
    dtype: str
    device: str
    version: int = FORMAT_VERSION

    def digest(self) -> str:
        """SHA-256 of all of it."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def encoder_digest(encoder: Backbone) -> str:
    """SHA-256 of an architecture and its weights, the same from whatever file they came.

    The architecture is part of it because weights of one shape can belong to networks of, say, 3 heads or 6.
    """
    what = [
        *(type(encoder).__qualname__, encoder.timm_name, encoder.timm_kwargs),
        *(encoder.image_size, encoder.mean, encoder.std),
    ]
    words = json.dumps([*what, weights_sha256(encoder.timm_state())], sort_keys=True, default=str)
    return hashlib.sha256(words.encode()).hexdigest()


def indices_digest(indices: Sequence[int]) -> str:
    """SHA-256 of which images, in which order."""
    return hashlib.sha256(torch.tensor(indices, dtype=torch.int64).numpy().tobytes()).hexdigest()


class Cached(NamedTuple):
    """Features, and how they were come by.

    Attributes:
        found: they were read, not computed.
        path: where they are kept now; None if they could not be.
        num_bytes: size of that file.
        note: what a person should know: a damaged file, a disk that is full. None = nothing.
    """

    features: Features
    found: bool
    path: Path | None
    num_bytes: int
    note: str | None


def cached_features(
    keys: Sequence[FeatureKey], compute: Callable[[list[int]], Sequence[Features]], folder: Path | None = None
) -> list[Cached]:
    """Features from the cache, the others computed, at once, and put there. Damaged files are replaced.

    A cache that cannot be written costs time, not the result: it is a note and no error.

    Args:
        compute: features for the keys of these places.
        folder: of the cache; None = `features` in the user's cache folder (under ~/.cache on Linux).
    """
    folder = folder or cache_folder()
    paths = [folder / f"{key.digest()}.safetensors" for key in keys]
    there = [path.exists() for path in paths]  # before: another process may write the same ones meanwhile
    known = [_read(path) if found else None for path, found in zip(paths, there, strict=True)]
    missing = [place for place, features in enumerate(known) if features is None]
    computed = dict(zip(missing, compute(missing), strict=True)) if missing else {}
    return [
        Cached(features, True, path, path.stat().st_size, None)
        if features is not None
        else _put(computed[place], keys[place], path, damaged=there[place])
        for place, (path, features) in enumerate(zip(paths, known, strict=True))
    ]


def _put(features: Features, key: FeatureKey, path: Path, *, damaged: bool) -> Cached:
    """Into the cache, whatever stands there."""
    note = f"cached features in {path} were damaged and have been computed anew" if damaged else None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, key, features)
    except (OSError, RunFailed) as error:
        reason = error.__cause__ or error
        return Cached(features, False, None, 0, f"features were not cached in {path.parent}: {reason}")
    return Cached(features, False, path, path.stat().st_size, note)


def cache_folder() -> Path:
    """Where features are kept unless another folder is named."""
    from platformdirs import user_cache_path

    return user_cache_path("dsdmae") / "features"


def _tensors(features: Features) -> dict[str, Tensor]:
    return {"indices": features.indices, **{f"pool/{pool}": found for pool, found in features.by_pool.items()}}


def _write(path: Path, key: FeatureKey, features: Features) -> None:
    tensors = {name: tensor.contiguous() for name, tensor in _tensors(features).items()}
    metadata = {"key": json.dumps(asdict(key), sort_keys=True), "sha256": weights_sha256(tensors)}
    with aside(path) as partial:
        try:
            save_file(tensors, partial, metadata)
        except SafetensorError as error:  # its word for the system's refusal
            raise OSError(str(error)) from error


def _read(path: Path) -> Features | None:
    """What is in a file, or None if it is damaged. The format would load a flipped bit in silence, hence the sum."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
            sha256 = (file.metadata() or {}).get("sha256")
    except (OSError, SafetensorError):
        return None
    if sha256 != weights_sha256(tensors):
        return None
    pools = {name.removeprefix("pool/"): tensor for name, tensor in tensors.items() if name != "indices"}
    return Features(pools, tensors["indices"])


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
