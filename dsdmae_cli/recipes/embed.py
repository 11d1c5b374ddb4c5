"""`dsdmae embed`: features of every image of a dataset, with file names and labels, as .npz or Parquet."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dsdmae_cli import files
from dsdmae_cli.artifacts.open import Opened, open_encoder
from dsdmae_cli.config.use import given, passed_over
from dsdmae_cli.data.base import ImageDataset
from dsdmae_cli.data.open import open_dataset
from dsdmae_cli.data.source import Unreadable
from dsdmae_cli.errors import SettingsError
from dsdmae_cli.evaluation.dataset_features import dataset_features
from dsdmae_cli.evaluation.features import Cached, Features, Pool, check_pools
from dsdmae_cli.report import Report, make_report
from dsdmae_cli.runtime import choose_device, choose_precision
from dsdmae_cli.settings.models import BackboneSettings, DataSettings

Split = Literal["train", "test", "labelled", "all"]
_ADVICE = "make room or choose another --out"
_ENDINGS = (".npz", ".parquet")
# Rows of a Parquet file that are in memory a second time while they are written.
_ROW_GROUP = 10_000


@dataclass(frozen=True)
class Request:
    """What to embed and how.

    Attributes:
        subject: what `open_encoder` takes.
        out: the .npz or .parquet file to write.
        flags, assignments: settings of data and backbone, as given; without a dataset, a run's own is taken.
        split: "all" = train, then test.
        pool: see evaluation.features.
        image_size: side of the images the encoder sees; None = that of its training.
        device, precision: as train.device and train.precision.
        cache: keep the features in the user's cache, and look for them there.
        force: replace what is at `out`.
    """

    subject: str
    out: Path
    flags: Mapping[str, Any]
    assignments: Sequence[str] | None = None
    split: Split = "train"
    pool: Pool = "mean"
    image_size: int | None = None
    device: str = "auto"
    precision: str = "auto"
    cache: bool = True
    force: bool = False
    as_json: bool = False


@dataclass(frozen=True)
class Embedding:
    """Features with what they are of, row by row, in the dataset's order.

    Attributes:
        names: what the dataset calls each image; a path for images in files.
        splits: "train" or "test" of each.
        labels: -1 where an image has none; None where the dataset has none.
        classes: names of the labels.
    """

    features: NDArray[np.float32]
    names: list[str]
    splits: list[str]
    labels: NDArray[np.int64] | None
    classes: tuple[str, ...] | None


def embed(request: Request) -> dict[str, Any]:
    """Compute and write features; what was written, as --json prints it.

    Raises:
        SettingsError: the path is taken or its ending unknown, the encoder has no such pooling, no dataset is named.
        CheckpointError, PluginError: see open_encoder.
        DataError: the dataset is not there, or too many images cannot be read.
        RunFailed: the file cannot be written.
    """
    write = _writer(request.out)
    if request.out.is_dir():
        raise SettingsError(f"--out {request.out} is a folder; name a file in it")
    if request.out.exists() and not request.force:
        raise SettingsError(f"--out {request.out} exists; choose another path, or replace it with --force")
    report = make_report(as_json=request.as_json, main_process=True)
    opened, data = _opened(request)
    check_pools(opened.encoder, [request.pool])
    device = choose_device(request.device)
    precision = choose_precision(request.precision, device)
    for note in [*passed_over(), *opened.notes]:
        report.note(note)
    parts, unreadable = [], {}
    opened.encoder.to(device)
    for split in ("train", "test") if request.split == "all" else (request.split,):
        dataset = open_dataset(data, split)
        skipped = Unreadable(len(dataset), data)
        report.note(f"{len(dataset)} {split} images of {data.dataset} through {opened.name} on {device} in {precision}")
        found = dataset_features(
            opened.encoder, dataset, data.interpolation, [request.pool], device, precision, skipped, cache=request.cache
        )
        _tell(report, found, len(dataset), split)
        kept = found.features.indices.tolist()
        for line in skipped.lines():
            report.warn(f"skipped an unreadable image: {line}")
        unreadable.update(skipped.reasons)
        parts.append(_part(found.features, request.pool, dataset, kept, split))
    whole = _joined(parts)
    about = _about(request, opened, data, precision, str(device))
    with files.explained(request.out, _ADVICE):
        request.out.parent.mkdir(parents=True, exist_ok=True)
    with files.aside(request.out, _ADVICE) as partial:
        write(partial, whole, about)
    return {
        "path": str(request.out),
        "images": len(whole.names),
        "features": whole.features.shape[1],
        "labelled": int((whole.labels >= 0).sum()) if whole.labels is not None else 0,
        "classes": len(whole.classes) if whole.classes else None,
        "unreadable_images": len(unreadable),
        "unreadable": unreadable,
        **about,
    }


def _opened(request: Request) -> tuple[Opened, DataSettings]:
    """The encoder, and the data to look at: what was named, or else what the run learned from."""
    data, backbone = given(request.flags, request.assignments)
    if data is not None and _names_dataset(request):
        return _open(request, data, backbone), data
    opened = _open(request, None, backbone)
    if opened.settings is None:
        raise SettingsError(f"which images? {request.subject} does not say what it learned from; add --dataset NAME")
    below = ({"data": opened.settings["data"]}, request.subject)
    data, _ = given(request.flags, request.assignments, below)
    assert data is not None
    return opened, data


def _names_dataset(request: Request) -> bool:
    assigned = any(text.strip().startswith("data.dataset") for text in request.assignments or [])
    return request.flags.get("data.dataset") is not None or assigned


def _open(request: Request, data: DataSettings | None, backbone: BackboneSettings | None) -> Opened:
    return open_encoder(request.subject, data, backbone=backbone, image_size=request.image_size, seed=0)


def _tell(report: Report, found: Cached, total: int, split: str) -> None:
    if found.note:
        report.warn(found.note)
    if found.found:
        report.note(f"features of {len(found.features.indices)} of {total} {split} images from the cache")


def _part(features: Features, pool: str, dataset: ImageDataset, kept: list[int], split: str) -> Embedding:
    return Embedding(
        features=features.by_pool[pool].numpy(),
        names=[dataset.name(index) for index in kept],
        splits=[split if split != "labelled" else "train"] * len(kept),
        labels=None if dataset.labels is None else dataset.labels[kept],
        classes=dataset.classes,
    )


def _joined(parts: list[Embedding]) -> Embedding:
    if len(parts) == 1:
        return parts[0]
    labels = [p.labels if p.labels is not None else np.full(len(p.names), -1, dtype=np.int64) for p in parts]
    return Embedding(
        features=np.concatenate([p.features for p in parts]),
        names=[name for p in parts for name in p.names],
        splits=[split for p in parts for split in p.splits],
        labels=None if all(p.labels is None for p in parts) else np.concatenate(labels),
        classes=next((p.classes for p in parts if p.classes), None),
    )


def _about(request: Request, opened: Opened, data: DataSettings, precision: str, device: str) -> dict[str, Any]:
    """What the numbers are, kept in the file beside them."""
    return {
        "encoder": opened.name,
        "weights_sha256": opened.weights_sha256,
        "dataset": data.dataset,
        "split": request.split,
        "pool": request.pool,
        "image_size": opened.encoder.image_size,
        "precision": precision,
        "device": device,
    }


# ------------------------------------------------------------------------------------------------- file formats


def _writer(out: Path) -> Any:
    if out.suffix == ".npz":
        return _write_npz
    if out.suffix != ".parquet":
        raise SettingsError(f"--out {out} ends in neither of {' and '.join(_ENDINGS)}; give it one of these endings")
    try:
        import pyarrow.parquet  # noqa: F401  (before an hour of work, not after it)
    except ImportError as error:
        raise SettingsError("--out with .parquet needs PyArrow; pip install 'dsdmae[parquet]'") from error
    return _write_parquet


def _write_npz(path: Path, whole: Embedding, about: dict[str, Any]) -> None:
    """Arrays features, names, split, labels and classes, and the rest as JSON in `about`; none of it pickled."""
    arrays: dict[str, Any] = {
        "features": whole.features,
        "names": np.array(whole.names, dtype=np.str_),
        "split": np.array(whole.splits, dtype=np.str_),
        "about": np.array(json.dumps(about)),
    }
    if whole.labels is not None:
        arrays["labels"] = whole.labels
    if whole.classes is not None:
        arrays["classes"] = np.array(whole.classes, dtype=np.str_)
    with path.open("wb") as file:  # given a path, numpy would add an ending of its own
        np.savez(file, **arrays)


def _write_parquet(path: Path, whole: Embedding, about: dict[str, Any]) -> None:
    """Columns name, split, label, class, features; the rest as JSON under the key "dsdmae" of the schema."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    width = whole.features.shape[1]
    columns = [("name", pa.string()), ("split", pa.string())]
    if whole.labels is not None:
        columns.append(("label", pa.int64()))
    if whole.labels is not None and whole.classes is not None:
        columns.append(("class", pa.dictionary(pa.int32(), pa.string())))
    columns.append(("features", pa.list_(pa.float32(), width)))
    schema = pa.schema(columns, metadata={"dsdmae": json.dumps(about)})
    with pq.ParquetWriter(path, schema) as writer:
        for first in range(0, len(whole.names), _ROW_GROUP):
            rows = slice(first, first + _ROW_GROUP)
            arrays = [pa.array(whole.names[rows]), pa.array(whole.splits[rows])]
            if whole.labels is not None:
                labels = whole.labels[rows]
                arrays.append(pa.array(labels, mask=labels < 0))
                if whole.classes is not None:
                    ids = pa.array(labels.astype(np.int32), mask=labels < 0)
                    arrays.append(pa.DictionaryArray.from_arrays(ids, pa.array(whole.classes)))
            arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(whole.features[rows].reshape(-1)), width))
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


def summary(said: dict[str, Any]) -> str:
    """The lines for people."""
    labels = f", {said['labelled']} labelled" if said["labelled"] else ""
    lines = [f"wrote          {said['path']}: {said['images']} images{labels}, {said['features']} features each"]
    if said["unreadable_images"]:
        lines.append(f"skipped        {said['unreadable_images']} unreadable images")
    if said["path"].endswith(".npz"):
        lines.append(f"load it with   numpy.load({said['path']!r})['features']")
    else:
        lines.append(f"load it with   pandas.read_parquet({said['path']!r})")
    return "\n".join(lines)
