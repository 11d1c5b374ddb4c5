"""What the columns of a table of images are: images, or paths of them, labels and splits. No torch here."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from dsdmae_cli.data.label_file import LABEL_HEADINGS, SPLIT_HEADINGS, LabelFile, labels_in
from dsdmae_cli.errors import DataError

_IMAGE_HEADINGS = ("image", "img", "picture", "photo", "jpg", "jpeg", "png", "webp", "bytes")
_MOST_SAID = 2**30  # bytes of a column of labels or splits
_PATH_HEADINGS = ("path", "file", "image_path", "file_name", "filename")  # of files beside the table


def image_column(schema: Any, wanted: str | None, path: Path) -> tuple[str, bool]:
    """The column of images, bytes or else paths, and whether it is a struct with bytes.

    Raises:
        DataError: there is none, or several.
    """
    import pyarrow as arrow

    able = {}
    texts = [field.name for field in schema if is_text(field.type)]
    for field in schema:
        kind = field.type
        if arrow.types.is_binary(kind) or arrow.types.is_large_binary(kind):
            able[field.name] = False
        elif arrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            able[field.name] = True
    if wanted in texts:
        return str(wanted), False
    if wanted is not None:
        if wanted not in able:
            raise DataError(
                f"data.image_column = {wanted!r}: {path} has no such column of bytes; of bytes are"
                f" {', '.join(able) or 'none'}"
            )
        return wanted, able[wanted]
    named = [name for name in able if name.lower() in _IMAGE_HEADINGS]
    choice = list(able) if len(able) == 1 else named
    paths = [name for name in texts if name.lower() in (*_IMAGE_HEADINGS, *_PATH_HEADINGS)]
    if not able and len(paths) == 1:
        return paths[0], False
    if len(choice) != 1:
        which = f"which column of {path} ({', '.join(schema.names[:12])}) holds the images?"
        if able:
            what = f"it could be {', '.join(choice or able)}; name it by --set data.image_column=NAME"
        else:
            meant = [f"{field.name!r} holds {_held(field.type)}, and " for field in schema
                     if field.name.lower().removesuffix("s") in _IMAGE_HEADINGS]  # fmt: skip
            what = (
                f"{''.join(meant[:1])}none holds one file's bytes a row, or structs with them under 'bytes'; write them"
                " so, or give the folder of the files (--labels FILE.csv says what they show)"
            )
        raise DataError(f"{which} {what}")
    return choice[0], able[choice[0]]


def is_text(kind: Any) -> bool:
    """Whether a column of that type may hold paths."""
    import pyarrow as arrow

    return bool(arrow.types.is_string(kind) or arrow.types.is_large_string(kind))


def lacks_bytes(group: Any, column: str) -> bool:
    """Whether a row group says that some of its structs have no bytes, and so may have paths."""
    parts = (group.column(number) for number in range(group.num_columns))
    found = next((part for part in parts if part.path_in_schema == f"{column}.bytes"), None)
    if found is None:  # no structs
        return False
    known = found.statistics
    # Where all are null the type may be none of bytes.
    return found.physical_type != "BYTE_ARRAY" or bool(known is not None and known.null_count)


def unpacked_size(group: Any, column: str) -> tuple[int, int]:
    """Bytes of a column's pages in a row group, as the file says, and how many they are in the file."""
    parts = [group.column(number) for number in range(group.num_columns)]
    own = [part for part in parts if part.path_in_schema.split(".")[0] == column]
    return sum(part.total_uncompressed_size for part in own), sum(part.total_compressed_size for part in own)


def said_of_rows(path: Path, column: str) -> list[Any]:
    """Values of a column of labels or splits. Each text is in memory once: a page may say in a few bytes that a long
    one stands in every row.

    Raises:
        DataError: they are too large for what they are.
    """
    import pyarrow.parquet as parquet

    with parquet.ParquetFile(path, read_dictionary=[column]) as table:
        groups = (table.metadata.row_group(number) for number in range(table.num_row_groups))
        if sum(unpacked_size(group, column)[0] for group in groups) > _MOST_SAID:
            raise DataError(
                f"{path} has more than {_MOST_SAID // 2**30} GiB in its column {column!r}, too much for labels or"
                " splits; name another by --set data.label_column=NAME, or write the file without it"
            )
        found: list[Any] = []
        for chunk in table.read(columns=[column]).column(0).chunks:
            if (words := getattr(chunk, "dictionary", None)) is None:
                found += chunk.to_pylist()
            else:
                said = words.to_pylist()
                found += [None if number is None else said[number] for number in chunk.indices.to_pylist()]
        return found


def _held(kind: Any) -> str:
    """What a column that is none of images holds, in words."""
    import pyarrow as arrow

    return "lists" if arrow.types.is_list(kind) or arrow.types.is_large_list(kind) else f"{kind}"


def label_column_of(schema: Any, wanted: str | None, image: str, path: Path) -> tuple[str | None, str]:
    """The column of labels, and words for what was taken.

    Raises:
        DataError: there is no column of that name.
    """
    if wanted is not None and wanted not in schema.names:
        raise DataError(
            f"data.label_column = {wanted!r}: {path} has no such column; it has {', '.join(schema.names[:12])}"
        )
    import pyarrow as arrow

    nested = {field.name: field.type for field in schema if arrow.types.is_nested(field.type)}
    if wanted in nested:
        raise DataError(
            f"data.label_column = {wanted!r}: in {path} it holds {_held(nested[wanted])}, and a label is a number or a"
            " word"
        )
    found = wanted or next((n for n in schema.names if n.lower() in LABEL_HEADINGS and n != image), None)
    if found in nested:
        return None, f"no labels: column {found!r} holds {_held(nested[found])}, and a label is a number or a word"
    if found is None:
        others = [name for name in schema.names if name != image]
        advice = "is called one; name it by --set data.label_column=NAME"
        said = f"no labels: none of the columns {', '.join(others[:8])} {advice}" if others else ""
        return None, said
    return found, f"labels are those of column {found!r}" + ("" if wanted else ", by its name")


def names_of(schema: Any, column: str) -> tuple[str, ...] | None:
    """What the numbers of a column of labels mean, where the file says so, as the Hub's do."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return tuple(str(name) for name in features[column]["names"])
    except (KeyError, TypeError, ValueError):
        return None  # a file of other origin


def labels_of_files(said: Sequence[tuple[Path, list[Any], tuple[str, ...] | None]]) -> LabelFile:
    """Labels of rows of several files, one after the other.

    Args:
        said: of each file its labels, and what numbers mean in it.

    Raises:
        DataError: some files say what their numbers mean, and others do not.
    """
    if len({names for _, _, names in said}) == 1:
        return labels_in([value for _, values, _ in said for value in values], said[0][2])
    words: list[str | None] = []  # where a number is another class in another file
    for path, values, names in said:
        if names is None:
            raise DataError(
                f"{path} does not say what the numbers of its labels mean, as other files do; write the names"
                " themselves into all, or the same metadata"
            )
        words += [names[value] if isinstance(value, int) and 0 <= value < len(names) else None for value in values]
    return labels_in(words)


def split_column_of(schema: Any, taken: Collection[str | None]) -> str:
    """The column that is called as one of splits; "" where there is none."""
    names = [name for name in schema.names if name.lower() in SPLIT_HEADINGS and name not in taken]
    return min(names, key=lambda name: SPLIT_HEADINGS.index(name.lower()), default="")
