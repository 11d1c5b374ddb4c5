"""Features of images as a file, .npz or Parquet, with what each row and all of them are."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsdmae_cli.errors import SettingsError

_ENDINGS = (".npz", ".parquet")
# Rows of a Parquet file that are in memory a second time while they are written.
_ROW_GROUP = 10_000


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


# Writes an embedding and what its numbers are to a path.
Writer = Callable[[Path, Embedding, dict[str, Any]], None]


def joined(parts: list[Embedding]) -> Embedding:
    """One after the other; where only some have labels, the others have -1."""
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


def writer(out: Path) -> Writer:
    """The function that writes a file of this ending.

    Raises:
        SettingsError: it is no ending of ours, or a package is missing.
    """
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
