"""Features of images as a file, .npz or Parquet, with what each row and all of them are."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from dsdmae_cli import files
from dsdmae_cli.backbone import Backbone
from dsdmae_cli.data.base import ImageDataset
from dsdmae_cli.data.square import to_square
from dsdmae_cli.errors import SettingsError
from dsdmae_cli.figures.attention import MOST_IMAGES, attention
from dsdmae_cli.figures.moments import visible
from dsdmae_cli.settings.size import Size

_ENDINGS = (".npz", ".parquet")
# Rows of a Parquet file that are in memory a second time while they are written.
_ROW_GROUP = 10_000
_THUMBNAIL = 128


@dataclass(frozen=True)
class Embedding:
    """Features with what they are of, row by row, in the dataset's order.

    Attributes:
        features: [n, d]; of tokens [n, rows, columns, d].
        names: what the dataset calls each image; a path for images in files.
        splits: "train" or "test" of each.
        labels: -1 where an image has none; None where the dataset has none.
        classes: names of the labels.
        attention: [n, heads, rows, columns], where asked for.
        seen: the first of these images as the encoder saw them, [m, height, width, channels].
        thumbnails: small pictures as JPEG files, where asked for.
    """

    features: NDArray[np.float32]
    names: list[str]
    splits: list[str]
    labels: NDArray[np.int64] | None
    classes: tuple[str, ...] | None
    attention: NDArray[np.float32] | None = None
    seen: NDArray[np.uint8] | None = None
    thumbnails: list[bytes] | None = None


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
        attention=np.concatenate([a for p in parts if (a := p.attention) is not None])
        if parts[0].attention is not None
        else None,
        seen=parts[0].seen,
        thumbnails=[small for p in parts for small in p.thumbnails or []] if parts[0].thumbnails is not None else None,
    )


def rows_of(
    features: Float[Tensor, "n ..."], dataset: ImageDataset, kept: list[int], split: str, grid: tuple[int, int]
) -> Embedding:
    """Features with what they are of.

    Args:
        features: of the images `kept`; patch tokens are put on their grid.
        split: "labelled" are training images.
    """
    found = features.numpy()
    return Embedding(
        features=found if found.ndim == 2 else found.reshape(len(found), *grid, -1),
        names=[dataset.name(index) for index in kept],
        splits=[split if split != "labelled" else "train"] * len(kept),
        labels=None if dataset.labels is None else dataset.labels[kept],
        classes=dataset.classes,
    )


def with_attention(
    part: Embedding, maps: Float[Tensor, "n heads rows columns"], dataset: ImageDataset, kept: list[int], size: Size
) -> Embedding:
    """The embedding with where the encoder looks, and the first images as it saw them, of `size` pixels."""
    seen = [to_square(dataset.load(index), size) for index in kept[:MOST_IMAGES]]
    return replace(part, attention=maps.numpy(), seen=np.stack(seen))


def written(
    write: Writer, out: Path, whole: Embedding, about: dict[str, Any], draw: Callable[[], dict[str, Any]], advice: str
) -> dict[str, Any]:
    """Write features, and draw the attention that is among them and what else there is to draw; what was written, as
    --json prints it.

    Args:
        draw: draws, and says what.

    Raises:
        RunFailed: it cannot be written; neither features nor pictures are left.
    """
    with files.explained(out, advice):
        out.parent.mkdir(parents=True, exist_ok=True)
    # The features take their place last: where a picture cannot be written, the same command would find them there.
    with files.aside(out, advice) as partial, files.not_resumable(advice):
        write(partial, whole, about)
        drawn = {} if whole.attention is None else {"attention_picture": str(draw_attention(whole, out))}
        drawn |= draw()
    return {"path": str(out), **drawn}


def attention_picture(out: Path) -> Path:
    """Where attention is drawn: beside the file of the features."""
    return out.with_suffix(".attention.png")


def draw_attention(whole: Embedding, out: Path) -> Path:
    """Draw where an encoder looks, beside the file of its features; the picture's path.

    Raises:
        RunFailed: it cannot be written.
    """
    assert whole.attention is not None
    assert whole.seen is not None
    path = attention_picture(out)
    attention(whole.seen, whole.attention, path)
    return path


def thumbnails_of(dataset: ImageDataset, indices: Sequence[int]) -> list[bytes]:
    """Images no larger than 128 pixels as JPEG files; of other bands than grey and RGB the first three.

    Raises:
        UnreadableImage: an image could be read before and cannot be any more.
    """
    from PIL import Image

    small = []
    for index in indices:
        pixels = visible(np.moveaxis(dataset.load(index), 2, 0))
        image = Image.fromarray(np.ascontiguousarray(np.moveaxis(pixels, 0, 2)))
        image.thumbnail((_THUMBNAIL, _THUMBNAIL))
        buffer = io.BytesIO()
        image.save(buffer, format="JPEG", quality=90)
        small.append(buffer.getvalue())
    return small


def check_room(num_images: int, encoder: Backbone) -> None:
    """See that the tokens of all images fit into memory twice, since they are put together there.

    Raises:
        SettingsError: they do not.
    """
    import psutil

    num_bytes, room = 4 * num_images * encoder.num_tokens * encoder.width, psutil.virtual_memory().available
    if 2 * num_bytes > room:
        raise SettingsError(
            f"--pool tokens of {num_images:,} images takes {2 * num_bytes / 2**30:.1f} GiB of memory, more than the"
            f" {room / 2**30:.1f} GiB that are free; embed fewer images, or a pool of their tokens"
        )


def free(out: Path, thumbnails: bool, force: bool, *, attention: bool = False) -> Writer:
    """`writer` for a path that may be written.

    Args:
        attention: so may a picture of it beside the file.

    Raises:
        SettingsError: it may not, or see writer.
    """
    write = writer(out, thumbnails)
    if out.is_dir():
        raise SettingsError(f"--out {out} is a folder; name a file in it")
    said = {out: f"--out {out} exists"}
    if attention:
        picture = attention_picture(out)
        said[picture] = f"{picture} exists, where --attention draws beside --out {out}"
    for path, what in said.items():
        if path.exists() and not force:
            raise SettingsError(f"{what}; choose another path, or replace it with --force")
    return write


def writer(out: Path, thumbnails: bool = False) -> Writer:
    """The function that writes a file of this ending.

    Args:
        thumbnails: it will hold pictures.

    Raises:
        SettingsError: it is no ending of ours, it cannot hold pictures, or a package is missing.
    """
    if thumbnails and out.suffix != ".parquet":
        raise SettingsError(f"--thumbnails are a column of Parquet, and --out {out} is none; name a .parquet file")
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
    if whole.attention is not None:
        arrays["attention"] = whole.attention
    with path.open("wb") as file:  # given a path, numpy would add an ending of its own
        np.savez(file, **arrays)


def _write_parquet(path: Path, whole: Embedding, about: dict[str, Any]) -> None:
    """Columns name, split, label, class, features, attention, image; the rest as JSON under the key "dsdmae" of the
    schema. Tokens and attention are rows of numbers, whose shapes it says.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if odd := [name for name in [*whole.names, *(whole.classes or ())] if not files.is_text(name)]:
        raise SettingsError(
            f"{odd[0]} is no UTF-8, as text in Parquet has to be; rename it, or name an .npz file by --out"
        )
    numbers = {"features": whole.features, "attention": whole.attention}
    flat = {name: values.reshape(len(values), -1) for name, values in numbers.items() if values is not None}
    columns = [("name", pa.string()), ("split", pa.string())]
    if whole.labels is not None:
        columns.append(("label", pa.int64()))
    if whole.labels is not None and whole.classes is not None:
        columns.append(("class", pa.dictionary(pa.int32(), pa.string())))
    columns += [(name, pa.list_(pa.float32(), values.shape[1])) for name, values in flat.items()]
    if whole.thumbnails is not None:  # as Hugging Face has pictures, which viewers know
        columns.append(("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])))
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
            for values in flat.values():
                part = pa.array(values[rows].reshape(-1))
                arrays.append(pa.FixedSizeListArray.from_arrays(part, values.shape[1]))
            if whole.thumbnails is not None:
                parts = [pa.array(whole.thumbnails[rows]), pa.array([Path(name).name for name in whole.names[rows]])]
                arrays.append(pa.StructArray.from_arrays(parts, ["bytes", "path"]))
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
