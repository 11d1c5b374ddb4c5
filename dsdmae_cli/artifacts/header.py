"""What a safetensors file says of itself. No torch here; tensors are loaded by checkpoint.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dsdmae_cli.errors import CheckpointError
from dsdmae_cli.files import instead, parsed_json, require_file
from dsdmae_cli.settings.size import Size, as_size, size_word

# In the metadata of weights that came from elsewhere: the table of the backbone they were opened as.
BACKBONE = "backbone"


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file, which is seen to be whole.

    Raises:
        CheckpointError: it cannot be read or is no safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        require_file(path)
        with safe_open(path, framework="numpy") as file:
            return dict(file.metadata() or {})
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    except SafetensorError as error:
        raise CheckpointError(f"{path} is no readable safetensors file: {error}{instead(path)}") from error


def written_settings(metadata: dict[str, str], origin: str) -> dict[str, dict[str, Any]] | None:
    """The tables of settings that this program wrote with the weights; None = it did not write them.

    Raises:
        CheckpointError: they are damaged.
    """
    if "settings" not in metadata:
        return None
    try:
        values = parsed_json(metadata["settings"])
    except ValueError as error:
        raise CheckpointError(f"the settings in {origin} are damaged: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"the settings in {origin} are damaged: they are no tables")
    return values


def written_backbone(metadata: dict[str, str], origin: str) -> dict[str, Any] | None:
    """The table of the backbone that this program wrote with weights it has not trained; None = it did not.

    Raises:
        CheckpointError: it is damaged.
    """
    if BACKBONE not in metadata:
        return None
    try:
        table = parsed_json(metadata[BACKBONE])
    except ValueError as error:
        raise CheckpointError(f"the backbone in {origin} is damaged: {error}") from error
    if not isinstance(table, dict) or not isinstance(table.get("name"), str):
        raise CheckpointError(f"the backbone in {origin} is damaged: it is no table with a name")
    return table


def number(path: Path, metadata: dict[str, str], key: str, default: int) -> int:
    """What a file says of itself, in metadata that anybody may have written.

    Raises:
        CheckpointError: it is no number.
    """
    found = metadata.get(key, str(default))
    if not (found.isascii() and found.isdigit() and len(found) < 19):
        raise CheckpointError(f"{path} is damaged: its metadata have {key} = {found[:40]!r}, which is no number")
    return int(found)


def image_size(path: Path, metadata: dict[str, str], default: Size) -> Size:
    """Of the images that a file's network is for; an exported one may take others than those it learned from.

    Raises:
        CheckpointError: it is no size.
    """
    sides = [number(path, {"image_size": side}, "image_size", 0)
             for side in metadata.get("image_size", size_word(default)).split(",")]  # fmt: skip
    if len(sides) > 2:
        raise CheckpointError(f"{path} is damaged: its metadata have image_size = {metadata['image_size'][:40]!r}")
    return as_size(sides[0], sides[-1])
